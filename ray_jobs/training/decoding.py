"""Batches of crops decoded in processes beside the training loop. They import this module, so it imports little."""

import contextlib
from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_convert

from ray_jobs.crops.jpeg import decode_crop

BATCHES_AHEAD = 4  # of each process


class DecodedBatches:
    """Batches of encoded crops, decoded in order by processes of their own, some batches ahead."""

    def __init__(self, num_processes: int) -> None:
        self._source = _Source()
        # Its processes start with the first epoch that streams, stay for the next ones, and end with this object.
        # Spawned, since a fork of a process with Ray's and CUDA's threads may hang.
        self._loader = DataLoader(
            _Decoder(),
            batch_sampler=self._source,
            num_workers=num_processes,
            prefetch_factor=BATCHES_AHEAD if num_processes else None,
            multiprocessing_context="spawn" if num_processes else None,
            persistent_workers=num_processes > 0,
            collate_fn=default_convert,
            generator=torch.Generator(),  # by default each epoch would draw from the one that the training uses
        )

    def of(self, batches: Generator[list[bytes]]) -> Iterator[torch.Tensor]:
        """Crops uint8[n, S, S, 3] of each batch, in order."""
        with contextlib.closing(batches):
            self._source.batches = batches
            yield from self._loader


class _Source:
    """What the loader draws a list of encoded crops from, where it otherwise draws a list of row numbers."""

    batches: Iterator[list[bytes]] = iter(())

    def __iter__(self) -> Iterator[list[bytes]]:
        return self.batches


class _Decoder(Dataset[torch.Tensor]):
    """What the processes of the loader do."""

    def __getitems__(self, encoded: list[bytes]) -> torch.Tensor:
        return torch.from_numpy(np.stack([decode_crop(crop) for crop in encoded]))
