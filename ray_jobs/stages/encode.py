"""Rows with crops to one row a crop, encoded and measured: the last stage of preparing a dataset."""

from collections.abc import Callable

import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image

from ray_jobs.crops.jpeg import decode_crop, encode_crop
from ray_jobs.splits import SplitBy, split_of
from ray_jobs.stages.extract import FACE_TYPE, unpack_crops

# What the stage adds to the columns of a face; null on the one row of a video without crops.
CROP_FIELDS = [
    pa.field("crop", pa.binary()),  # JPEG
    pa.field("face", pa.int32()),  # number within the video, largest first within a frame
    *FACE_TYPE,
    pa.field("perceptual_hash", pa.uint64()),  # pHash: 8 × 8 lowest frequencies of the DCT, above or below the median
    pa.field("channel_sum", pa.list_(pa.int64())),  # R, G, B, over the pixels that training decodes
    pa.field("channel_sum_of_squares", pa.list_(pa.int64())),
]


def encode_stage(crop_size: int, split_by: SplitBy) -> Callable[[pa.Table], pa.Table]:
    """The Ray Data function: one row a crop (``CROP_FIELDS``, the video's columns, and its ``split`` where null).

    A video without a crop stays one row with a null ``crop``, so that it can be counted with its reason.
    """

    def encode(batch: pa.Table) -> pa.Table:
        crops, faces = batch["crops"].to_pylist(), batch["faces"].to_pylist()
        videos = batch.select(["video_id", "creator_id", "split"]).to_pylist()
        batch = batch.drop_columns(["crops", "faces", "split"])
        indices: list[int] = []
        splits: list[str | None] = []
        rows: list[dict[str, object]] = []
        for index, data in enumerate(crops):
            pixels = unpack_crops(data, crop_size) if data else ()
            given = videos[index].pop("split")
            for face in range(len(pixels)):
                row = {"face": face} | faces[index][face] | _measured(pixels[face])
                rows.append(row)
                splits.append(given or split_of(split_by, **videos[index], frame_index=row["frame_index"]))
            if not len(pixels):
                rows.append({})
                splits.append(given)
            indices += [index] * max(1, len(pixels))
        table = batch.take(pa.array(indices, type=pa.int64()))
        table = table.append_column("split", pa.array(splits, type=pa.string()))
        for field in CROP_FIELDS:
            table = table.append_column(field, pa.array([row.get(field.name) for row in rows], type=field.type))
        return table

    return encode


def _measured(pixels: np.ndarray) -> dict[str, object]:
    data = encode_crop(pixels)
    decoded = decode_crop(data)
    by_channel = decoded.reshape(-1, 3).astype(np.int64)
    bits = imagehash.phash(Image.fromarray(decoded)).hash
    return {
        "crop": data,
        "perceptual_hash": int.from_bytes(np.packbits(bits).tobytes()),
        "channel_sum": by_channel.sum(axis=0).tolist(),
        "channel_sum_of_squares": (by_channel**2).sum(axis=0).tolist(),
    }
