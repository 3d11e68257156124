"""Sample faces of a report: which videos, what was predicted for them, and their picture, decoded again."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from models.tasks.base import Head, get_task
from ray_jobs.reports.database import ReportDatabase
from ray_jobs.reports.facts import attribute_heads, numeric_heads, value_words

PICTURE_PX = 176
JPEG_QUALITY = 82
UNSURE_BELOW = 0.6


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric prediction, with its interval where the scorer has one, and the ends of its scale."""

    name: str
    value: float
    low: float | None
    high: float | None
    lowest: float
    highest: float

    def place(self, value: float) -> float:
        """Where a value stands on the scale, 0 to 1."""
        return min(max((value - self.lowest) / (self.highest - self.lowest), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """An attribute in words; ``unsure`` below a confidence of 0.6."""

    name: str
    words: str
    unsure: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """A scored video of the grid, and what the scorers say of it."""

    video_id: str
    uri: str
    etag: str | None
    numbers: tuple[Number, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A face as a ``data:`` address, or why there is none."""

    address: str | None
    problem: str | None


class ExtractsFaces(Protocol):
    """What `ray_jobs.stages.extract.Extractor` does."""

    def extract(self, uri: str, etag: str | None) -> dict[str, Any]:
        """The values of ``EXTRACT_FIELDS`` for one video."""


def choose(db: ReportDatabase, num: int) -> list[Sample]:
    """Scored videos, spread evenly over the range of the first numeric column and sorted by it.

    The range is cut into ``num`` equal parts; each gives one video, and where parts are empty the others give
    more. Within a part the order is by a hash of the id, so equal tables give equal samples.
    """
    tasks = [scorer.task for scorer in db.scorers if scorer.num_videos]
    if not tasks or num < 1:
        return []
    numeric = [(task, f'"{head.name}"') for task in tasks for head in numeric_heads(get_task(task))]
    task, column = numeric[0] if numeric else (tasks[0], "0")
    chosen = db.rows(
        f"""
        WITH scored AS (SELECT video_id, uri, etag, {column} AS x FROM current_{task} WHERE status = 'scored'),
             bounds AS (SELECT min(x) AS low, greatest(max(x) - min(x), 1e-6) AS length FROM scored),
             parts AS (
                SELECT video_id, uri, etag, x, least(floor((x - low) / length * $1), $1 - 1) AS part
                FROM scored, bounds
             ), picked AS (
                SELECT * FROM parts
                ORDER BY row_number() OVER (PARTITION BY part ORDER BY md5(video_id)), part LIMIT $1
             )
        SELECT video_id, uri, etag FROM picked ORDER BY x, video_id
        """,
        num,
    )
    video_ids = [row[0] for row in chosen]
    numbers: dict[str, list[Number]] = {video_id: [] for video_id in video_ids}
    answers: dict[str, list[Answer]] = {video_id: [] for video_id in video_ids}
    for name in tasks:
        for head in numeric_heads(get_task(name)):
            for video_id, value, low, high in _values(db, name, video_ids, head, ("", "_low", "_high")):
                lowest, highest = float(min(head.classes)), float(max(head.classes))
                numbers[video_id].append(Number(head.name, value, low, high, lowest, highest))
        for head in attribute_heads(get_task(name)):
            for video_id, value, p in _values(db, name, video_ids, head, ("", "_p")):
                answers[video_id].append(_answer(head, value, p))
    return [
        Sample(video_id, uri, etag, tuple(numbers[video_id]), tuple(answers[video_id]))
        for video_id, uri, etag in chosen
    ]


def _values(
    db: ReportDatabase, task: str, video_ids: Sequence[str], head: Head, suffixes: Sequence[str]
) -> list[tuple[Any, ...]]:
    """(video id, value, …) of the videos that have a value; a column that the table lacks is null."""
    present = db.columns(task)
    columns = [f'"{name}"' if (name := head.name + suffix) in present else "NULL" for suffix in suffixes]
    return db.rows(
        f"SELECT video_id, {', '.join(columns)} FROM current_{task} "
        f'WHERE "{head.name}" IS NOT NULL AND video_id IN (SELECT unnest(?))',
        list(video_ids),
    )


def _answer(head: Head, value: Any, p: float | None) -> Answer:
    """An answer; the p of a yes/no head is the probability of yes."""
    confidence = 1.0 if p is None else max(p, 1 - p) if head.is_binary else p
    return Answer(head.name, value_words(value), confidence < UNSURE_BELOW)


def take_picture(sample: Sample, extractor: ExtractsFaces, crop_size: int) -> Picture:
    """The sharpest face of the video as it is stored now; a video that cannot be read any more is said, not raised."""
    row = extractor.extract(sample.uri, sample.etag)
    if row["reason"] is not None:
        return Picture(None, f"cannot be shown: {row['reason']}")
    if not row["num_faces"]:
        return Picture(None, "cannot be shown: no face found this time")
    crops = np.frombuffer(row["crops"], dtype=np.uint8).reshape(-1, crop_size, crop_size, 3)
    sharpest = int(np.argmax([face["sharpness"] for face in row["faces"]]))
    return Picture(jpeg_address(crops[sharpest]), None)


def jpeg_address(crop: np.ndarray) -> str:
    """A crop uint8[S, S, 3] as a ``data:`` address of a small JPEG."""
    image = Image.fromarray(crop)
    image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
