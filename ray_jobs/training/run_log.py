"""What rank 0 tells MLflow: each step and each epoch once, also after a restart; and the system's own metrics."""

import time
from types import TracebackType
from typing import Any, Self

import numpy as np
from mlflow.entities import Metric

from infra.tracking import tracking_client
from ray_jobs.training.config import WorkerConfig

_STEP_METRIC = "train_loss"


class RunLog:
    """Metrics of one MLflow run; steps wait until `flush`, which comes before every checkpoint.

    A run that broke off between the two would tell some steps twice: those that MLflow has are passed over.
    """

    def __init__(self, worker: WorkerConfig) -> None:
        self._client = tracking_client(worker.tracking)
        self._run_id = worker.mlflow_run_id
        self._told_step = self._last_step(_STEP_METRIC)
        self._told_epoch = self._last_step("loss")
        self._waiting: list[Metric] = []
        self._monitor: Any = None

    def __enter__(self) -> Self:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(self._run_id, resume_logging=True, tracking_uri=self._client.tracking_uri)
        self._monitor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        self._monitor.finish()

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._client.set_tag(self._run_id, name, value)

    def steps(self, values: dict[str, float], step: int) -> None:
        """Figures after a step, counted over all epochs."""
        if step > self._told_step:
            self._told_step = step
            self._waiting += _metrics(values, step)

    def epoch(self, values: dict[str, float], epoch: int) -> None:
        """Figures of an epoch."""
        if epoch > self._told_epoch:
            self._told_epoch = epoch
            self._waiting += _metrics(values, epoch)

    def flush(self) -> None:
        """Tell what waits."""
        if self._waiting:
            self._client.log_batch(self._run_id, metrics=self._waiting)
            self._waiting = []

    def _last_step(self, name: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(self._run_id, name)), default=-1)


def _metrics(values: dict[str, float], step: int) -> list[Metric]:
    now_ms = int(time.time() * 1000)
    return [Metric(name, float(value), now_ms, step) for name, value in values.items() if np.isfinite(value)]
