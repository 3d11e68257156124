"""Crops for training: a Ray Data shard, kept decoded in memory where it fits, else streamed anew each epoch."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch

from infra.storage import Storage
from models.tasks.base import Task
from ray_jobs.training.source import decode

Batch = tuple[torch.Tensor, torch.Tensor]  # crops uint8[n, S, S, 3], targets int64[n, H]


class TrainReader:
    """Batches of one worker's shard: every worker takes the same number of steps, since shards are equal in rows.

    Kept in memory, an epoch is a fresh permutation of the shard. Streamed, it is the order of the files with blocks
    shuffled, and what does not fill a batch is left out.
    """

    def __init__(
        self, shard: ray.data.DataIterator, *, num_rows: int, batch_size: int, resident: bool, seed: int
    ) -> None:
        self.steps_per_epoch = max(1, num_rows // batch_size)
        self._shard = shard
        self._batch_size = min(batch_size, num_rows)
        self._seed = seed
        self._rows = _load_all(shard) if resident else None

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch; the same for the same seed, where the shard is kept in memory."""
        if self._rows is not None:
            crops, targets = self._rows
            order = torch.randperm(len(crops), generator=torch.Generator().manual_seed(self._seed + epoch))
            for step in range(self.steps_per_epoch):
                chosen = order[step * self._batch_size : (step + 1) * self._batch_size]
                yield crops[chosen], targets[chosen]
            return
        batches = self._shard.iter_torch_batches(batch_size=self._batch_size, drop_last=True, prefetch_batches=2)
        for step, batch in enumerate(batches):
            if step == self.steps_per_epoch:
                break
            yield batch["crop"], batch["targets"]


def read_validation(parts: list[str], storage: Storage, task: Task, *, rank: int, world: int) -> Batch:
    """Rows rank, rank + world, … of the parts, in order.

    Straight from the files: an equal split by Ray Data would drop what does not divide, and metrics are over all rows.
    """
    tables = []
    for uri in parts:
        filesystem, path = storage.arrow_filesystem(uri)
        tables.append(pq.read_table(path, filesystem=filesystem, columns=["crop", *task.label_columns]))
    table = pa.concat_tables(tables, promote_options="permissive")
    mine = table.take(pa.array(range(rank, table.num_rows, world), type=pa.int64()))
    decoded = decode({name: np.asarray(mine[name].to_pylist(), dtype=object) for name in mine.column_names}, task.name)
    return torch.from_numpy(decoded["crop"]), torch.from_numpy(decoded["targets"])


def _load_all(shard: ray.data.DataIterator) -> Batch:
    batches = list(shard.iter_batches(batch_size=256, batch_format="numpy"))
    crops = np.concatenate([batch["crop"] for batch in batches])
    targets = np.concatenate([batch["targets"] for batch in batches])
    return torch.from_numpy(crops), torch.from_numpy(targets)
