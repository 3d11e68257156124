"""The entry point of a training worker, apart from the loop: Ray's controller unpickles it without paying for torch."""

from typing import Any


def train_worker(settings: dict[str, Any]) -> None:
    """Run the loop with the `WorkerConfig` under the key ``worker``."""
    from ray_jobs.training.loop import train

    train(settings["worker"])
