"""Review a dataset's labels: features of its crops, cross-validation, a page and a table for verdicts."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
from rich.table import Table
from sklearn.decomposition import PCA

from infra.errors import UserError
from infra.settings import Settings
from infra.storage import Storage, join
from models.tasks.base import MISSING, Head, get_task
from ray_jobs.cluster import connect
from ray_jobs.console import console
from ray_jobs.crops.dataset import DatasetManifest, part_uris, read_manifest
from ray_jobs.crops.mapping import map_crops, scanned
from ray_jobs.labels.noise import Doubts, find_doubts
from ray_jobs.labels.verdicts import COLUMNS
from ray_jobs.reports.review import Doubtful, LabelReview, review_page
from ray_jobs.sizing import check_tasks

DIMENSIONS = 150  # principal components that are kept of a crop's features
PCA_ROWS = 3000
BATCH = 64
PAGE, TABLE = "review.html", "review.csv"
_SPLITS = ("train", "val")
_META = ("video_id", "creator_id", "source", "frame_index", "face")


@dataclass(frozen=True, slots=True)
class ReviewConfig:
    """One review."""

    dataset: str
    out: str
    labels: tuple[str, ...] = ()
    limit: int = 100
    crops_per_video: int = 3


def run_review(config: ReviewConfig, settings: Settings) -> list[LabelReview]:
    """List the doubtful labels of a dataset's training and validation splits in ``out``.

    Raises:
        UserError: There is no dataset, it has no such label, or the cluster has no CPU.
    """
    storage = Storage(settings.storage)
    manifest = read_manifest(config.dataset, storage)
    heads = _heads(config, manifest)
    parts = [uri for split in _SPLITS for uri in part_uris(config.dataset, manifest, split)]
    rows = choose_crops(parts, storage, [head.name for head in heads], config.crops_per_video)
    if refusal := check_tasks(connect(settings.cluster), use_gpu=False):
        raise UserError(refusal)
    features = crop_features(parts, storage, rows)
    reviews = [_reviewed(head, rows, features, parts, storage, config.limit) for head in heads]
    storage.put(join(config.out, PAGE), review_page(manifest, config.dataset, reviews).encode())
    storage.put(join(config.out, TABLE), _verdict_table(reviews))
    _print(reviews, config)
    return reviews


def _heads(config: ReviewConfig, manifest: DatasetManifest) -> list[Head]:
    heads = {head.name: head for task in manifest.tasks for head in get_task(task).heads}
    if unknown := [name for name in config.labels if name not in heads]:
        raise UserError(f"--label {unknown[0]}: the dataset has {', '.join(heads)}")
    return [head for name, head in heads.items() if not config.labels or name in config.labels]


def choose_crops(parts: Sequence[str], storage: Storage, labels: Sequence[str], per_video: int) -> pa.Table:
    """The crops to look at, without their pictures: a few of each video, spread over it; ``row`` is their position."""
    found = scanned(parts, storage).to_table(columns=[*_META, *labels])
    found = found.append_column("row", pa.array(range(found.num_rows), pa.int64()))
    with duckdb.connect() as connection:
        connection.register("crops", found)
        return connection.sql(
            """
            SELECT * EXCLUDE (place, number) FROM (
                SELECT *, row_number() OVER (PARTITION BY video_id ORDER BY frame_index, face) - 1 AS place,
                    count(*) OVER (PARTITION BY video_id) AS number FROM crops)
            WHERE number <= $most OR floor(place * $most / number) <> floor((place - 1) * $most / number)
            ORDER BY row
            """,
            params={"most": per_video},
        ).to_arrow_table()


def crop_features(parts: Sequence[str], storage: Storage, rows: pa.Table) -> npt.NDArray[np.float32]:
    """float32[n, 150] of the chosen crops: principal components, fitted on a sample of them."""
    wanted = rows["row"].to_numpy()
    sample = np.sort(np.random.default_rng(0).permutation(wanted)[:PCA_ROWS])
    fitted = PCA(min(DIMENSIONS, len(sample)), random_state=0).fit(
        np.concatenate(map_crops(parts, storage, sample, _Features(None)))
    )
    return np.concatenate(map_crops(parts, storage, wanted, _Features(fitted), title="review"))


class _Features:
    """Features of crops, reduced where there is something to reduce them by."""

    def __init__(self, reduced: PCA | None) -> None:
        self._reduced = reduced

    def __call__(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        from models.faces.features import FaceFeatures

        extract = FaceFeatures()
        found = np.concatenate([extract(crops[start : start + BATCH]) for start in range(0, len(crops), BATCH)])
        return found if self._reduced is None else self._reduced.transform(found).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Labelled:
    """The videos that have a label; ``known`` and ``items`` are by crop."""

    known: npt.NDArray[np.int64]  # numbers of the crops among all
    items: npt.NDArray[np.int64]  # number of each such crop's video
    videos: list[str]
    rows: pa.Table  # one crop of each video
    targets: npt.NDArray[np.int64]
    creators: list[str]  # a video without one is its own


def labelled_videos(head: Head, rows: pa.Table) -> Labelled:
    """The chosen crops by the videos that have this label."""
    known = np.flatnonzero(head.encode(rows[head.name].to_pylist()) != MISSING)
    videos, first, items = np.unique(
        np.asarray(rows["video_id"].to_pylist())[known], return_index=True, return_inverse=True
    )
    of_video = rows.take(known[first])
    pairs = zip(of_video["creator_id"].to_pylist(), videos.tolist(), strict=True)
    creators = [creator or video for creator, video in pairs]
    targets = head.encode(of_video[head.name].to_pylist())
    return Labelled(known, items, videos.tolist(), of_video, targets, creators)


def _reviewed(
    head: Head,
    rows: pa.Table,
    features: npt.NDArray[np.float32],
    parts: Sequence[str],
    storage: Storage,
    limit: int,
) -> LabelReview:
    """Cross-validate one label over the videos that have it."""
    labelled = labelled_videos(head, rows)
    videos, of_video, targets = labelled.videos, labelled.rows, labelled.targets
    try:
        doubts = find_doubts(features[labelled.known], labelled.items, targets, labelled.creators, head.classes)
    except ValueError as error:
        return LabelReview(head.name, len(videos), 0, None, None, [], str(error))
    order = [int(i) for i in np.argsort(-doubts.doubt, kind="stable") if doubts.is_doubted[i]][:limit]
    pictures = _pictures(parts, storage, rows, [videos[i] for i in order])
    doubtful = [
        Doubtful(
            video_id=videos[i],
            source=of_video["source"][i].as_py(),
            given=str(head.classes[targets[i]]).lower(),
            suggested=str(head.classes[doubts.predicted[i]]).lower(),
            doubt=float(doubts.doubt[i]),
            pictures=pictures[videos[i]],
        )
        for i in order
    ]
    return _summary(head, doubts, doubtful)


def _summary(head: Head, doubts: Doubts, doubtful: list[Doubtful]) -> LabelReview:
    num_doubted = int(doubts.is_doubted.sum())
    return LabelReview(
        head.name, len(doubts.doubt), num_doubted, doubts.agreement, doubts.trivial_agreement, doubtful, ""
    )


def _pictures(
    parts: Sequence[str], storage: Storage, rows: pa.Table, video_ids: Sequence[str]
) -> Mapping[str, list[bytes]]:
    """The chosen crops of these videos."""
    found: dict[str, list[bytes]] = {video_id: [] for video_id in video_ids}
    if not found:
        return found
    chosen = rows.filter(pads.field("video_id").isin(list(found)))
    crops = scanned(parts, storage).take(chosen["row"], columns=["crop"])["crop"].to_pylist()
    for video_id, crop in zip(chosen["video_id"].to_pylist(), crops, strict=True):
        found[video_id].append(crop)
    return found


def _verdict_table(reviews: Sequence[LabelReview]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for review in reviews:
        for item in review.doubtful:
            fields = (item.video_id, item.source, item.given, item.suggested, f"{item.doubt:.3f}", "")
            writer.writerow([review.label, *fields])
    return text.getvalue().encode()


def _print(reviews: Sequence[LabelReview], config: ReviewConfig) -> None:
    table = Table(title=f"labels of {config.dataset} against models that never saw their people")
    for name in ("label", "videos", "likely wrong", "listed", "agreement", "best constant"):
        table.add_column(name, justify="left" if name == "label" else "right")
    for review in reviews:
        shares = ["" if share is None else f"{share:.0%}" for share in (review.agreement, review.trivial_agreement)]
        numbers = (f"{number:,}" for number in (review.num_items, review.num_doubted, len(review.doubtful)))
        table.add_row(review.label, *numbers, *shares)
    console.print(table)
    for review in reviews:
        if review.problem:
            console.print(f"{review.label}: not reviewed: {review.problem}")
    console.print(
        f"wrote {join(config.out, PAGE)} and {join(config.out, TABLE)}; put right or wrong into its column verdict "
        "(or click on the page), then: prepare --exclude review.csv",
        highlight=False,
    )
