"""A run's two checkpoints, each one object: the last state, to go on from, and the best epoch's weights."""

import io
from typing import Any

import torch

from infra.storage import ObjectNotFound, Storage, join

LAST, BEST = "last.pt", "best.pt"
STOPPED = "stopped.txt"


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

    def stop(self, why: str) -> None:
        """Note that the run cannot go on, whatever is tried again."""
        self._storage.put(join(self._folder, STOPPED), why.encode())

    def stopped(self) -> str | None:
        """Why the run cannot go on; None where nothing was noted."""
        try:
            return self._storage.read_all(join(self._folder, STOPPED)).decode()
        except ObjectNotFound:
            return None

    def start(self) -> None:
        """Forget such a note of an earlier try."""
        self._storage.delete(join(self._folder, STOPPED))

    def load(self, name: str, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """A checkpoint; None where there is none. Runs no code: tensors and plain values only."""
        try:
            data = self._storage.read_all(join(self._folder, name))
        except ObjectNotFound:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        return state
