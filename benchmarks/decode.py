"""Decoding side by side: facereel, torchcodec, decord, OpenCV and the ffmpeg command over a mixed catalog.

    python -m benchmarks.decode            the table and the verdicts (minutes; the catalog is made once and kept)
    python -m benchmarks.decode --quick    four small videos
    python -m benchmarks.decode --memory   memory: 4 hours against 1 minute, and 10,000 opens

Measured is CPU time (user and system, all threads) in one process for each rival, from bytes in memory to pictures of
short side 256, the best of several interleaved rounds: on busy machines trust ratios. Each picture carries its frame
number, so that wrong frames are counted. Needs requirements-bench.lock.
"""

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import av
from rich.console import Console
from rich.table import Table

from benchmarks import decode_catalog
from benchmarks.decode_catalog import CATALOG, Video, make
from benchmarks.decode_memory import print_memory
from benchmarks.decode_rivals import MODULES, RIVALS, cpu_s, run_ffmpeg
from models.video import selective
from models.video.decode import decode_frames
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy

ROOT = Path(__file__).resolve().parents[1]
SHORT_SIDE = 256
WANTED = FramePolicy().wanted()
SAME = "ffmpeg, same pictures"
# Wide enough for the table where there is no terminal to ask.
console = Console(width=None if sys.stdout.isatty() else 180)


class Rival:
    """A rival's process; started again when it dies, since some die of some videos."""

    def __init__(self, name: str, env: dict[str, str]) -> None:
        self.name = name
        self._env = env
        self._process: subprocess.Popen[str] | None = None

    def decode(self, video: Video, path: Path) -> dict[str, object]:
        if self._process is None:
            command = [sys.executable, "-m", "benchmarks.decode_rivals", self.name]
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        task = {"name": video.name, "path": str(path), "wanted": WANTED, "short_side": SHORT_SIDE}
        try:
            print(json.dumps(task), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        code = self._process.wait()
        self._process = None
        return {"error": f"died with {code}"}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def rivals_env(folder: Path) -> dict[str, str]:
    """Environment of the rivals: torchcodec finds PyAV's FFmpeg libraries, so that both run the same FFmpeg."""
    libraries = Path(av.__file__).resolve().parent.parent / "av.libs"
    links = folder / "ffmpeg-libraries"
    links.mkdir(exist_ok=True)
    for library in libraries.glob("lib*.so.*"):
        if match := re.match(r"(lib(?:av|sw)[a-z]+)-[0-9a-f]+(\.so\.\d+)", library.name):
            link = links / "".join(match.groups())
            link.unlink(missing_ok=True)
            link.symlink_to(library)
    return os.environ | {"LD_LIBRARY_PATH": f"{links}:{libraries}", "OMP_NUM_THREADS": "1", "SVT_LOG": "0"}


def write_fed_packets(video_path: Path, path: Path) -> int:
    """Write the packets that facereel feeds to the decoder, and only those, as a video; their number."""
    fed = []
    decode = selective._decode

    def record(video, packet, is_leading):
        if packet is not None:
            fed.append((bytes(packet), packet.pts, packet.dts, packet.is_keyframe))
        return decode(video, packet, is_leading)

    selective._decode = record
    try:
        policy = FramePolicy(indices=WANTED, short_side=SHORT_SIDE)
        decode_frames(io.BytesIO(video_path.read_bytes()), policy, DecodeLimits(), name=str(video_path))
    finally:
        selective._decode = decode
    with av.open(str(video_path)) as source, av.open(str(path), "w", format="nut") as sink:
        template = source.streams.video[0]
        stream = sink.add_stream_from_template(template, opaque=True)
        for data, pts, dts, is_keyframe in fed:
            packet = av.Packet(data)
            packet.pts, packet.dts, packet.time_base = pts, dts, template.time_base
            packet.is_keyframe, packet.stream = is_keyframe, stream
            sink.mux(packet)
    return len(fed)


def ffmpeg_ms(path: Path) -> float:
    """CPU milliseconds of the ffmpeg command that decodes a file and scales as many pictures as are wanted."""
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        size = (SHORT_SIDE, max(1, round(codec.width * SHORT_SIDE / codec.height)))
    start_s = cpu_s()
    run_ffmpeg(path, f"select='lt(n,{len(WANTED)})',", 10**6, size)
    return 1e3 * (cpu_s() - start_s)


def ffmpeg_start_ms(folder: Path) -> float:
    """CPU milliseconds that the ffmpeg command takes to do next to nothing."""
    path = folder / "nothing.nut"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode(None))
    start_s = cpu_s()
    run_ffmpeg(path, "", 1, (16, 16))
    return 1e3 * (cpu_s() - start_s)


def measure(videos: dict[Path, Video], folder: Path, num_rounds: int) -> dict[str, dict[str, dict[str, object]]]:
    """Best CPU milliseconds, wrong frames and errors: video name -> rival -> figures."""
    rivals = [Rival(name, rivals_env(folder)) for name in RIVALS]
    results: dict[str, dict[str, dict[str, object]]] = {video.name: {} for video in videos.values()}
    same = {path: folder / f"same-{path.stem}.nut" for path in videos}
    for path, copy in same.items():
        results[videos[path].name]["fed"] = {"num": write_fed_packets(path, copy)}
    start_ms = min(ffmpeg_start_ms(folder) for _ in range(5))
    console.print(f"ffmpeg needs {start_ms:.0f} ms to start, which '{SAME}' below leaves out")
    for number in range(num_rounds):
        for path, video in videos.items():
            with console.status(f"round {number + 1} of {num_rounds}: {video.name}"):
                for rival in rivals:
                    _keep_best(results[video.name], rival.name, rival.decode(video, path))
                _keep_best(results[video.name], SAME, {"cpu_ms": ffmpeg_ms(same[path]) - start_ms})
    for rival in rivals:
        rival.close()
    return results


def _keep_best(figures: dict[str, dict[str, object]], name: str, answer: dict[str, object]) -> None:
    if "error" in answer:
        figures[name] = answer
        return
    numbers = answer.get("numbers")
    if numbers is not None:
        answer["wrong"] = len(WANTED) - sum(a == b for a, b in zip(numbers, WANTED, strict=False))
    best = figures.setdefault(name, answer)
    if "cpu_ms" in best and best["cpu_ms"] > answer["cpu_ms"]:
        figures[name] = answer


def print_table(results: dict[str, dict[str, dict[str, object]]]) -> None:
    names = [*RIVALS, SAME]
    table = Table("video", "fed", *names, title=f"CPU ms for frames {WANTED[0]}, {WANTED[1]}, … {WANTED[-1]}")
    for column in table.columns[1:]:
        column.justify = "right"
    for video, figures in results.items():
        table.add_row(video, str(figures["fed"]["num"]), *(_cell(name, figures[name]) for name in names))
    table.add_section()
    table.add_row("sum", "", *(f"{sum(f[name].get('cpu_ms', 0) for f in results.values()):.0f}" for name in names))
    console.print(table)


def _cell(name: str, figures: dict[str, object]) -> str:
    if "error" in figures:
        return str(figures["error"])[:24]
    wrong = figures.get("wrong", 0) if name != "keyframes" else 0
    return f"{figures['cpu_ms']:.0f}" + (f" ({wrong} wrong)" if wrong else "")


def print_verdicts(results: dict[str, dict[str, dict[str, object]]]) -> None:
    def ratio(name: str, *, by_file: bool = False) -> list[float]:
        pairs = [(f[name]["cpu_ms"], f["facereel"]["cpu_ms"]) for f in results.values() if "cpu_ms" in f[name]]
        if by_file:
            return [theirs / ours for theirs, ours in pairs]
        return [sum(theirs for theirs, _ in pairs) / sum(ours for _, ours in pairs)] if pairs else []

    wrong = {name: sum(f[name].get("wrong", 0) for f in results.values()) for name in RIVALS if name != "keyframes"}
    died = {name: sum("error" in f[name] for f in results.values()) for name in MODULES}
    console.print(f"wrong frames of {len(WANTED) * len(results)}: {wrong}; videos that ended in an error: {died}")
    for text, name, least in (
        ("torchcodec, exact, shrinking inside", "torchcodec", 1.7),
        ("torchcodec, exact, shrinking afterwards", "torchcodec + resize", 1.7),
        ("decord", "decord", 2.0),
        ("decoding until the last wanted frame", "until last", 3.0),
    ):
        for value in ratio(name):
            console.print(f"{_verdict(value >= least)} {value:.2f}× less CPU than {text} (wanted: {least}×)")
    for value in ratio("torchcodec", by_file=True) and [min(ratio("torchcodec", by_file=True))]:
        console.print(
            f"{_verdict(value >= 1 / 1.05)} on the worst video {1 / value:.2f}× of torchcodec (wanted: ≤ 1.05)"
        )
    for value in ratio(SAME):
        worst = 1 / min(ratio(SAME, by_file=True))
        console.print(
            f"{_verdict(1 / value <= 1.15)} {1 / value:.2f}× of ffmpeg decoding the same pictures, "
            f"{worst:.2f}× on the worst video (wanted: ≤ 1.15)"
        )


def _verdict(holds: bool) -> str:
    return "[green]holds[/]" if holds else "[red]misses[/]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four small videos, two rounds")
    parser.add_argument("--memory", action="store_true", help="memory instead of time")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds, of which the best counts")
    recipe = hashlib.sha256(Path(decode_catalog.__file__).read_bytes()).hexdigest()[:8]
    default = Path(tempfile.gettempdir()) / f"facereel-decode-catalog-{recipe}"
    parser.add_argument("--folder", type=Path, default=default, help="where the catalog is kept")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.memory:
        print_memory(options.folder, console)
        return
    videos = {}
    for video in CATALOG:
        if not options.quick or video.is_quick:
            path = options.folder / f"{re.sub(r'[^a-z0-9]+', '-', video.name.lower())}.{video.suffix}"
            with console.status(f"making {video.name}"):
                make(video, path)
            videos[path] = video
    results = measure(videos, options.folder, 2 if options.quick else options.rounds)
    print_table(results)
    print_verdicts(results)


if __name__ == "__main__":
    main()
