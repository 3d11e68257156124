"""The training split as a Ray Data dataset; imports no torch, since four of Ray's own processes unpickle it."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import ray.data


def crops_dataset(parts: list[str], filesystem: Any, task: str, label_columns: tuple[str, ...]) -> ray.data.Dataset:
    """A split as a dataset of ``crop`` (uint8[S, S, 3]) and ``targets`` (int64[H]); decoded on the cluster's CPUs."""
    ds = ray.data.read_parquet(parts, filesystem=filesystem, columns=["crop", *label_columns])
    # No resources of its own, so that Ray fuses it with reading: one stage, and no encoded blocks in between.
    return ds.map_batches(partial(decode, task=task), batch_size=64)


def decode(batch: Mapping[str, np.ndarray], task: str) -> dict[str, np.ndarray]:
    """Decoded crops and encoded labels of rows of a crops dataset; for the columns see `crops_dataset`."""
    from models.tasks.base import get_task
    from ray_jobs.crops.dataset import decode_crop

    chosen = get_task(task)
    crops = [decode_crop(data) for data in batch["crop"]]
    return {
        "crop": np.stack(crops) if crops else np.empty((0, 1, 1, 3), np.uint8),
        "targets": chosen.encode_labels({name: batch[name] for name in chosen.label_columns}),
    }
