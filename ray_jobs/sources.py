"""Labelled material for training: FS2K's official folder, or a clean table of labelled videos, as one Arrow table."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from infra.errors import UserError
from infra.storage import Storage, is_s3, join
from models.tasks.base import get_task, task_names
from models.tasks.fs2k import from_official
from ray_jobs.catalog import ADULT_AGE, COLUMN_TYPES, read_table

Modality = Literal["photo", "sketch"]
# photo1/image0110 is drawn in sketch1/sketch0110. Extensions in the wild: .jpg, .JPG, .png; some .jpg hold a PNG.
_FS2K_SUFFIXES = (".jpg", ".JPG", ".jpeg", ".png", ".PNG")


def is_validation(group: str, one_in: int = 6) -> bool:
    """Whether a group is on the validation side: a stable hash, so a group never changes sides (5:1)."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) % one_in == 0


def fs2k_folder(root: Path, modality: Modality) -> pa.Table:
    """FS2K as published: ``anno_train.json`` (and ``anno_test.json`` where present) beside ``photo/`` and ``sketch/``.

    Args:
        root: The folder that holds the annotations.
        modality: Photos, or the sketches drawn from them.

    Returns:
        ``video_id``, ``uri``, ``etag``, ``group``, ``split`` and one column a label. A photo and its sketch share the
        group, so both stand on one side; the official test half is the split ``test``.

    Raises:
        UserError: An annotation file is missing or malformed, or an image is missing; names the file and the entry.
    """
    if not (root / "anno_train.json").is_file():
        raise UserError(
            f"{root}: no anno_train.json there; give FS2K's folder, with anno_train.json, photo/ and sketch/"
        )
    rows: list[dict[str, Any]] = []
    for half in ("train", "test"):
        file = root / f"anno_{half}.json"
        if not file.is_file():
            continue
        try:
            records = json.loads(file.read_text())
        except ValueError as error:
            raise UserError(f"{file} is not JSON: {error}") from error
        for number, record in enumerate(records):
            try:
                name, labels = record["image_name"], from_official(record)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{file}, entry {number}: {type(error).__name__}: {error}") from error
            split = "test" if half == "test" else ("val" if is_validation(name) else "train")
            image = _fs2k_image(root, name, modality)
            rows.append(
                {"video_id": f"{modality}/{name}", "uri": str(image.resolve()), "group": name, "split": split} | labels
            )
    table = pa.Table.from_pylist(rows)
    return table.append_column("etag", pa.nulls(len(rows), pa.string()))


def _fs2k_image(root: Path, name: str, modality: Modality) -> Path:
    stem = name if modality == "photo" else name.replace("photo", "sketch").replace("image", "sketch")
    for suffix in _FS2K_SUFFIXES:
        path = root / modality / f"{stem}{suffix}"
        if path.is_file():
            return path
    raise UserError(f"{root / modality / stem}: no such image (tried {', '.join(_FS2K_SUFFIXES)})")


def labelled_table(uri: str, storage: Storage, tasks: Sequence[str]) -> tuple[pa.Table, dict[str, int]]:
    """A clean table of labelled videos: ``video_id``, ``uri``, label columns, optional ``creator_id`` and ``age``.

    Args:
        uri: CSV, TSV, Parquet or JSONL; relative uris in it are relative to its folder.
        storage: Where the table lies.
        tasks: The tasks whose labels are kept; empty: every task whose label columns all stand in the table.

    Returns:
        The rows as ``fs2k_folder`` gives them, and the number of rows removed by reason (``minor``).

    Raises:
        UserError: A column is missing, an id is repeated, a label is not one, or no task's labels are there.
    """
    table = read_table(uri, storage, COLUMN_TYPES).to_table()
    for column in ("video_id", "uri"):
        if column not in table.column_names:
            raise UserError(f"{uri}: the label table has no column {column}; it has {', '.join(table.column_names)}")
    ids = table["video_id"].to_pylist()
    repeated = (
        {video_id for video_id in ids if video_id is None or ids.count(video_id) > 1}
        if len(set(ids)) < len(ids)
        else set()
    )
    if repeated or None in ids:
        raise UserError(f"{uri}: video_id is missing or repeated, for example {next(iter(repeated))!r}")
    tasks = tasks or [name for name in task_names() if set(get_task(name).label_columns) <= set(table.column_names)]
    if not tasks:
        raise UserError(
            f"{uri}: no task's label columns are all there; "
            + "; ".join(f"{name} needs {', '.join(get_task(name).label_columns)}" for name in task_names())
        )
    columns: dict[str, Any] = {"video_id": ids}
    base = uri.rsplit("/", 1)[0] if "/" in uri else "."
    base = base if is_s3(base) else storage.absolute(base)
    columns["uri"] = [u if "://" in u or u.startswith("/") else join(base, u) for u in table["uri"].to_pylist()]
    columns["etag"] = pa.nulls(len(ids), pa.string())
    creators = table["creator_id"].to_pylist() if "creator_id" in table.column_names else [None] * len(ids)
    columns["group"] = [creator or video_id for creator, video_id in zip(creators, ids, strict=True)]
    columns["split"] = ["val" if is_validation(group) else "train" for group in columns["group"]]
    for name in tasks:
        task = get_task(name)
        try:
            targets = task.encode_labels({column: table[column].to_pylist() for column in task.label_columns})
        except UserError as error:
            raise UserError(f"{uri}: {error}") from error
        for index, head in enumerate(task.heads):
            columns[head.name] = [head.classes[target] if target >= 0 else None for target in targets[:, index]]
    rows = pa.table(columns)
    ages = table["age"].to_pylist() if "age" in table.column_names else [None] * len(ids)
    adults = [age is None or age >= ADULT_AGE for age in ages]
    return rows.filter(pa.array(adults)), {"minor": adults.count(False)} if False in adults else {}
