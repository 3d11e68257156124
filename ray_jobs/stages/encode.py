"""Rows with crops to one row a crop, encoded: the last stage of preparing a dataset."""

from collections.abc import Callable

import pyarrow as pa

from ray_jobs.crops_dataset import encode_crop
from ray_jobs.stages.extract import FACE_TYPE, unpack_crops

_FACE_FIELDS = list(FACE_TYPE)


def encode_stage(crop_size: int) -> Callable[[pa.Table], pa.Table]:
    """The Ray Data function: one row a crop (``crop``, ``face``, the face's fields, the video's columns).

    A video without a crop stays one row with a null ``crop``, so that it can be counted with its reason.
    """

    def encode(batch: pa.Table) -> pa.Table:
        crops = batch["crops"].to_pylist()
        faces = batch["faces"].to_pylist()
        batch = batch.drop_columns(["crops", "faces"])
        indices: list[int] = []
        columns: dict[str, list[object]] = {"crop": [], "face": [], **{field.name: [] for field in _FACE_FIELDS}}
        for row, data in enumerate(crops):
            pixels = unpack_crops(data, crop_size) if data else ()
            for face in range(max(1, len(pixels))):
                indices.append(row)
                columns["crop"].append(encode_crop(pixels[face]) if len(pixels) else None)
                columns["face"].append(face if len(pixels) else None)
                for field in _FACE_FIELDS:
                    columns[field.name].append(faces[row][face][field.name] if len(pixels) else None)
        rows = batch.take(pa.array(indices, type=pa.int64()))
        types = {"crop": pa.binary(), "face": pa.int32()} | {field.name: field.type for field in _FACE_FIELDS}
        for name, values in columns.items():
            rows = rows.append_column(name, pa.array(values, type=types[name]))
        return rows

    return encode
