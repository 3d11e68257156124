"""What rank 0 tells MLflow: each step and each epoch once, also after a restart; and the system's own metrics."""

import logging
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from infra.errors import UserError
from infra.tracking import impatient, shown_uri, tracking_client, without_credentials
from ray_jobs.training.config import WorkerConfig

# A metric as a checkpoint holds it: name, value, milliseconds since 1970, step.
Untold = tuple[str, float, int, int]
TRY_AGAIN_S = 120.0
_MOST_METRICS = 1000  # that MLflow takes at once
_OF_STEPS = ("train_loss", "learning_rate")
logger = logging.getLogger(__name__)


class RunLog:
    """Metrics of one MLflow run; they wait until `flush`, which comes before every checkpoint.

    While MLflow does not answer, the training goes on: what waits lies in the checkpoints, and is told once MLflow
    answers again. A run that broke off between telling and its checkpoint would tell some steps twice: those that
    MLflow has are left out.

    Args:
        worker: whose run it is.
        untold: what waited in the last checkpoint.
        tags: of the run.
    """

    def __init__(self, worker: WorkerConfig, untold: Sequence[Untold], tags: dict[str, str]) -> None:
        self._client = tracking_client(worker.tracking)
        self._run_id = worker.mlflow_run_id
        self._tags = tags
        self._waiting = [Metric(*metric) for metric in untold]
        self._is_known = False  # what MLflow has of an earlier try
        self._try_again_s = 0.0
        self._monitor: Any = None

    def __enter__(self) -> Self:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with impatient():
            self._monitor = SystemMetricsMonitor(
                self._run_id, resume_logging=True, tracking_uri=self._client.tracking_uri
            )
        self._monitor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell what waits.

        Raises:
            UserError: MLflow does not answer.
        """
        self._monitor.finish()
        try:
            self._tell()
        except MlflowException as silence:
            if error is None:
                raise UserError(f"{self._words(silence)}; the training itself has ended, and is kept") from silence

    def steps(self, values: dict[str, float], step: int) -> None:
        """Figures after a step, counted over all epochs: those named in ``_OF_STEPS``."""
        assert values.keys() == set(_OF_STEPS)
        self._waiting += _metrics(values, step)

    def epoch(self, values: dict[str, float], epoch: int) -> None:
        """Figures of an epoch, ``loss`` among them."""
        self._waiting += _metrics(values, epoch)

    def flush(self) -> list[Untold]:
        """Tell what waits, and return what waits still, since MLflow does not answer."""
        if self._waiting and time.monotonic() >= self._try_again_s:
            try:
                with impatient():  # a GPU waits
                    self._tell()
            except MlflowException as silence:
                logger.warning("%s; the training goes on, and tells it later", self._words(silence))
                self._try_again_s = time.monotonic() + TRY_AGAIN_S
        return [(metric.key, metric.value, metric.timestamp, metric.step) for metric in self._waiting]

    def _tell(self) -> None:
        if not self._is_known:
            step, epoch = self._last_step("train_loss"), self._last_step("loss")
            self._waiting = [m for m in self._waiting if m.step > (step if m.key in _OF_STEPS else epoch)]
            for name, value in self._tags.items():
                self._client.set_tag(self._run_id, name, value)
            self._is_known = True
        while self._waiting:
            self._client.log_batch(self._run_id, metrics=self._waiting[:_MOST_METRICS])
            del self._waiting[:_MOST_METRICS]

    def _last_step(self, name: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(self._run_id, name)), default=-1)

    def _words(self, silence: MlflowException) -> str:
        where, why = shown_uri(self._client.tracking_uri), without_credentials(" ".join(str(silence).split()))
        return f"MLflow at {where} does not take the run's metrics ({why[:200]})"


def _metrics(values: dict[str, float], step: int) -> list[Metric]:
    now_ms = int(time.time() * 1000)
    return [Metric(name, float(value), now_ms, step) for name, value in values.items() if np.isfinite(value)]
