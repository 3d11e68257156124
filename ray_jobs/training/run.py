"""A training run from the driver's side: data, workers, the best epoch, calibration, scorer, registration."""

import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray.exceptions
import ray.train
import ray.train.torch
from mlflow import MlflowClient
from mlflow.entities import Param, RunStatus
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.table import Table

from infra.errors import RunStopped, UserError
from infra.settings import Settings, TrackingSettings
from infra.storage import ObjectNotFound, Storage, join
from infra.tracking import absolute_uri, code_version, experiment_id, impatient, tracking_client
from models import registry
from models.calibration import fit_calibration
from models.network import build_network, check_input_size
from models.scorer import WEIGHTS_FILE, ScorerManifest, TrainingSummary, load_scorer, save_scorer
from models.tasks.base import Task, get_task
from models.transforms import InputConfig
from ray_jobs.cluster import connect
from ray_jobs.console import console
from ray_jobs.crops.dataset import (
    CARD,
    MANIFEST,
    PEOPLE,
    UNKNOWN_PEOPLE,
    DatasetManifest,
    part_uris,
    read_manifest,
    read_people,
    read_targets,
)
from ray_jobs.interrupts import Stoppable
from ray_jobs.job_environment import refuse_fleeting_tracking
from ray_jobs.preflight import answering_client
from ray_jobs.reports.dataset import dataset_card
from ray_jobs.sizing import STEADY
from ray_jobs.training.balance import Balance
from ray_jobs.training.checkpoint import BEST, LAST, Checkpoints
from ray_jobs.training.checks import check_dataset, check_resources, missing_classes, training_resources
from ray_jobs.training.config import TrainConfig, WorkerConfig
from ray_jobs.training.progress import EpochLines
from ray_jobs.training.recipe import Recipe
from ray_jobs.training.worker import train_worker


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run gave."""

    version: str
    digest: str
    run_id: str
    manifest: ScorerManifest


def run_train(config: TrainConfig, settings: Settings) -> TrainResult:
    """Train, choose the best epoch by the task's metric, calibrate, save the scorer and register it.

    A run that broke off goes on from its last checkpoint, in the same MLflow run, when it is repeated with the same
    name and options; one that is finished gives its result again.

    Raises:
        UserError: The dataset, recipe or cluster are not usable, MLflow does not answer, or the training cannot go on;
            nothing was registered.
    """
    task = get_task(config.task)
    check_input_size(config.recipe.backbone, task.heads, config.recipe.input_size)
    storage = Storage(settings.storage)
    # Workers run in directories of their own.
    config = config.model_copy(
        update={name: storage.absolute(getattr(config, name)) for name in ("dataset", "storage")}
    )
    dataset = read_manifest(config.dataset, storage)
    check_dataset(config, task, dataset)
    balance = _balance(config, task, dataset)
    refuse_fleeting_tracking(settings.tracking.uri)
    tracking = settings.tracking.model_copy(update={"uri": absolute_uri(settings.tracking.uri)})
    client = answering_client(tracking)
    with TemporaryDirectory(prefix="facereel-") as folder:
        record = _open_record(config, storage)
        if record.version is not None:
            console.print(f"run {config.name} is finished; its result is version {record.version}", highlight=False)
            return _earlier_result(client, task, record)
        config = _with_starting_weights(config, task, client, storage)
        for line in missing_classes(task, dataset):
            console.print(f"note: {line}", highlight=False)
        check_resources(training_resources(config, dataset), connect(settings.cluster))
        if record.mlflow_run_id is None:
            run_id = _start_mlflow_run(client, tracking, config, task)
            record = record.model_copy(update={"mlflow_run_id": run_id})
            _write_record(config, record, storage)
        assert record.mlflow_run_id is not None
        run_id = record.mlflow_run_id
        client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        status, stoppable = RunStatus.FAILED, Stoppable()
        try:
            with stoppable:
                if not client.get_run(run_id).data.params:
                    _describe(client, run_id, config, dataset, balance, storage)
                with EpochLines(client, run_id, config, task):
                    _fit(config, task, dataset, balance, storage, tracking, run_id)
                directory = Path(folder) / "scorer"
                manifest = _build_scorer(directory, config, task, dataset, storage)
                digest = load_scorer(directory).digest
                version = _registered_already(client, task, run_id, digest)
                if version is None:
                    version = str(registry.register(client, directory, run_id=run_id).version)
                _write_record(config, record.model_copy(update={"version": version}), storage)
            status = RunStatus.FINISHED
        except KeyboardInterrupt:
            status = RunStatus.KILLED
            message = f"run {config.name}: stopped; go on with the same command and --name {config.name}"
            print(f"stopped: {message}", file=sys.stderr, flush=True)
            raise RunStopped(message, stoppable.exit_code) from None
        finally:
            _end_mlflow_run(client, run_id, status)
    return TrainResult(version, digest, run_id, manifest)


def _end_mlflow_run(client: MlflowClient, run_id: str, status: int) -> None:
    """Say how the run ended; where MLflow does not answer, what ended a run otherwise counts more."""
    try:
        with impatient():
            client.set_terminated(run_id, RunStatus.to_string(status))
    except MlflowException:
        if status == RunStatus.FINISHED:
            raise


def train_trial(config: TrainConfig, settings: Settings, parent: str) -> None:
    """Train within a trial of Ray Tune, which hears of every epoch; a nested MLflow run, and no scorer."""
    from ray.tune.integration.ray_train import TuneReportCallback

    task, storage = get_task(config.task), Storage(settings.storage)
    dataset = read_manifest(config.dataset, storage)
    check_dataset(config, task, dataset)
    balance = _balance(config, task, dataset)
    client = tracking_client(settings.tracking)
    config = _with_starting_weights(config, task, client, storage)
    run_id = _start_mlflow_run(client, settings.tracking, config, task, parent=parent)
    _describe(client, run_id, config, dataset, balance, storage)
    status = RunStatus.FAILED
    try:
        _fit(config, task, dataset, balance, storage, settings.tracking, run_id, callbacks=[TuneReportCallback()])
        status = RunStatus.FINISHED
    finally:
        _end_mlflow_run(client, run_id, status)


class RunState(BaseModel):
    """What lies at ``<storage>/<name>.json``: which run this is, and how far it came."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: TrainConfig
    mlflow_run_id: str | None = None
    version: str | None = None  # of the registered scorer, once there is one


def _start_mlflow_run(
    client: MlflowClient,
    tracking: TrackingSettings,
    config: TrainConfig,
    task: Task,
    *,
    parent: str | None = None,
) -> str:
    """An MLflow run; what it is about follows in `_describe`, when the run's record can find it again."""
    tags = {"task": task.name, "code_version": code_version()}
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    run = client.create_run(experiment_id(client, tracking), run_name=config.name, tags=tags)
    return str(run.info.run_id)


def _registered_already(client: MlflowClient, task: Task, run_id: str, digest: str) -> str | None:
    """The version of a run that was killed between registering and noting it."""
    for version in registry.versions(client, task.name):
        if version.run_id == run_id and version.tags.get("digest") == digest:
            return str(version.version)
    return None


def _describe(
    client: MlflowClient,
    run_id: str,
    config: TrainConfig,
    dataset: DatasetManifest,
    balance: Balance | None,
    storage: Storage,
) -> None:
    """The run's artifacts about its dataset, then its parameters: who has these has all."""
    params = config.recipe.flat() | config.model_dump(mode="json", include={"dataset", "num_workers", "use_gpu"})
    params["dataset_fingerprint"] = dataset.fingerprint
    client.log_text(run_id, storage.read_all(join(config.dataset, MANIFEST)).decode(), f"dataset/{MANIFEST}")
    card = dataset_card(config.dataset, dataset, storage, balance)
    client.log_text(run_id, card, f"dataset/{CARD}")
    people = read_people(config.dataset, dataset, storage) | _people_of_start(config, storage)
    client.log_text(run_id, "\n".join(sorted(people)), f"dataset/{PEOPLE}")
    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in params.items()])


def _with_starting_weights(config: TrainConfig, task: Task, client: MlflowClient, storage: Storage) -> TrainConfig:
    """The weights of a scorer in the registry as a file beside the checkpoints, where every worker finds them."""
    weights = config.recipe.weights
    if weights in ("none", "imagenet"):
        return config
    uri = storage.absolute(weights)
    if not weights.endswith(".safetensors"):
        uri = join(config.storage, config.name, "start.safetensors")
        if not storage.exists(uri):  # a resumed run starts from what it started from, whoever is champion by now
            found = registry.resolve(client, weights, task=task.name)
            if found.scorer.manifest.backbone != config.recipe.backbone:
                raise UserError(
                    f"weights {weights} are of backbone {found.scorer.manifest.backbone}, the recipe has "
                    f"{config.recipe.backbone}: give the same"
                )
            people = None if found.run_id is None else registry.read_artifact(client, found.run_id, f"dataset/{PEOPLE}")
            storage.put(f"{uri}.{PEOPLE}", (UNKNOWN_PEOPLE if people is None else people).encode())
            storage.put_file(uri, found.directory / WEIGHTS_FILE)
    return config.model_copy(update={"recipe": config.recipe.model_copy(update={"weights": uri})})


def _people_of_start(config: TrainConfig, storage: Storage) -> set[str]:
    """Those whom the starting weights have seen: a scorer's own, and its ancestors'."""
    weights = config.recipe.weights
    if weights in ("none", "imagenet"):
        return set()
    try:
        return set(storage.read_all(f"{weights}.{PEOPLE}").decode().split())
    except ObjectNotFound:
        return {UNKNOWN_PEOPLE}


def _fit(
    config: TrainConfig,
    task: Task,
    dataset: DatasetManifest,
    balance: Balance | None,
    storage: Storage,
    tracking: TrackingSettings,
    run_id: str,
    *,
    callbacks: Sequence[Any] = (),
) -> None:
    filesystem, root = storage.arrow_filesystem(join(config.storage, "_ray"))
    # Ray's annotation leaves out the pair that its documentation and code take.
    workers: Any = (config.min_workers, config.num_workers) if config.min_workers else config.num_workers
    steady: Any = {"label_selector": STEADY}  # likewise
    training = training_resources(config, dataset)
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "worker": WorkerConfig(
                train=config,
                tracking=tracking,
                mlflow_run_id=run_id,
                train_parts=part_uris(config.dataset, dataset, "train"),
                validation_parts=part_uris(config.dataset, dataset, "val"),
                balance=balance,
                storage=storage.settings,
                input=input_config(config.recipe, dataset),
                is_resident=training.is_resident,
            )
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=config.use_gpu,
            resources_per_worker={
                "CPU": config.cpus_per_worker,
                "memory": training.memory_bytes,
                **({"GPU": 1} if config.use_gpu else {}),
            },
            # A lost worker costs all of them the steps since the last checkpoint.
            **steady,
        ),
        run_config=ray.train.RunConfig(
            # The checkpoints are our own: Ray's folder holds its bookkeeping alone, anew for each attempt.
            name=f"{config.name.replace('/', '-')}-{secrets.token_hex(4)}",
            storage_path=root,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            callbacks=list(callbacks),
        ),
    )
    checkpoints = Checkpoints(config.storage, config.name, storage)
    checkpoints.start()
    try:
        trainer.fit()
    except (ray.train.WorkerGroupError, ray.train.ControllerError) as error:
        if (why := checkpoints.stopped()) is not None:
            raise UserError(f"run {config.name}: {why}") from error
        if stopped_for_memory(error):
            raise UserError(
                f"run {config.name}: Ray stopped a worker because its node ran out of memory; the last checkpoint is "
                "kept. Go on under the same name with fewer --workers on a node or on larger nodes, or begin a new "
                "run (--name) with a lower batch_size or resident_bytes"
            ) from error
        raise
    if (why := checkpoints.stopped()) is not None:
        raise UserError(f"run {config.name}: {why}")


def stopped_for_memory(error: ray.train.WorkerGroupError | ray.train.ControllerError) -> bool:
    """Whether Ray stopped a worker, or an actor of its own beside it, to save the node."""
    if isinstance(error, ray.train.ControllerError):
        return isinstance(error.controller_failure, ray.exceptions.OutOfMemoryError)
    failures = error.worker_failures.values()
    return any(isinstance(failure, ray.exceptions.OutOfMemoryError) for failure in failures)


def input_config(recipe: Recipe, dataset: DatasetManifest) -> InputConfig:
    """Size and normalisation of the network's input."""
    if recipe.normalise == "imagenet":
        return InputConfig(size=recipe.input_size, mirror=recipe.mirror)
    train = dataset.splits["train"]
    std = train.std if recipe.normalise == "dataset" else (1.0, 1.0, 1.0)
    return InputConfig(size=recipe.input_size, mean=train.mean, std=std, mirror=recipe.mirror)


def _balance(config: TrainConfig, task: Task, dataset: DatasetManifest) -> Balance | None:
    recipe = config.recipe
    if recipe.per_class is None:
        return None
    label = recipe.balance_by or (task.label_columns[0] if len(task.label_columns) == 1 else None)
    if label not in task.label_columns:
        said = f"--balance-by {label} is none of them" if label else "say which one with --balance-by"
        raise UserError(f"{task.name} has the labels {', '.join(task.label_columns)}: {said}")
    counts = dataset.splits["train"].classes[label]
    if not counts:
        raise UserError(f"{config.dataset} has no crop with the label {label} in its training split")
    if recipe.per_class * len(counts) < recipe.batch_size:
        raise UserError(
            f"{recipe.per_class} crops of each of {len(counts)} classes are fewer than a step takes "
            f"({recipe.batch_size}): raise --per-class, or lower the batch size"
        )
    return Balance(label, recipe.per_class, counts)


def _record_uri(config: TrainConfig) -> str:
    return join(config.storage, f"{config.name}.json")


def _open_record(config: TrainConfig, storage: Storage) -> RunState:
    """The run of this name; with other options it would silently hand out the old run's weights."""
    try:
        record = RunState.model_validate_json(storage.read_all(_record_uri(config)))
    except ObjectNotFound:
        return RunState(config=config)
    except ValidationError as error:
        raise UserError(
            f"{_record_uri(config)} is no record of a run of this version: choose another --name"
        ) from error
    # On more or fewer machines it is the same run, and where the same steps are computed or kept in another way.
    place: dict[str, Any] = dict.fromkeys(
        ("num_workers", "min_workers", "cpus_per_worker", "use_gpu", "max_failures", "checkpoint_every_steps"), True
    )
    place["recipe"] = {"accumulate", "precision"}
    if record.config.model_dump(exclude=place) != config.model_dump(exclude=place):
        raise UserError(
            f"a run named {config.name!r} with other options exists in {config.storage}; "
            "choose another --name, or repeat its options to resume it"
        )
    return record.model_copy(update={"config": config})


def _write_record(config: TrainConfig, record: RunState, storage: Storage) -> None:
    storage.put(_record_uri(config), record.model_dump_json(indent=2).encode())


def _earlier_result(client: MlflowClient, task: Task, record: RunState) -> TrainResult:
    assert record.version is not None
    assert record.mlflow_run_id is not None
    found = registry.resolve(client, record.version, task=task.name)
    return TrainResult(record.version, found.scorer.digest, record.mlflow_run_id, found.scorer.manifest)


def _build_scorer(
    directory: Path,
    config: TrainConfig,
    task: Task,
    dataset: DatasetManifest,
    storage: Storage,
) -> ScorerManifest:
    checkpoints = Checkpoints(config.storage, config.name, storage)
    state = checkpoints.load(BEST)
    assert state is not None, "a finished run has a best epoch"
    last = checkpoints.load(LAST)
    assert last is not None, "it has a last one too"
    ordinal = config.recipe.loss in task.ordinal_losses
    network = build_network(config.recipe.backbone, task.heads, dropout=config.recipe.dropout, ordinal=ordinal)
    network.load_state_dict(state["network"])
    targets, logits = state["targets"].numpy(), state["logits"]
    calibration = fit_calibration(task, logits, targets)
    manifest = ScorerManifest(
        task=task.name,
        heads=task.heads,
        backbone=config.recipe.backbone,
        ordinal=ordinal,
        input=input_config(config.recipe, dataset),
        frame_policy=dataset.frame_policy,
        face_policy=dataset.face_policy,
        calibration=calibration,
        metrics=task.metrics(calibration.probabilities(logits), targets),
        baseline_metrics=task.baseline_metrics(read_targets(config.dataset, dataset, task, storage), targets),
        dataset_fingerprint=dataset.fingerprint,
        code_version=code_version(),
        training=TrainingSummary(
            num_epochs=config.recipe.epochs,
            best_epoch=int(state["epoch"]),
            num_train_rows=dataset.num_crops["train"],
            num_val_rows=len(targets),
            recipe=config.recipe.flat() | {"num_workers": config.num_workers},
            curves={name: tuple(values) for name, values in last.get("curves", {}).items()},
        ),
    )
    save_scorer(directory, network, manifest)
    return manifest


def print_result(result: TrainResult) -> None:
    """The scorer's metrics beside the trivial baseline's."""
    manifest = result.manifest
    table = Table(
        title=f"{registry.model_name(manifest.task)} version {result.version}, digest {result.digest[:12]}, "
        f"best epoch {manifest.training.best_epoch + 1} of {manifest.training.num_epochs}, "
        f"{manifest.training.num_val_rows} validation crops"
    )
    table.add_column("metric")
    table.add_column("scorer", justify="right")
    table.add_column("trivial baseline", justify="right")
    heads = [head.name for head in manifest.heads] if len(manifest.heads) > 1 else []
    for name, value in manifest.metrics.items():
        # With many heads the means are shown; each head's figures are in MLflow and in the model card.
        if not name.endswith(tuple(f"_{head}" for head in heads)) or name.startswith("f1_macro_"):
            table.add_row(name, f"{value:.4f}", f"{manifest.baseline_metrics[name]:.4f}")
    console.print(table)
