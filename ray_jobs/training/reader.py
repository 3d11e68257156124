"""Crops of a split for training and validation, straight from its Parquet parts: in memory, or window by window."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from infra.storage import Storage
from models.tasks.base import Targets, Task
from ray_jobs.crops.jpeg import decode_crop
from ray_jobs.training.balance import Balance
from ray_jobs.training.decoding import DecodedBatches
from ray_jobs.training.order import EpochOrder, Window

DECODE_THREADS = 4
WINDOW_ROWS = 20_000  # encoded crops of a window: about 400 MB, of which two are held
Pair = tuple[torch.Tensor, torch.Tensor]  # crops uint8[n, S, S, 3], targets int64[n, H]


@dataclass(frozen=True, slots=True)
class Batch:
    """This worker's part of a step: rows ``rank``, ``rank + world``, … of it."""

    step: int
    rows: npt.NDArray[np.int64]  # numbers of this part's rows in the split
    num_rows: int  # of the whole step, over all workers
    crops: torch.Tensor  # uint8[n, S, S, 3]
    targets: torch.Tensor  # int64[n, H]


class CropReader:
    """The batches of each epoch for one worker; every worker takes the same steps, and its own rows of each.

    Args:
        parts: Parquet files of the split.
        storage: Where they lie.
        task: Whose labels are read.
        balance: Copies by class; None: every crop once.
        batch_size: Rows of a step, over all workers.
        rank: Number of this worker.
        world: Number of workers.
        seed: Of the order.
        resident: Keep all crops decoded in memory, instead of reading them anew in each epoch.
        num_decoders: Processes that decode what is read anew: in threads they would take the interpreter from the
            training loop. 0: the loop decodes.
    """

    def __init__(
        self,
        parts: Sequence[str],
        storage: Storage,
        task: Task,
        balance: Balance | None,
        *,
        batch_size: int,
        rank: int,
        world: int,
        seed: int,
        resident: bool,
        num_decoders: int = 0,
        window_rows: int = WINDOW_ROWS,
    ) -> None:
        self._files = _Files(parts, storage)
        self._rank, self._world, self._balance = rank, world, balance
        columns = list(task.label_columns) + ([f"rank_{balance.label}"] if balance is not None else [])
        table = self._files.read(columns)
        self._targets = torch.from_numpy(_targets(table, task))
        if balance is not None:
            labels, ranks = table[balance.label].to_pylist(), table[f"rank_{balance.label}"].to_pylist()
            self._ranked = list(zip(labels, ranks, strict=True))
        self._order = EpochOrder(
            self._files.group_sizes, batch_size=batch_size, seed=seed, window_rows=None if resident else window_rows
        )
        self._crops = torch.from_numpy(_decoded(self._files.crops())) if resident else None
        self._decoded = DecodedBatches(num_decoders)
        self.steps_per_epoch = self._order.num_steps(
            len(self._targets) if balance is None else balance.per_class * len(balance.class_counts)
        )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``first_step`` on; the same for the same seed."""
        windows = self._order.windows(epoch, self._copies(epoch), first_step)
        if self._crops is not None:
            for step, rows in enumerate((rows for window in windows for rows in window.batches), start=first_step):
                own = rows[self._rank :: self._world]
                yield Batch(step, own, len(rows), self._crops[own], self._targets[own])
            return
        read: deque[tuple[int, npt.NDArray[np.int64], int]] = deque()  # whose crops are being decoded
        for crops in self._decoded.of(self._streamed(windows, first_step, read)):
            step, own, num_rows = read.popleft()
            yield Batch(step, own, num_rows, crops, self._targets[own])

    def names(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Videos of these rows, for a message."""
        return [str(name) for name in self._files.read(["video_id"])["video_id"].take(pa.array(rows)).to_pylist()]

    def _copies(self, epoch: int) -> npt.NDArray[np.int64] | None:
        if self._balance is None:
            return None
        balance = self._balance
        return np.asarray([balance.copies(label, rank, epoch) for label, rank in self._ranked], dtype=np.int64)

    def _streamed(
        self, windows: Sequence[Window], step: int, read: deque[tuple[int, npt.NDArray[np.int64], int]]
    ) -> Generator[list[bytes]]:
        """The encoded crops of each batch; step, rows and size of it go to ``read``."""
        with ThreadPoolExecutor(1) as loader:
            held: dict[int, bytes] = {}
            waiting = [loader.submit(self._files.encoded, windows[0].groups)] if windows else []
            for index, window in enumerate(windows):
                encoded = held | waiting.pop(0).result()
                if index + 1 < len(windows):
                    waiting.append(loader.submit(self._files.encoded, windows[index + 1].groups))
                for rows in window.batches:
                    own = rows[self._rank :: self._world]
                    read.append((step, own, len(rows)))
                    yield [encoded[row] for row in own.tolist()]
                    step += 1
                held = {row: encoded[row] for row in window.later.tolist()}


def read_validation(parts: Sequence[str], storage: Storage, task: Task, *, rank: int, world: int) -> Pair:
    """Rows rank, rank + world, … of the parts, in order."""
    files = _Files(parts, storage)
    table = files.read(list(task.label_columns))
    rows = np.arange(rank, table.num_rows, world)
    targets = _targets(table, task)
    return torch.from_numpy(_decoded(files.crops(rows))), torch.from_numpy(targets[rows])


class _Files:
    """The row groups of some Parquet files, numbered through."""

    def __init__(self, parts: Sequence[str], storage: Storage) -> None:
        self._opened = [_open(storage.arrow_filesystem(uri)) for uri in parts]
        self._groups = [(file, group) for file in self._opened for group in range(file.num_row_groups)]
        self.group_sizes = [file.metadata.row_group(group).num_rows for file, group in self._groups]
        self._starts = np.concatenate([[0], np.cumsum(self.group_sizes)]).astype(np.int64)

    def read(self, columns: list[str]) -> pa.Table:
        """Columns of all rows, in order."""
        tables = [file.read(columns=columns) for file in self._opened]
        return pa.concat_tables(tables, promote_options="permissive")

    def crops(self, rows: npt.NDArray[np.int64] | None = None) -> list[bytes]:
        """Encoded crops of these rows (all by default), in order."""
        found: list[bytes] = []
        for number, (file, group) in enumerate(self._groups):
            column = file.read_row_group(group, columns=["crop"])["crop"]
            if rows is not None:
                inside = rows[(rows >= self._starts[number]) & (rows < self._starts[number + 1])]
                column = column.take(pa.array(inside - self._starts[number]))
            found.extend(column.to_pylist())
        return found

    def encoded(self, groups: Sequence[int]) -> dict[int, bytes]:
        """Encoded crops of these row groups by the number of their row."""
        found: dict[int, bytes] = {}
        for number in groups:
            file, group = self._groups[number]
            crops = file.read_row_group(group, columns=["crop"])["crop"].to_pylist()
            found.update(enumerate(crops, start=int(self._starts[number])))
        return found


def _targets(table: pa.Table, task: Task) -> Targets:
    return task.encode_labels({name: table[name].to_pylist() for name in task.label_columns})


def _open(place: tuple[Any, str]) -> pq.ParquetFile:
    filesystem, path = place
    return pq.ParquetFile(filesystem.open_input_file(path))


def _decoded(crops: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    if not crops:
        return np.empty((0, 1, 1, 3), np.uint8)
    first = decode_crop(crops[0])
    found = np.empty((len(crops), *first.shape), np.uint8)
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for row, crop in enumerate(pool.map(decode_crop, crops)):
            found[row] = crop
    return found
