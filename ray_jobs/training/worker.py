"""The entry point of a training worker, apart from the loop: Ray's controller unpickles it without paying for torch."""

import logging
from typing import Any


def train_worker(settings: dict[str, Any]) -> None:
    """Run the loop with the `WorkerConfig` under the key ``worker``."""
    from ray_jobs.training.loop import train

    # All metrics of every worker after each epoch, while the driver prints a line.
    logging.getLogger("ray.train.v2._internal.execution.context").setLevel(logging.WARNING)
    train(settings["worker"])
