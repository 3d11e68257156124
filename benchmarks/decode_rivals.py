"""What the decoding benchmark compares, each in a process of its own: ``python -m benchmarks.decode_rivals NAME``.

A process answers lines of JSON: a file and the wanted frames in, CPU milliseconds and the frame numbers found out.
"""

import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

Decoder = Callable[[Path, bytes, Sequence[int], int], list[np.ndarray]]


def facereel(path: Path, data: bytes, wanted: Sequence[int], short_side: int) -> list[np.ndarray]:
    return _facereel(data, wanted, short_side, "exact")


def facereel_keyframes(path: Path, data: bytes, wanted: Sequence[int], short_side: int) -> list[np.ndarray]:
    return _facereel(data, wanted, short_side, "keyframe")


def _facereel(data: bytes, wanted: Sequence[int], short_side: int, mode: str) -> list[np.ndarray]:
    import io

    from models.video.decode import decode_frames
    from models.video.limits import DecodeLimits
    from models.video.sampling import FramePolicy

    policy = FramePolicy(indices=tuple(wanted), mode=mode, short_side=short_side)
    return [frame.rgb for frame in decode_frames(io.BytesIO(data), policy, DecodeLimits(), name="video").frames]


def until_last(path: Path, data: bytes, wanted: Sequence[int], short_side: int) -> list[np.ndarray]:
    """Decode everything until the last wanted frame, with the same library and scaling."""
    import io

    import av
    from av.video.reformatter import Interpolation, VideoReformatter

    from models.video.sampling import scaled_size

    numbers, found, reformatter = set(wanted), [], VideoReformatter()
    with av.open(io.BytesIO(data), buffer_size=1 << 20) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        for index, frame in enumerate(container.decode(stream)):
            if index in numbers:
                size = scaled_size(frame.width, frame.height, short_side)
                small = reformatter.reformat(
                    frame, *size, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
                )
                found.append(small.to_ndarray())
            if index >= wanted[-1]:
                break
    return found


def torchcodec(path: Path, data: bytes, wanted: Sequence[int], short_side: int) -> list[np.ndarray]:
    """Shrinking inside the decoder, which is torchcodec's cheapest way."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    resize = Resize(_upright_size(path, short_side))
    decoder = VideoDecoder(data, transforms=[resize], num_ffmpeg_threads=1, seek_mode="exact", dimension_order="NHWC")
    return list(decoder.get_frames_at(list(wanted)).data.numpy())


def torchcodec_then_resize(path: Path, data: bytes, wanted: Sequence[int], short_side: int) -> list[np.ndarray]:
    """Shrinking with torchvision afterwards, as its tutorials do."""
    import torch
    from torchcodec.decoders import VideoDecoder
    from torchvision.transforms.v2.functional import resize

    torch.set_num_threads(1)
    decoder = VideoDecoder(data, num_ffmpeg_threads=1, seek_mode="exact")
    frames = decoder.get_frames_at(list(wanted)).data
    return list(resize(frames, list(_upright_size(path, short_side))).permute(0, 2, 3, 1).numpy())


def decord(path: Path, data: bytes, wanted: Sequence[int], short_side: int) -> list[np.ndarray]:
    import io

    from decord import VideoReader, cpu

    height, width = _upright_size(path, short_side)
    reader = VideoReader(io.BytesIO(data), ctx=cpu(0), width=width, height=height, num_threads=1)
    return list(reader.get_batch(list(wanted)).asnumpy())


def opencv(path: Path, data: bytes, wanted: Sequence[int], short_side: int) -> list[np.ndarray]:
    """Grab up to each wanted frame, retrieve and shrink it: OpenCV's own seeking by number is inexact."""
    import cv2

    cv2.setNumThreads(1)
    height, width = _upright_size(path, short_side)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    numbers, found = set(wanted), []
    for index in range(wanted[-1] + 1):
        if not capture.grab():
            break
        if index in numbers:
            _, picture = capture.retrieve()
            small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            found.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
    capture.release()
    return found


def ffmpeg(path: Path, data: bytes, wanted: Sequence[int], short_side: int) -> list[np.ndarray]:
    """The ffmpeg command with a select filter."""
    chosen = "+".join(f"eq(n\\,{index})" for index in wanted)
    return run_ffmpeg(path, f"select='{chosen}',", len(wanted), _small_size(path, short_side))


def run_ffmpeg(path: Path, select: str, num_frames: int, size: tuple[int, int]) -> list[np.ndarray]:
    import imageio_ffmpeg

    height, width = size
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", "1", "-noautorotate", "-i", str(path)]
    command += ["-an", "-vf", f"{select}scale={width}:{height}:flags=bilinear", "-filter_threads", "1"]
    command += ["-fps_mode", "passthrough", "-frames:v", str(num_frames), "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return list(np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3))


_SIZES: dict[Path, tuple[tuple[int, int], tuple[int, int]]] = {}


def _small_size(path: Path, short_side: int) -> tuple[int, int]:
    """(height, width) of the scaled picture as it is stored; looked up before the clock runs."""
    return _look_up(path, short_side)[0]


def _upright_size(path: Path, short_side: int) -> tuple[int, int]:
    """(height, width) of the scaled picture, upright."""
    return _look_up(path, short_side)[1]


def _look_up(path: Path, short_side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    if path not in _SIZES:
        import av

        from models.video.sampling import scaled_size

        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
        width, height = scaled_size(frame.width, frame.height, short_side)
        stored = (height, width)
        _SIZES[path] = (stored, stored[::-1] if frame.rotation % 180 else stored)
    return _SIZES[path]


RIVALS: dict[str, Decoder] = {
    "facereel": facereel,
    "keyframes": facereel_keyframes,
    "until last": until_last,
    "torchcodec": torchcodec,
    "torchcodec + resize": torchcodec_then_resize,
    "decord": decord,
    "opencv": opencv,
    "ffmpeg select": ffmpeg,
}
MODULES = {
    "torchcodec": "torchcodec.decoders",
    "torchcodec + resize": "torchvision.transforms.v2",
    "decord": "decord",
    "opencv": "cv2",
    "facereel": "models.video.decode",
}


def cpu_s() -> float:
    """User and system seconds of this process, all threads, and of its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    from benchmarks.decode_catalog import CATALOG, number_in

    rival = sys.argv[1]
    decode = RIVALS[rival]
    importlib.import_module(MODULES.get(rival, "av"))
    videos = {video.name: video for video in CATALOG}
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        task = json.loads(line)
        path = Path(task["path"])
        data = path.read_bytes()
        _small_size(path, task["short_side"])
        start_s = cpu_s()
        try:
            pictures = decode(path, data, task["wanted"], task["short_side"])
            answer = {"cpu_ms": 1e3 * (cpu_s() - start_s)}
            answer["numbers"] = [number_in(np.asarray(rgb), videos[task["name"]]) for rgb in pictures]
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
