"""A training run from the driver's side: data, workers, the best checkpoint, calibration, scorer, registration."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import ray.data
import ray.train
import ray.train.torch
import torch
from mlflow.entities import RunStatus
from rich.table import Table
from safetensors.torch import load_file

from infra.errors import UserError
from infra.settings import Settings, TrackingSettings
from infra.storage import Storage, join
from infra.tracking import absolute_uri, experiment_id, tracking_client
from models import registry
from models.calibration import fit_calibration
from models.network import build_network, check_backbone
from models.scorer import ScorerManifest, TrainingSummary, load_scorer, save_scorer
from models.tasks.base import Task, get_task
from models.transforms import InputConfig
from ray_jobs.cluster import connect
from ray_jobs.console import console
from ray_jobs.crops.dataset import CARD, MANIFEST, DatasetManifest, part_uris, read_manifest, read_targets
from ray_jobs.training.balance import Balance
from ray_jobs.training.config import TrainConfig, WorkerConfig
from ray_jobs.training.loop import STATE_FILE, VALIDATION_FILE
from ray_jobs.training.source import crops_dataset
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

    Raises:
        UserError: The dataset, backbone, weights or cluster are not usable; nothing was registered.
    """
    task = get_task(config.task)
    check_backbone(config.backbone)
    storage = Storage(settings.storage)
    # Workers run in directories of their own.
    config = config.model_copy(
        update={name: storage.absolute(getattr(config, name)) for name in ("dataset", "storage")}
    )
    dataset = read_manifest(config.dataset, storage)
    _check_dataset(config, task, dataset)
    balance = _balance(config, task, dataset)
    resources = connect(settings.cluster)
    needed = config.num_workers + 1
    if resources.get("CPU", 0) < needed or resources.get("GPU", 0) < config.num_workers * config.use_gpu:
        raise UserError(
            f"{config.num_workers} workers need {needed} CPUs"
            f"{f' and {config.num_workers} GPUs' if config.use_gpu else ''}, the cluster has "
            f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs: lower --workers or add nodes"
        )
    tracking = settings.tracking.model_copy(update={"uri": absolute_uri(settings.tracking.uri)})
    client = tracking_client(tracking)
    run = client.create_run(experiment_id(client, tracking), run_name=config.name, tags={"task": task.name})
    for name, value in config.model_dump(mode="json", exclude={"augmentation"}).items():
        client.log_param(run.info.run_id, name, value)
    client.log_param(run.info.run_id, "dataset_fingerprint", dataset.fingerprint)
    for name in (CARD, MANIFEST):
        client.log_text(run.info.run_id, storage.read_all(join(config.dataset, name)).decode(), f"dataset/{name}")
    status = RunStatus.FAILED
    try:
        result = _fit(config, task, dataset, balance, storage, tracking, run.info.run_id)
        with TemporaryDirectory(prefix="facereel-") as folder:
            directory = Path(folder) / "scorer"
            manifest = _build_scorer(directory, config, task, dataset, result, storage)
            version = registry.register(client, directory, run_id=run.info.run_id)
            digest = load_scorer(directory).digest
        status = RunStatus.FINISHED
    finally:
        client.set_terminated(run.info.run_id, RunStatus.to_string(status))
    return TrainResult(str(version.version), digest, run.info.run_id, manifest)


def _check_dataset(config: TrainConfig, task: Task, dataset: DatasetManifest) -> None:
    if task.name not in dataset.tasks:
        raise UserError(f"{config.dataset} has labels for {', '.join(dataset.tasks)}, not for {task.name!r}")
    for split in ("train", "val"):
        if not dataset.num_crops.get(split):
            raise UserError(f"{config.dataset} has no crop in the split {split!r}; it needs more videos or creators")
    if dataset.num_crops["train"] < config.num_workers:
        raise UserError(f"{config.dataset} has fewer training crops than there are workers ({config.num_workers})")


def _fit(
    config: TrainConfig,
    task: Task,
    dataset: DatasetManifest,
    balance: Balance | None,
    storage: Storage,
    tracking: TrackingSettings,
    run_id: str,
) -> ray.train.Result:
    filesystem, root = storage.arrow_filesystem(config.storage)
    _refuse_other_config(config, storage)

    train_parts = part_uris(config.dataset, dataset, "train")
    datasets: dict[str, ray.data.Dataset | Callable[[], ray.data.Dataset]] = {}
    if balance is None:
        parts = [storage.arrow_filesystem(uri) for uri in train_parts]
        paths = [path for _, path in parts]
        datasets["train"] = crops_dataset(paths, parts[0][0], task.name, tuple(task.label_columns))
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "worker": WorkerConfig(
                train=config,
                tracking=tracking,
                mlflow_run_id=run_id,
                num_train_rows=dataset.num_crops["train"],
                train_parts=train_parts,
                validation_parts=part_uris(config.dataset, dataset, "val"),
                balance=balance,
                storage=storage.settings,
                crop_bytes=_crop_bytes(dataset),
            )
        },
        scaling_config=ray.train.ScalingConfig(num_workers=config.num_workers, use_gpu=config.use_gpu),
        run_config=ray.train.RunConfig(
            name=config.name,
            storage_path=root,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=2,
                checkpoint_score_attribute=task.best_metric,
                checkpoint_score_order="max" if task.higher_is_better else "min",
            ),
        ),
        datasets=datasets,
    )
    return trainer.fit()


def _crop_bytes(dataset: DatasetManifest) -> int:
    return 3 * dataset.face_policy.crop_size**2


def _balance(config: TrainConfig, task: Task, dataset: DatasetManifest) -> Balance | None:
    if config.per_class is None:
        return None
    label = config.balance_by or (task.label_columns[0] if len(task.label_columns) == 1 else None)
    if label not in task.label_columns:
        said = f"--balance-by {label} is none of them" if label else "say which one with --balance-by"
        raise UserError(f"{task.name} has the labels {', '.join(task.label_columns)}: {said}")
    counts = dataset.splits["train"].classes[label]
    if not counts:
        raise UserError(f"{config.dataset} has no crop with the label {label} in its training split")
    if config.per_class * len(counts) < config.num_workers * config.batch_size:
        raise UserError(
            f"{config.per_class} crops of each of {len(counts)} classes are fewer than a step of {config.num_workers} "
            f"workers takes ({config.num_workers} x {config.batch_size}): raise --per-class, or lower the batch size"
        )
    if dataset.num_crops["train"] * _crop_bytes(dataset) > config.resident_bytes * config.num_workers:
        raise UserError(
            f"a balanced epoch keeps its crops in memory, and {dataset.num_crops['train']:,} crops do not fit in "
            f"{config.num_workers} workers of {config.resident_bytes / 1e9:.1f} GB: use more workers"
        )
    return Balance(label, config.per_class, counts)


def _refuse_other_config(config: TrainConfig, storage: Storage) -> None:
    """A run of the same name resumes; with other options it would silently hand out the old run's weights."""
    uri = join(config.storage, f"{config.name}.json")
    resolved = config.model_dump_json(indent=2).encode()
    if storage.exists(uri) and storage.read_all(uri) != resolved:
        raise UserError(
            f"a run named {config.name!r} with other options exists in {config.storage}; "
            "choose another --name, or repeat its options to resume it"
        )
    storage.put(uri, resolved)


def _build_scorer(
    directory: Path,
    config: TrainConfig,
    task: Task,
    dataset: DatasetManifest,
    result: ray.train.Result,
    storage: Storage,
) -> ScorerManifest:
    checkpoint = result.get_best_checkpoint(task.best_metric, "max" if task.higher_is_better else "min")
    assert checkpoint is not None, "a finished run has reported"
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE_FILE, map_location="cpu", weights_only=True)
        validation = load_file(Path(folder) / VALIDATION_FILE)
    network = build_network(config.backbone, task.heads, dropout=config.dropout)
    network.load_state_dict(state["network"])
    targets = validation.pop("targets").numpy()
    logits = {name.removeprefix("logits."): values for name, values in validation.items()}
    calibration = fit_calibration(task, logits, targets)
    manifest = ScorerManifest(
        task=task.name,
        heads=task.heads,
        backbone=config.backbone,
        input=InputConfig(size=config.input_size),
        frame_policy=dataset.frame_policy,
        face_policy=dataset.face_policy,
        calibration=calibration,
        metrics=task.metrics(calibration.probabilities(logits), targets),
        baseline_metrics=task.baseline_metrics(read_targets(config.dataset, dataset, task, storage), targets),
        dataset_fingerprint=dataset.fingerprint,
        code_version=code_version(),
        training=TrainingSummary(
            num_epochs=config.epochs,
            best_epoch=int(state["epoch"]),
            num_train_rows=dataset.num_crops["train"],
            num_val_rows=len(targets),
            recipe=config.model_dump(mode="json", include=_RECIPE),
        ),
    )
    save_scorer(directory, network, manifest)
    return manifest


_RECIPE = {
    "weights",
    "epochs",
    "batch_size",
    "num_workers",
    "learning_rate",
    "weight_decay",
    "dropout",
    "precision",
    "seed",
}


def code_version() -> str:
    """The commit of the working directory, or 'unknown' where there is none (a job's uploaded copy)."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def print_result(result: TrainResult) -> None:
    """The scorer's metrics beside the trivial baseline's."""
    manifest = result.manifest
    table = Table(
        title=f"{registry.model_name(manifest.task)} version {result.version}, digest {result.digest[:12]}, "
        f"best epoch {manifest.training.best_epoch} of {manifest.training.num_epochs}, "
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
