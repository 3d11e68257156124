"""Search a recipe's fields: Ray Tune gives the samples and stops weak trials, each trial is a training of its own."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray.tune
import yaml
from mlflow import MlflowClient
from mlflow.entities import RunStatus
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ray.tune.schedulers import ASHAScheduler
from rich.table import Table

from infra.errors import RunStopped, UserError
from infra.settings import Settings
from infra.storage import Storage, join
from infra.tracking import absolute_uri, experiment_id
from models.tasks.base import get_task
from ray_jobs.cluster import connect
from ray_jobs.console import console
from ray_jobs.crops.dataset import read_manifest
from ray_jobs.interrupts import Stoppable
from ray_jobs.job_environment import refuse_fleeting_tracking
from ray_jobs.preflight import answering_client
from ray_jobs.sizing import Cluster, Training
from ray_jobs.training.checks import check_dataset, check_resources, training_resources
from ray_jobs.training.config import TrainConfig
from ray_jobs.training.recipe import Recipe, nested, replaced
from ray_jobs.training.run import train_trial

BEST = "best.yaml"
NUM_SHOWN = 10


class Span(BaseModel):
    """Numbers from ``low`` to ``high``; whole ones where both are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: int | float = Field(description="The least.")
    high: int | float = Field(description="The most.")
    log: bool = Field(False, description="Drawn evenly on a logarithmic scale.")

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low:g} and high {self.high:g} are no range{' of logarithms' * self.log}")
        return self

    def domain(self) -> Any:
        """As Ray Tune draws from it."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            draw = ray.tune.lograndint if self.log else ray.tune.randint
            return draw(self.low, self.high + 1)
        return (ray.tune.loguniform if self.log else ray.tune.uniform)(float(self.low), float(self.high))


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """One search."""

    base: TrainConfig
    space: dict[str, list[Any] | Span]
    num_trials: int = 16
    grace_epochs: int = 3
    num_concurrent: int | None = None


def read_space(path: Path) -> dict[str, list[Any] | Span]:
    """Recipe field (``augmentation.shift`` reaches inside) to its values.

    Raises:
        UserError: The file cannot be read, or a field is none of a recipe or has neither values nor a range.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: the space cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict) or not given:
        raise UserError(f"{path}: a space is a mapping of recipe fields to values, for example learning_rate")
    space: dict[str, list[Any] | Span] = {}
    for name, values in given.items():
        if isinstance(values, list) and values:
            space[name] = values
            examples = values
        else:
            try:
                space[name] = Span.model_validate(values)
            except ValidationError as error:
                raise UserError(
                    f"{path}: {name}: {error.errors()[0]['msg']}: give [a, b] or {{low: a, high: b}}"
                ) from error
            examples = [values["low"], values["high"]]
        for example in examples:
            replaced(Recipe(), nested({name: example}))
    return space


def run_tune(config: TuneConfig, settings: Settings) -> Recipe:
    """Search; the best recipe, which is also written to ``<storage>/<name>/best.yaml``.

    Raises:
        UserError: The dataset, the space or the cluster is unusable, MLflow does not answer, or no trial finished an
            epoch.
    """
    task, storage = get_task(config.base.task), Storage(settings.storage)
    places = {name: storage.absolute(getattr(config.base, name)) for name in ("dataset", "storage")}
    base = config.base.model_copy(update=places)
    if base.recipe.weights.endswith(".safetensors"):  # a trial works in a folder of its own
        weights = {"weights": storage.absolute(base.recipe.weights)}
        base = base.model_copy(update={"recipe": base.recipe.model_copy(update=weights)})
    dataset = read_manifest(base.dataset, storage)
    check_dataset(base, task, dataset)
    refuse_fleeting_tracking(settings.tracking.uri)
    tracking = settings.tracking.model_copy(update={"uri": absolute_uri(settings.tracking.uri)})
    settings = settings.model_copy(update={"tracking": tracking})
    client = answering_client(tracking)
    training, cluster = training_resources(base, dataset), connect(settings.cluster)
    check_resources(training, cluster)
    parent = client.create_run(
        experiment_id(client, tracking), run_name=base.name, tags={"task": task.name}
    ).info.run_id
    status, stoppable = RunStatus.FAILED, Stoppable()
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would end a search that was stopped as if it were through
    try:
        with stoppable:
            results = _tuner(config, base, settings, str(parent), trials_at_once(training, cluster)).fit()
        status = RunStatus.FINISHED
    except KeyboardInterrupt:
        status = RunStatus.KILLED
        message = f"search {base.name}: stopped; its trials so far are in MLflow, run {parent}"
        print(f"stopped: {message}", file=sys.stderr, flush=True)
        raise RunStopped(message, stoppable.exit_code) from None
    finally:
        _end_children(client, tracking_experiment=experiment_id(client, tracking), parent=str(parent))
        client.set_terminated(parent, RunStatus.to_string(status))
    kept = f"best_{task.best_metric}"  # of the epoch that `train` would keep
    found = [
        (dict(result.metrics), dict(result.config or {}))
        for result in (results[number] for number in range(len(results)))
        if result.error is None and result.metrics and kept in result.metrics
    ]
    if not found:
        errors = "; ".join(dict.fromkeys(str(error).splitlines()[-1] for error in results.errors)) or "no trial ran"
        raise UserError(f"no trial finished an epoch: {errors}")
    sign = -1 if task.higher_is_better else 1
    found.sort(key=lambda trial: sign * trial[0][kept])
    best = replaced(base.recipe, nested(found[0][1]))
    text = yaml.safe_dump(best.model_dump(mode="json"), sort_keys=False)
    uri = join(base.storage, base.name, BEST)
    storage.put(uri, text.encode())
    client.log_text(parent, text, BEST)
    _print(kept, list(config.space), found, uri)
    return best


def _tuner(config: TuneConfig, base: TrainConfig, settings: Settings, parent: str, room: int) -> ray.tune.Tuner:
    task, storage = get_task(base.task), Storage(settings.storage)
    filesystem, root = storage.arrow_filesystem(join(base.storage, "_ray"))

    def trial(sample: dict[str, Any]) -> None:
        recipe = replaced(base.recipe, nested(sample))
        name = f"{base.name}/{ray.tune.get_context().get_trial_id()}"
        train_trial(base.model_copy(update={"recipe": recipe, "name": name}), settings, parent)

    space = {
        name: ray.tune.choice(values) if isinstance(values, list) else values.domain()
        for name, values in config.space.items()
    }
    return ray.tune.Tuner(
        # A trial waits for its workers and takes no CPU of theirs; Ray Tune wants it to ask for something.
        ray.tune.with_resources(trial, {"memory": 1 << 20}),
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            metric=task.best_metric,
            mode="max" if task.higher_is_better else "min",
            num_samples=config.num_trials,
            max_concurrent_trials=config.num_concurrent or room,
            scheduler=ASHAScheduler(
                time_attr="training_iteration",
                max_t=base.recipe.epochs + 1,  # who gets to the end ends by itself
                grace_period=min(config.grace_epochs, base.recipe.epochs),
            ),
        ),
        run_config=ray.tune.RunConfig(name=base.name, storage_path=root, storage_filesystem=filesystem, verbose=0),
    )


def trials_at_once(training: Training, cluster: Cluster) -> int:
    """Trials whose workers find room beside each other on the nodes that are there, at least 1."""
    return max(1, training.room(cluster) // training.most)


def _end_children(client: MlflowClient, *, tracking_experiment: str, parent: str) -> None:
    """Trials that were stopped had no time to say so."""
    for run in client.search_runs([tracking_experiment], f"tags.mlflow.parentRunId = '{parent}'"):
        if run.info.status == RunStatus.to_string(RunStatus.RUNNING):
            client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))


def _print(metric: str, fields: list[str], found: list[tuple[dict[str, Any], dict[str, Any]]], uri: str) -> None:
    table = Table(title=f"{len(found)} trials, the best first; each by its best epoch")
    for name in (metric, "epochs", *fields):
        table.add_column(name, justify="right")
    for metrics, sample in found[:NUM_SHOWN]:
        chosen = [sample[name] for name in fields]
        values = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in chosen]
        table.add_row(f"{metrics[metric]:.4f}", str(metrics["training_iteration"]), *values)
    console.print(table)
    console.print(f"wrote {uri}: train --recipe takes it", highlight=False)
