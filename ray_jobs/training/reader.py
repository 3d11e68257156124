"""Crops for training: a Ray Data shard, kept decoded in memory where it fits, else streamed anew each epoch."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch

from infra.errors import UserError
from infra.storage import Storage
from models.tasks.base import Task
from ray_jobs.training.balance import Balance
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


class BalancedReader:
    """Batches of one worker's part of a balanced epoch, from crops in memory.

    Over all workers an epoch holds each class exactly ``per_class`` times. Workers take the same number of steps, so
    a batch may have a crop more or less than the batch size.
    """

    def __init__(
        self,
        parts: list[str],
        storage: Storage,
        task: Task,
        balance: Balance,
        *,
        batch_size: int,
        rank: int,
        world: int,
        seed: int,
    ) -> None:
        table = read_rows(parts, storage, [*task.label_columns, f"rank_{balance.label}"], rank=rank, world=world)
        self._crops, self._targets = _decoded(table, task)
        labels, ranks = (table[name].to_pylist() for name in (balance.label, f"rank_{balance.label}"))
        self._ranked = list(zip(labels, ranks, strict=True))
        self._balance, self._seed = balance, seed
        total = balance.per_class * len(balance.class_counts)
        self.steps_per_epoch = max(1, total // (world * batch_size))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch; the same for the same seed.

        Raises:
            UserError: This worker has fewer crops than there are steps.
        """
        copies = torch.tensor([self._balance.copies(label, rank, epoch) for label, rank in self._ranked])
        rows = torch.arange(len(copies)).repeat_interleave(copies)
        if len(rows) < self.steps_per_epoch:
            raise UserError(
                f"a worker has {len(rows)} crops for {self.steps_per_epoch} steps of a balanced epoch: "
                "use fewer workers, or a larger batch"
            )
        order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self._seed + epoch))]
        for chosen in order.tensor_split(self.steps_per_epoch):
            yield self._crops[chosen], self._targets[chosen]


def read_validation(parts: list[str], storage: Storage, task: Task, *, rank: int, world: int) -> Batch:
    """Rows rank, rank + world, … of the parts, in order."""
    return _decoded(read_rows(parts, storage, list(task.label_columns), rank=rank, world=world), task)


def read_rows(parts: list[str], storage: Storage, columns: list[str], *, rank: int, world: int) -> pa.Table:
    """``crop`` and the columns of rows rank, rank + world, … of the parts, in order.

    Straight from the files: an equal split by Ray Data would drop what does not divide.
    """
    tables = []
    for uri in parts:
        filesystem, path = storage.arrow_filesystem(uri)
        tables.append(pq.read_table(path, filesystem=filesystem, columns=["crop", *columns]))
    table = pa.concat_tables(tables, promote_options="permissive")
    return table.take(pa.array(range(rank, table.num_rows, world), type=pa.int64()))


def _decoded(table: pa.Table, task: Task) -> Batch:
    names = ("crop", *task.label_columns)
    decoded = decode({name: np.asarray(table[name].to_pylist(), dtype=object) for name in names}, task.name)
    return torch.from_numpy(decoded["crop"]), torch.from_numpy(decoded["targets"])


def _load_all(shard: ray.data.DataIterator) -> Batch:
    batches = list(shard.iter_batches(batch_size=256, batch_format="numpy"))
    crops = np.concatenate([batch["crop"] for batch in batches])
    targets = np.concatenate([batch["targets"] for batch in batches])
    return torch.from_numpy(crops), torch.from_numpy(targets)
