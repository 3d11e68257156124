"""What a training tells MLflow: each step and epoch once, whatever becomes of the two."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from infra.errors import UserError
from infra.settings import TrackingSettings
from infra.tracking import experiment_id, tracking_client
from ray_jobs.training import run_log
from ray_jobs.training.run_log import RunLog, Untold

NAMES = ("train_loss", "learning_rate")


class Run:
    """A run on SQLite, and MLflow's silence at will."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = TrackingSettings(uri=f"sqlite:///{folder}/mlflow.db")
        self.client: MlflowClient = tracking_client(settings)
        self.id = self.client.create_run(experiment_id(self.client, settings)).info.run_id
        self.is_silent = False
        self._worker: Any = SimpleNamespace(tracking=settings, mlflow_run_id=self.id)
        for name in ("log_batch", "set_tag", "get_metric_history", "get_run"):
            monkeypatch.setattr(self.client, name, self._silenced(getattr(self.client, name)))
        monkeypatch.setattr(run_log, "TRY_AGAIN_S", 0.0)

    def _silenced(self, method: Any) -> Any:
        def asked(*args: Any, **kwargs: Any) -> Any:
            if self.is_silent:
                raise MlflowException("connection to http://me:hush@host refused")
            return method(*args, **kwargs)

        return asked

    def log(self, untold: list[Untold] | None = None) -> RunLog:
        return RunLog(self._worker, untold or [], {"precision": "float32"})

    def steps(self, name: str) -> list[int]:
        self.is_silent = False
        return [metric.step for metric in self.client.get_metric_history(self.id, name)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, monkeypatch)


def note(log: RunLog, *steps: int) -> None:
    for step in steps:
        log.steps(dict.fromkeys(NAMES, 0.5), step)


def test_a_silence_ends_no_training_and_loses_nothing(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with run.log() as log:
        note(log, 0, 1)
        assert log.flush() == []
        run.is_silent = True
        note(log, 2)
        log.epoch({"loss": 0.4, "f1": 0.3}, 0)
        assert [(name, step) for name, _, _, step in log.flush()] == [
            *((name, 2) for name in NAMES),
            ("loss", 0),
            ("f1", 0),
        ]
        assert "the training goes on" in caplog.text
        assert "hush" not in caplog.text
        run.is_silent = False
        note(log, 3)
        assert log.flush() == []
    assert run.steps("train_loss") == run.steps("learning_rate") == [0, 1, 2, 3]
    assert run.steps("loss") == run.steps("f1") == [0]
    assert run.client.get_run(run.id).data.tags["precision"] == "float32"


def test_it_does_not_ask_again_and_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "TRY_AGAIN_S", 1e6)
    with run.log() as log:
        run.is_silent = True
        note(log, 0)
        assert len(log.flush()) == 2
        run.is_silent = False
        assert len(log.flush()) == 2, "not yet"
    assert run.steps("train_loss") == [0]  # at the end in any case


def test_a_run_that_ends_in_silence_says_so_and_the_next_one_tells_the_rest(run: Run) -> None:
    log = run.log().__enter__()
    note(log, 0)
    log.flush()
    note(log, 1)
    run.is_silent = True
    untold = log.flush()
    with pytest.raises(UserError, match="the training itself has ended, and is kept") as silence:
        log.__exit__(None, None, None)
    assert "hush" not in str(silence.value)
    assert [step for _, _, _, step in untold] == [1, 1]
    run.is_silent = False
    with run.log(untold):
        pass
    assert run.steps("train_loss") == [0, 1]


def test_a_restart_tells_no_step_twice(run: Run) -> None:
    with run.log() as log:
        note(log, 0, 1, 2)
        log.epoch({"loss": 0.4}, 0)
        log.flush()
    # The checkpoint before it had told nothing yet, and the steps after it are made once more.
    old = [(name, 0.5, 1, 0) for name in NAMES]
    with run.log(old) as log:
        note(log, 1, 2, 3)
        log.epoch({"loss": 0.4}, 0)
        log.epoch({"loss": 0.3}, 1)
    assert run.steps("train_loss") == [0, 1, 2, 3]
    assert run.steps("loss") == [0, 1]


def test_a_long_silence_is_told_in_parts(run: Run) -> None:
    with run.log() as log:
        note(log, *range(1200))
        assert log.flush() == []
    assert run.steps("train_loss") == list(range(1200))


def test_an_error_of_the_training_is_not_hidden_by_a_silence(run: Run) -> None:
    def fails() -> None:
        with run.log() as log:
            note(log, 0)
            run.is_silent = True
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
