"""Which crops a step trains on: the same for the same seed, whatever the number of workers, resumed or not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """Row groups of an epoch, the steps that end in them, and what later steps need of them and of earlier ones."""

    groups: tuple[int, ...]
    batches: tuple[Rows, ...]  # rows of each step, over all workers; the first ones may begin in earlier windows
    later: Rows  # rows of this and of earlier windows that steps of later windows begin with


class EpochOrder:
    """The steps of each epoch.

    In one piece (``window_rows`` None) an epoch is a uniform permutation of its rows. Else row groups are shuffled and
    read in windows of about ``window_rows`` rows, and rows are permuted within a window: two rows of one row group
    then always stand in the same window, any other two meet with the chance that two windows of the epoch do.

    Nothing is left out: where rows do not divide into batches, some batches have one more.

    Args:
        group_sizes: Rows of each row group, in the order of the files.
        batch_size: Rows of a step, over all workers.
        seed: Of the permutations.
        window_rows: Rows that are held at once; None: all.
    """

    def __init__(
        self, group_sizes: Sequence[int], *, batch_size: int, seed: int, window_rows: int | None = None
    ) -> None:
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(group_sizes, dtype=np.int64))])
        self._batch_size, self._seed, self._window_rows = batch_size, seed, window_rows

    def windows(self, epoch: int, copies: npt.NDArray[np.int64] | None, first_step: int = 0) -> list[Window]:
        """The epoch's windows from ``first_step`` on.

        Args:
            epoch: Its number.
            copies: How often the epoch holds each row; None: once.
            first_step: Steps of the epoch that are done already.
        """
        rng = np.random.default_rng([self._seed, epoch])
        pieces, groups_of = self._pieces(rng)
        rows = [np.repeat(piece, 1 if copies is None else copies[piece]) for piece in pieces]
        order = np.concatenate([rng.permutation(piece) for piece in rows])
        window_of = np.repeat(np.arange(len(rows)), [len(piece) for piece in rows])
        batches = np.array_split(np.arange(len(order)), self.num_steps(len(order)))[first_step:]
        if not batches:
            return []
        order, window_of = order[batches[0][0] :], window_of[batches[0][0] :]
        batches = [batch - batches[0][0] for batch in batches]
        ends_in = np.repeat([window_of[batch[-1]] for batch in batches], [len(batch) for batch in batches])
        return [
            Window(
                tuple(groups_of[window]),
                tuple(order[batch] for batch in batches if window_of[batch[-1]] == window),
                order[(window_of <= window) & (ends_in > window)],
            )
            for window in np.unique(window_of).tolist()
        ]

    def num_steps(self, num_rows: int) -> int:
        """Steps of an epoch of so many rows, copies included."""
        return max(1, num_rows // self._batch_size)

    def _pieces(self, rng: np.random.Generator) -> tuple[list[Rows], list[list[int]]]:
        """Rows and row groups of each window."""
        num_groups = len(self._starts) - 1
        if self._window_rows is None:
            return [np.arange(self._starts[-1])], [list(range(num_groups))]
        pieces: list[Rows] = []
        groups_of: list[list[int]] = [[]]
        held: list[Rows] = []
        for group in rng.permutation(num_groups).tolist():
            held.append(np.arange(self._starts[group], self._starts[group + 1]))
            groups_of[-1].append(group)
            if sum(map(len, held)) >= self._window_rows:
                pieces.append(np.concatenate(held))
                held = []
                groups_of.append([])
        if held:
            pieces.append(np.concatenate(held))
        else:
            groups_of.pop()
        return pieces, groups_of
