"""A whole catalog of drawn videos with its labels: what the demo and the tests of the pipeline work on."""

import csv
import multiprocessing
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

from ray_jobs.drawing.attributes import FaceAttributes
from ray_jobs.drawing.video import draw_scenery_video, draw_video

_VIDEOS_PER_CREATOR = 3
_AGE_OF_MINOR = 12
_LABELS = ("score", "hair", "hair_color", "gender", "earring", "smile", "frontal_face", "style")


@dataclass(frozen=True, slots=True)
class DrawnCatalog:
    """Where a drawn catalog lies, and how many of what it lists."""

    catalog: Path
    labels: Path  # of a part of the creators
    truth: Path  # of all videos with a face
    num_face: int
    num_no_face: int
    num_broken: int
    num_minor: int
    num_labelled: int


def draw_catalog(
    folder: Path,
    num_videos: int,
    num_no_face: int,
    num_broken: int,
    seed: int,
    *,
    num_frames: int = 60,
    labelled_part: float = 0.75,
    num_processes: int = 1,
) -> DrawnCatalog:
    """Writes ``videos/*.mp4``, ``catalog.csv``, ``labels.csv`` and ``truth.csv``: the same for the same arguments.

    Creators have up to three videos, on which they keep gender, hair, beard and skin. Broken videos are, in turn:
    truncated, overwritten with zeros in places, a text, empty, sound only, and not there at all.

    Args:
        folder: where to; made if missing. Uris in the tables are relative to it.
        num_videos: videos with a face; the last one's creator is a minor, so a run leaves it out.
        num_no_face: videos of scenery.
        num_broken: videos that cannot be decoded as they should.
        seed: everything drawn by lot follows from it.
        num_frames: length of each video, frames at 25 a second.
        labelled_part: part of the creators whose videos stand in ``labels.csv``; the minor's never does.
        num_processes: processes that draw; their number changes no file.
    """
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    to_draw: list[Callable[[], object]] = []
    truth: list[dict[str, object]] = []
    labels: list[dict[str, object]] = []
    num_creators = -(-(num_videos - 1) // _VIDEOS_PER_CREATOR)
    num_labelled_creators = round(num_creators * labelled_part)
    people = [FaceAttributes.random(_rng(seed, "creator", number)) for number in range(num_creators + 1)]
    for number in range(num_videos):
        minor = number == num_videos - 1
        creator = num_creators if minor else number // _VIDEOS_PER_CREATOR
        rng = _rng(seed, "face", number)
        shown = people[creator].another_moment(rng)
        row = _row("face", number, creator, age=_AGE_OF_MINOR if minor else 18 + (7 * creator) % 45)
        to_draw.append(partial(draw_video, folder / str(row["uri"]), shown, rng, num_frames=num_frames))
        rows.append(row)
        truth.append(row | {name: _plain(getattr(shown, name)) for name in _LABELS})
        if creator < num_labelled_creators:
            labels.append(truth[-1])
    for number in range(num_no_face):
        row = _row("scenery", number, num_creators + 1 + number)
        rng = _rng(seed, "scenery", number)
        to_draw.append(partial(draw_scenery_video, folder / str(row["uri"]), rng, num_frames=num_frames))
        rows.append(row)
    for number in range(num_broken):
        kind, write = _BROKEN[number % len(_BROKEN)]
        row = _row(kind, number, num_creators + 1 + num_no_face + number)
        rng = _rng(seed, "broken", number)
        path = folder / str(row["uri"])
        path.unlink(missing_ok=True)
        to_draw.append(partial(write, path, rng))
        rows.append(row)
    _run_all(to_draw, num_processes)
    order = np.random.default_rng(seed).permutation(len(rows))
    _write_csv(folder / "catalog.csv", ("video_id", "uri", "creator_id", "age"), [rows[i] for i in order])
    _write_csv(folder / "labels.csv", ("video_id", "uri", "creator_id", *_LABELS), labels)
    _write_csv(folder / "truth.csv", ("video_id", "uri", "creator_id", "age", *_LABELS), truth)
    return DrawnCatalog(
        catalog=folder / "catalog.csv",
        labels=folder / "labels.csv",
        truth=folder / "truth.csv",
        num_face=num_videos,
        num_no_face=num_no_face,
        num_broken=num_broken,
        num_minor=1,
        num_labelled=len(labels),
    )


def _run_all(calls: list[Callable[[], object]], num_processes: int) -> None:
    if num_processes == 1:
        for call in calls:
            call()
        return
    # Spawned, not forked: the caller may have threads, Ray's or MLflow's, whose locks a fork would copy.
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for drawn in [pool.submit(call) for call in calls]:
            drawn.result()


def _rng(seed: int, kind: str, number: int) -> np.random.Generator:
    """A stream of its own for each video, so that one more video changes no other."""
    return np.random.default_rng([seed, *kind.encode(), number])


def _row(kind: str, number: int, creator: int, age: int | None = None) -> dict[str, object]:
    video_id = f"{kind}-{number:04d}"
    return {
        "video_id": video_id,
        "uri": f"videos/{video_id}.mp4",
        "creator_id": f"creator-{creator:04d}",
        "age": "" if age is None else age,
    }


def _plain(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def _write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _drawn(path: Path, rng: np.random.Generator) -> bytes:
    draw_video(path, FaceAttributes.random(rng), rng, num_frames=60)
    return path.read_bytes()


def _truncated(path: Path, rng: np.random.Generator) -> None:
    whole = _drawn(path, rng)
    path.write_bytes(whole[: len(whole) * 2 // 5])


def _zeroed(path: Path, rng: np.random.Generator) -> None:
    """The index at the file's start is kept; stretches of the pictures are lost, as on a bad disk."""
    damaged = bytearray(_drawn(path, rng))
    for part in (0.12, 0.35, 0.6):
        start = int(len(damaged) * part)
        length = len(damaged) // 8
        damaged[start : start + length] = bytes(length)
    path.write_bytes(damaged)


def _text(path: Path, rng: np.random.Generator) -> None:
    path.write_text("This is not a video, whatever its name says.\n" * 20)


def _empty(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(b"")


def _sound_only(path: Path, rng: np.random.Generator) -> None:
    rate, length = 16_000, 1024
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate)
        for start in range(0, rate, length):
            wave = np.sin(2 * np.pi * 440 * np.arange(start, start + length) / rate).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave[None, :], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _missing(path: Path, rng: np.random.Generator) -> None:
    """Listed in the catalog, and not there."""


_BROKEN: tuple[tuple[str, Callable[[Path, np.random.Generator], None]], ...] = (
    ("truncated", _truncated),
    ("zeroed", _zeroed),
    ("text", _text),
    ("empty", _empty),
    ("sound", _sound_only),
    ("missing", _missing),
)
