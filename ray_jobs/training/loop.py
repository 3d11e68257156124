"""What every training worker runs: a plain PyTorch loop, a checkpoint an epoch, metrics over all validation rows."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from infra.storage import Storage
from models.network import Network, build_network
from models.tasks.base import Task, get_task
from models.transforms import InputConfig, to_input, to_training_input
from ray_jobs.training.config import TrainConfig, WorkerConfig
from ray_jobs.training.reader import BalancedReader, Batch, TrainReader, read_validation

STATE_FILE = "state.pt"  # what resuming needs: network, optimizer, schedule, epoch
VALIDATION_FILE = "validation.safetensors"  # logits and targets of the validation split: what calibration needs


def train(worker: WorkerConfig) -> None:
    """Train on this worker's shard; rank 0 saves checkpoints and logs to MLflow."""
    config = worker.train
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    task = get_task(config.task)
    precision = resolve_precision(config.precision, device)
    if rank == 0:
        _log_tag(worker, "precision", str(precision).removeprefix("torch."))
    torch.manual_seed(config.seed)

    reader = _reader(worker, task, rank=rank, world=world)
    validation = read_validation(worker.validation_parts, Storage(worker.storage), task, rank=rank, world=world)
    network = build_network(
        config.backbone, task.heads, weights=config.weights, dropout=config.dropout, input_size=config.input_size
    )
    network = network.to(device).to(memory_format=memory_format(device, precision))
    model = ray.train.torch.prepare_model(network)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.learning_rate, total_steps=config.epochs * reader.steps_per_epoch, pct_start=0.2
    )
    first_epoch = _resume(network, optimizer, schedule, device)

    for epoch in range(first_epoch, config.epochs):
        start = time.perf_counter()
        loss = train_epoch(
            model, reader, task, config, optimizer, schedule, device=device, precision=precision, epoch=epoch, rank=rank
        )
        train_s = time.perf_counter() - start
        logits, targets = validate(network, validation, config, device=device, rank=rank, world=world)
        metrics = task.metrics({name: values.softmax(1).numpy() for name, values in logits.items()}, targets.numpy())
        metrics |= {
            "loss": loss,
            "epoch": epoch,
            "learning_rate": float(schedule.get_last_lr()[0]),
            "train_crops_per_s": world * reader.steps_per_epoch * config.batch_size / train_s,
        }
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                _save(Path(folder), network, optimizer, schedule, epoch, logits, targets)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)
        if rank == 0:
            _log(worker, metrics, epoch)


def _reader(worker: WorkerConfig, task: Task, *, rank: int, world: int) -> TrainReader | BalancedReader:
    config, seed = worker.train, worker.train.seed + 1000 * rank
    if worker.balance is not None:
        storage, size = Storage(worker.storage), config.batch_size
        return BalancedReader(
            worker.train_parts, storage, task, worker.balance, batch_size=size, rank=rank, world=world, seed=seed
        )
    shard_rows = worker.num_train_rows // world
    return TrainReader(
        ray.train.get_dataset_shard("train"),
        num_rows=shard_rows,
        batch_size=config.batch_size,
        resident=shard_rows * worker.crop_bytes <= config.resident_bytes,
        seed=seed,
    )


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type to compute in: ``auto`` is bfloat16 where the device computes it, else float32.

    A CPU without bfloat16 instructions falls back to a convolution several times slower than float32's.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("bf16"))  # x86, ARM
    return torch.bfloat16 if fast else torch.float32


def memory_format(device: torch.device, precision: torch.dtype) -> torch.memory_format:
    """Channels last, except for float32 on a CPU, whose backward pass is slower with it."""
    if device.type == "cpu" and precision == torch.float32:
        return torch.contiguous_format
    return torch.channels_last


def train_epoch(
    model: nn.Module,
    reader: TrainReader | BalancedReader,
    task: Task,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    *,
    device: torch.device,
    precision: torch.dtype,
    epoch: int,
    rank: int,
) -> float:
    """One pass over the shard; returns the mean loss."""
    model.train()
    input_config = InputConfig(size=config.input_size)
    generator = torch.Generator().manual_seed(config.seed + 7919 * epoch + 104729 * rank)
    total = torch.zeros((), device=device)
    for crops, targets in reader.epoch(epoch):
        images = to_training_input(crops.to(device), input_config, config.augmentation, generator)
        images = images.contiguous(memory_format=memory_format(device, precision))
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            loss = task.loss(model(images), targets.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.detach()
    return float(total / reader.steps_per_epoch)


@torch.inference_mode()
def validate(
    network: Network, rows: Batch, config: TrainConfig, *, device: torch.device, rank: int, world: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Logits (head -> float[n, C]) and targets (int64[n, H]) of the whole validation split, on every worker.

    Each worker computes the rows rank, rank + world, …; together they are each row once, in one order.
    """
    network.eval()
    crops, targets = rows
    input_config = InputConfig(size=config.input_size)
    batches = [network(to_input(batch.to(device), input_config)) for batch in crops.split(256)]
    logits = {head.name: torch.cat([b[head.name].float().cpu() for b in batches]) for head in network.heads if batches}
    if world == 1:
        return logits, targets
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, (logits, targets))
    with_rows = [part for part in gathered if len(part[1])]
    return (
        {head.name: torch.cat([part[0][head.name] for part in with_rows]) for head in network.heads},
        torch.cat([part[1] for part in with_rows]),
    )


def _resume(
    network: Network,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
) -> int:
    """Load the last checkpoint of this run, if there is one; returns the epoch to go on with."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE_FILE, map_location=device, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["epoch"]) + 1


def _save(
    folder: Path,
    network: Network,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
    logits: dict[str, torch.Tensor],
    targets: torch.Tensor,
) -> None:
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": epoch,
    }
    torch.save(state, folder / STATE_FILE)
    save_file(
        {f"logits.{name}": values for name, values in logits.items()} | {"targets": targets}, folder / VALIDATION_FILE
    )


def _log_tag(worker: WorkerConfig, name: str, value: str) -> None:
    from infra.tracking import tracking_client

    tracking_client(worker.tracking).set_tag(worker.mlflow_run_id, name, value)


def _log(worker: WorkerConfig, metrics: dict[str, Any], epoch: int) -> None:
    # Only rank 0 pays for importing MLflow.
    from mlflow.entities import Metric

    from infra.tracking import tracking_client

    now_ms = int(time.time() * 1000)
    values = [Metric(name, float(value), now_ms, epoch) for name, value in metrics.items() if np.isfinite(value)]
    tracking_client(worker.tracking).log_batch(worker.mlflow_run_id, metrics=values)
