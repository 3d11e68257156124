"""The card of a crops dataset: one HTML file with what went in, what was left out and why, and what is there."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.dataset as pads

from infra.storage import Storage
from models.tasks.base import Head, get_task
from ray_jobs.crops.dataset import DatasetManifest, part_uris
from ray_jobs.reports import plots
from ray_jobs.reports.facts import Bin
from ray_jobs.reports.page import crop_address, environment
from ray_jobs.training.balance import Balance

PICTURE_PX = 96
PICTURES_OF_CLASS = 6
PICTURES_OF_SCORE = 1  # of each of forty
MIN_CLASSES_TO_PLOT = 10
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Label:
    """One label column: its classes in each split, as bars where they are a scale, and faces of each class."""

    name: str
    counts: list[tuple[str, list[int]]]  # class, rows before cleaning (of a label table), then crops of each split
    plots: list[plots.Plot]
    faces: list[tuple[str, list[str]]]  # class, addresses of pictures


def dataset_card(root: str, manifest: DatasetManifest, storage: Storage, balance: Balance | None = None) -> str:
    """The card as HTML.

    Args:
        root: The dataset's folder.
        manifest: Its manifest.
        storage: Where it lies: sample faces are read from the training split.
        balance: Of the training run that logs the card: what an epoch holds of each class.
    """
    heads = list({head.name: head for name in manifest.tasks for head in get_task(name).heads}.values())
    splits = [(name, manifest.splits[name]) for name in SPLITS if name in manifest.splits]
    return (
        environment()
        .get_template("dataset.html.j2")
        .render(
            manifest=manifest,
            splits=splits,
            labels=[_label(head, root, manifest, storage, balance) for head in heads],
            balance=balance,
        )
    )


def _label(head: Head, root: str, manifest: DatasetManifest, storage: Storage, balance: Balance | None) -> Label:
    before = [manifest.classes_before.get(head.name, {})] if manifest.classes_before else []
    columns = before + [manifest.splits[name].classes[head.name] for name in SPLITS if name in manifest.splits]
    names = [str(value).lower() for value in head.classes]
    is_scale = len(names) >= MIN_CLASSES_TO_PLOT
    bars = []
    if is_scale:
        if before:
            bars.append(_bars(head, before[0], "Rows of the label table, before any was removed", "rows"))
        bars.append(_bars(head, manifest.splits["train"].classes[head.name], "Crops of the training split", "crops"))
    if balance is not None and balance.label == head.name:
        balanced = dict.fromkeys(balance.class_counts, balance.per_class)
        columns.append(balanced)
        if is_scale:
            bars.append(_bars(head, balanced, "Crops of an epoch, balanced by this training run", "crops"))
    return Label(
        head.name,
        [(name, [column.get(name, 0) for column in columns]) for name in names if any(name in c for c in columns)],
        bars,
        _faces(head, root, manifest, storage, PICTURES_OF_SCORE if is_scale else PICTURES_OF_CLASS),
    )


def _bars(head: Head, counts: Mapping[str, int], title: str, noun: str) -> plots.Plot:
    values = [int(value) for value in head.classes]
    bins = [Bin(value - 0.5, 1, counts.get(str(value), 0)) for value in values]
    alt = f"{title}: {sum(counts.values()):,} {noun} over {len(counts)} of {len(values)} classes"
    return plots.count_bars(bins, title=title, x_label=head.name, alt=alt, noun=noun.removesuffix("s"))


def _faces(
    head: Head, root: str, manifest: DatasetManifest, storage: Storage, of_class: int
) -> list[tuple[str, list[str]]]:
    """Pictures of each class: those of the lowest ranks, so that the same dataset shows the same faces."""
    filesystem, _ = storage.arrow_filesystem(root)
    paths = [storage.arrow_filesystem(uri)[1] for uri in part_uris(root, manifest, "train")]
    rank = pads.field(f"rank_{head.name}")
    table = pads.dataset(paths, filesystem=filesystem).to_table(columns=["crop", head.name], filter=rank < of_class)
    by_class: dict[object, list[str]] = {}
    for row in table.to_pylist():
        by_class.setdefault(row[head.name], []).append(crop_address(row["crop"], PICTURE_PX))
    return [(str(value).lower(), by_class[value]) for value in head.classes if value in by_class]
