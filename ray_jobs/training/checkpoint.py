"""A run's two checkpoints, each one object: the last state, to go on from, and the best epoch's weights."""

import io
from typing import Any

import torch

from infra.storage import ObjectNotFound, Storage, join

LAST, BEST = "last.pt", "best.pt"


class Checkpoints:
    """What lies at ``<storage>/<run name>/``; written whole or not at all, so that a crash leaves the one before."""

    def __init__(self, root: str, name: str, storage: Storage) -> None:
        self._folder, self._storage = join(root, name), storage

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Replace a checkpoint.

        Raises:
            StorageError: It cannot be written; the one before stays.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._storage.put(join(self._folder, name), buffer.getvalue())

    def load(self, name: str, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """A checkpoint; None where there is none. Runs no code: tensors and plain values only."""
        try:
            data = self._storage.read_all(join(self._folder, name))
        except ObjectNotFound:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        return state
