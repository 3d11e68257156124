"""Epochs of a running training as lines on the driver's terminal: read from MLflow, wherever the workers are."""

import threading
import time
from types import TracebackType
from typing import Self

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from infra.tracking import impatient
from models.tasks.base import Task
from ray_jobs.console import console
from ray_jobs.telemetry import tell_training
from ray_jobs.training.config import TrainConfig

POLL_S = 3.0


class EpochLines:
    """Prints a line for each epoch that ends while it is entered."""

    def __init__(self, client: MlflowClient, run_id: str, config: TrainConfig, task: Task) -> None:
        self._client, self._run_id, self._config, self._task = client, run_id, config, task
        self._stop = threading.Event()
        self._start = time.monotonic()
        self._told = self._last()
        self._first = self._told
        self._thread = threading.Thread(target=self._run, name="epochs", daemon=True)

    def __enter__(self) -> Self:
        if self._told >= 0:
            console.print(f"going on after epoch {self._told + 1} of {self._config.recipe.epochs}", highlight=False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._tell()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            self._tell()

    def _last(self) -> int:
        return max(self._history("loss"), default=-1)

    def _history(self, name: str) -> dict[int, float]:
        return {metric.step: metric.value for metric in self._client.get_metric_history(self._run_id, name)}

    def _tell(self) -> None:
        name = self._task.best_metric
        try:
            with impatient():  # the end of the training waits for this look
                losses, values, rates, waits = (
                    self._history(key) for key in ("loss", name, "train_crops_per_s", "reader_wait_share")
                )
        except MlflowException:
            return  # the next look tells it
        if ended := set(losses) & set(rates) & set(waits):
            last = max(ended)
            tell_training(self._config.name, self._task.name, losses[last], rates[last], waits[last], last + 1)
        sign = 1 if self._task.higher_is_better else -1
        for epoch in sorted(set(losses) & set(values)):
            if epoch <= self._told:
                continue
            self._told = epoch
            best = max((past for past in values if past <= epoch), key=lambda past: (sign * values[past], -past))
            left_s = (time.monotonic() - self._start) / (epoch - self._first) * (self._config.recipe.epochs - epoch - 1)
            console.print(
                f"epoch {epoch + 1}/{self._config.recipe.epochs} · loss {losses[epoch]:.3f} · {name} "
                f"{values[epoch]:.4f} (best {values[best]:.4f}, epoch {best + 1}) · {rates.get(epoch, 0):.0f} crops/s "
                f"· {left_s:.0f} s left",
                highlight=False,
            )
