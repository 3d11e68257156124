"""Work on the crops of a dataset, block by block, on the cluster; results come back in order."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.dataset as pads
import ray

from infra.storage import Storage
from ray_jobs.console import RunProgress
from ray_jobs.crops.jpeg import decode_crop

BLOCK = 512

Work = Callable[[npt.NDArray[np.uint8]], Any]


def scanned(parts: Sequence[str], storage: Storage) -> pads.Dataset:
    """The Parquet parts of a crops dataset as one Arrow dataset, their rows numbered through."""
    filesystem, _ = storage.arrow_filesystem(parts[0])
    return pads.dataset([storage.arrow_filesystem(uri)[1] for uri in parts], filesystem=filesystem)


def map_crops(
    parts: Sequence[str],
    storage: Storage,
    rows: npt.NDArray[np.int64],
    work: Work,
    *,
    title: str = "",
    num_gpus: float = 0,
) -> list[Any]:
    """What ``work`` makes of crops uint8[n, S, S, 3], one result for each block of ``rows``.

    Args:
        parts: Parquet files of the dataset.
        storage: Where they lie.
        rows: Numbers of the rows, ascending.
        work: Pickled once, and called in processes of the cluster.
        title: Of the progress line; empty: none.
        num_gpus: Of each task.
    """
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    task = ray.remote(_block).options(num_gpus=num_gpus or None)
    shipped = ray.put(work)
    waiting = [task.remote(list(parts), storage, block, shipped) for block in blocks]
    found, done = [], 0
    with RunProgress(title, len(rows), unit="crops", quiet=not title) as progress:
        for block, reference in zip(blocks, waiting, strict=True):
            found.append(ray.get(reference))
            done += len(block)
            progress.update(done)
    return found


def _block(parts: list[str], storage: Storage, rows: npt.NDArray[np.int64], work: Work) -> Any:
    crops = scanned(parts, storage).take(rows, columns=["crop"])["crop"].to_pylist()
    return work(np.stack([decode_crop(crop) for crop in crops]))
