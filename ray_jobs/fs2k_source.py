"""Labelled material for training: FS2K's official folder, with its quirks, as an Arrow table."""

import json
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from infra.errors import UserError
from models.tasks.fs2k import from_official
from ray_jobs.splits import is_validation

Modality = Literal["photo", "sketch", "both"]
# photo1/image0110 is drawn in sketch1/sketch0110. Extensions in the wild: .jpg, .JPG, .png; some .jpg hold a PNG.
_FS2K_SUFFIXES = (".jpg", ".JPG", ".jpeg", ".png", ".PNG")


def fs2k_folder(root: Path, modality: Modality) -> pa.Table:
    """FS2K as published: ``anno_train.json`` (and ``anno_test.json`` where present) beside ``photo/`` and ``sketch/``.

    Args:
        root: The folder that holds the annotations.
        modality: Photos, the sketches drawn from them, or both.

    Returns:
        ``video_id``, ``uri``, ``etag``, ``creator_id``, ``age``, ``remarks`` (null), ``source``, ``split`` and one
        column a label. A photo and its sketch share the creator, the name of the photo, so both stand on one side;
        the official test half is the split ``test``.

    Raises:
        UserError: An annotation file is missing or malformed, or images are missing; names each of them.
    """
    if not (root / "anno_train.json").is_file():
        raise UserError(
            f"{root}: no anno_train.json there; give FS2K's folder, with anno_train.json, photo/ and sketch/"
        )
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
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
            for side in ("photo", "sketch") if modality == "both" else (modality,):
                image = _fs2k_image(root, name, side)
                if image is None:
                    missing.append(f"{side} of {name} ({file.name}, entry {number})")
                    continue
                row = {"video_id": f"{side}/{name}", "uri": str(image.resolve()), "creator_id": name, "split": split}
                rows.append(row | {"source": f"{file.name}:{number}"} | labels)
    if missing:
        raise UserError(
            f"{root}: {len(missing)} images are missing (tried {', '.join(_FS2K_SUFFIXES)}): {'; '.join(missing)}"
        )
    table = pa.Table.from_pylist(rows)
    types = {"etag": pa.string(), "age": pa.float32(), "remarks": pa.list_(pa.string())}
    for column, kind in types.items():
        table = table.append_column(column, pa.nulls(len(rows), kind))
    return table


def _fs2k_image(root: Path, name: str, side: str) -> Path | None:
    stem = name if side == "photo" else name.replace("photo", "sketch").replace("image", "sketch")
    for suffix in _FS2K_SUFFIXES:
        path = root / side / f"{stem}{suffix}"
        if path.is_file():
            return path
    return None
