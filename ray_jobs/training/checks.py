"""What must hold before a training starts: of the dataset, the recipe and the cluster."""

from infra.errors import UserError
from models.tasks.base import Task
from ray_jobs.crops.dataset import DatasetManifest
from ray_jobs.sizing import Cluster, Training, check_training
from ray_jobs.training.config import TrainConfig


def check_dataset(config: TrainConfig, task: Task, dataset: DatasetManifest) -> None:
    """Refuse a dataset that cannot be trained on with this recipe.

    Raises:
        UserError: It lacks the task's labels, a split, crops for a step, or a label in a split.
    """
    task.check_loss(config.recipe.loss)
    if task.name not in dataset.tasks:
        raise UserError(f"{config.dataset} has labels for {', '.join(dataset.tasks)}, not for {task.name!r}")
    for split in ("train", "val"):
        if not dataset.num_crops.get(split):
            raise UserError(f"{config.dataset} has no crop in the split {split!r}; it needs more videos or creators")
    if config.recipe.batch_size < config.num_workers:
        raise UserError(f"batch_size {config.recipe.batch_size} is less than a crop for each of {config.num_workers}")
    if dataset.num_crops["train"] < config.recipe.batch_size:
        raise UserError(
            f"{config.dataset} has {dataset.num_crops['train']} training crops, fewer than a step takes "
            f"(batch_size {config.recipe.batch_size}): lower it"
        )
    if (config.min_workers or 1) > config.num_workers:
        raise UserError(f"at least {config.min_workers} and at most {config.num_workers} workers: give --workers 2:8")
    for split, what in (("train", "training"), ("val", "validation")):
        for name in task.label_columns:
            if not dataset.splits[split].classes[name]:
                raise UserError(f"{config.dataset} has no {what} crop with the label {name}")


def missing_classes(task: Task, dataset: DatasetManifest) -> list[str]:
    """A line for each head and split without a crop of some class: it is not learned there, or not measured."""
    lines = []
    for head in task.heads:
        for split, what in (("train", "learned"), ("val", "measured")):
            found = dataset.splits[split].classes[head.name]
            missing = [str(value) for value in head.classes if not found.get(str(value).lower())]
            if missing:
                shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
                lines.append(f"{head.name}: the split {split!r} has no crop of {shown}, which cannot be {what} there")
    return lines


def training_resources(config: TrainConfig, dataset: DatasetManifest) -> Training:
    """What the run asks of the cluster."""
    crop_bytes = 3 * dataset.face_policy.crop_size**2
    return Training(
        most=config.num_workers,
        least=config.min_workers or config.num_workers,
        cpus_per_worker=config.cpus_per_worker,
        use_gpu=config.use_gpu,
        crops_bytes=dataset.num_crops.get("train", 0) * crop_bytes,
        resident_bytes=config.resident_bytes,
        validation_bytes=dataset.num_crops.get("val", 0) * crop_bytes,
    )


def check_resources(training: Training, cluster: Cluster) -> None:
    """Refuse a cluster that never has the workers.

    Raises:
        UserError: Says what it lacks.
    """
    refusal = check_training(training, cluster)
    if refusal:
        raise UserError(refusal)
