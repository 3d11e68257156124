"""Training in the process of a test: for what a run leaves behind, not for how its workers work together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray.train
import torch


@contextmanager
def training_here(num_threads: int = 1) -> Iterator[None]:
    """Ray Train's local mode: the same loop and everything around it, without a controller and workers to start.

    Args:
        num_threads: As a worker of so many CPUs has them; bits depend on them.
    """
    scaling, threads = ray.train.ScalingConfig, torch.get_num_threads()

    def none_to_start(**_: Any) -> ray.train.ScalingConfig:
        return scaling(num_workers=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.train, "ScalingConfig", none_to_start)
        torch.set_num_threads(num_threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
