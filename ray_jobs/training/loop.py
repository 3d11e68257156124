"""What every training worker runs: a plain PyTorch loop that goes on from the last checkpoint, at any step."""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from infra.errors import UserError
from infra.storage import Storage
from models.calibration import fit_calibration
from models.network import Network, answer, build_network
from models.tasks.base import get_task
from models.transforms import InputConfig, to_input, to_training_input
from ray_jobs.training.checkpoint import BEST, LAST, Checkpoints
from ray_jobs.training.config import WorkerConfig
from ray_jobs.training.learning import (
    Mixed,
    make_average,
    make_optimizer,
    make_schedule,
    memory_format,
    mix,
    resolve_precision,
)
from ray_jobs.training.reader import Batch, CropReader, Pair, read_validation
from ray_jobs.training.run_log import RunLog, Untold

VALIDATION_BATCH = 256


class CannotGoOn(Exception):
    """Training again from the last checkpoint would end here again."""


def train(worker: WorkerConfig) -> None:
    """Train to the end of the recipe, from where the run's last checkpoint is; rank 0 saves and logs."""
    checkpoints = Checkpoints(worker.train.storage, worker.train.name, Storage(worker.storage))
    if checkpoints.stopped() is not None:
        return
    try:
        _Training(worker).run()
    except (CannotGoOn, UserError, torch.OutOfMemoryError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):  # outside of a step
            words = " ".join(str(error).split())[:200]
            error = CannotGoOn(
                f"out of memory ({words}): go on under the same name with more workers, which share the validation "
                "crops, or begin a new run (--name) with a lower batch_size or input_size"
            )
        if str(error):
            checkpoints.stop(str(error))
        for _ in range(300):  # the worker that knows what is wrong is about to write it down
            if checkpoints.stopped() is not None:
                break
            time.sleep(0.1)
        if ray.train.get_context().get_world_size() > 1:
            raise error from None  # others may wait for this one: Ray starts them all again, and they find the note


class _Step(NamedTuple):
    """What a step left behind, on the device."""

    batch: Batch
    loss: torch.Tensor
    norm: torch.Tensor


class _Training:
    def __init__(self, worker: WorkerConfig) -> None:
        context = ray.train.get_context()
        self._worker, self._recipe = worker, worker.train.recipe
        self._rank, self._world = context.get_world_rank(), context.get_world_size()
        self._device = ray.train.torch.get_device()
        self._precision = resolve_precision(self._recipe.precision, self._device)
        self._format = memory_format(self._device, self._precision)
        self._task = get_task(worker.train.task)
        self._loss = partial(self._task.loss, kind=self._recipe.loss, label_smoothing=self._recipe.label_smoothing)
        storage = Storage(worker.storage)
        self._checkpoints = Checkpoints(worker.train.storage, worker.train.name, storage)
        self._reader = CropReader(
            worker.train_parts,
            storage,
            self._task,
            worker.balance,
            batch_size=self._recipe.batch_size,
            rank=self._rank,
            world=self._world,
            seed=self._recipe.seed,
            resident=worker.is_resident,
            num_decoders=worker.train.cpus_per_worker,
        )
        self._validation = read_validation(
            worker.validation_parts, storage, self._task, rank=self._rank, world=self._world
        )
        torch.manual_seed(self._recipe.seed)
        with local_weights(self._recipe.weights, storage) as weights:
            network = build_network(
                self._recipe.backbone,
                self._task.heads,
                weights=weights,
                dropout=self._recipe.dropout,
                ordinal=self._recipe.loss in self._task.ordinal_losses,
                input_size=self._recipe.input_size,
            )
        self._network: Network = network.to(self._device).to(memory_format=self._format)
        self._optimizer = make_optimizer(self._network, self._recipe)
        self._schedule = make_schedule(self._optimizer, self._recipe, self._reader.steps_per_epoch)
        self._average = make_average(self._network, self._recipe, lambda: self._schedule.last_epoch)
        self._epoch, self._step = 0, 0  # the next step to make
        self._loss_sum, self._num_losses = 0.0, 0  # of the epoch so far
        self._curves: dict[str, list[float]] = {"loss": [], self._task.best_metric: []}
        self._best: float | None = None
        self._best_epoch = -1
        self._untold: list[Untold] = []
        self._resume()
        self._model: nn.Module = ray.train.torch.prepare_model(self._network)
        if self._recipe.compile:
            self._model.compile()
        tags = {"precision": str(self._precision).removeprefix("torch.")}
        self._log = RunLog(worker, self._untold, tags) if self._rank == 0 else None

    def run(self) -> None:
        """All epochs that are left."""
        with self._log or contextlib.nullcontext():
            while self._epoch < self._recipe.epochs and not self._is_stale():
                figures = self._train_epoch()
                self._end_epoch(figures)

    def _is_stale(self) -> bool:
        patience = self._recipe.patience
        return patience is not None and self._epoch - 1 - self._best_epoch >= patience and self._step == 0

    def _train_epoch(self) -> dict[str, float]:
        """The rest of the epoch."""
        self._model.train()
        if self._epoch < self._recipe.freeze_epochs:
            self._network.backbone.eval()  # what is frozen keeps its batch norms' statistics too
        losses: list[_Step] = []
        num_crops, waited_s = 0, 0.0
        start = mark = time.perf_counter()
        for batch in self._reader.epoch(self._epoch, self._step):
            waited_s += time.perf_counter() - mark
            losses.append(_Step(batch, *self._train_step(batch)))
            num_crops += batch.num_rows
            self._step = batch.step + 1
            is_last = self._step == self._reader.steps_per_epoch
            is_due = self._step % self._worker.train.checkpoint_every_steps == 0 and not is_last
            if is_due or is_last or len(losses) == self._worker.train.log_every_steps:
                mean = self._checked_mean(losses)
                self._loss_sum += mean * len(losses)
                self._num_losses += len(losses)
                self._log_steps(mean)
                losses.clear()
            if is_due:
                self._save_last()
            mark = time.perf_counter()
        elapsed_s = time.perf_counter() - start
        return {
            "loss": self._loss_sum / max(self._num_losses, 1),
            "train_crops_per_s": num_crops / elapsed_s,
            "reader_wait_share": waited_s / elapsed_s,
        }

    def _train_step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of the optimizer; the loss of this worker's part of it, and the norm of all workers' gradient."""
        recipe = self._recipe
        global_step = self._epoch * self._reader.steps_per_epoch + batch.step
        # Every draw of a step follows from its number, so that a resumed run repeats it.
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + global_step)
        torch.manual_seed(recipe.seed * 1_000_003 + global_step)  # dropout
        images = to_training_input(
            batch.crops.to(self._device, non_blocking=True),
            self._worker.input,
            recipe.augmentation,
            generator,
            num_images=batch.num_rows,
            part=slice(self._rank, None, self._world),
        )
        images, mixed = mix(images, recipe, generator)
        images = images.contiguous(memory_format=self._format)
        targets = batch.targets.to(self._device, non_blocking=True)
        self._optimizer.zero_grad(set_to_none=True)
        # Gradients are averaged over workers: each counts by its share of the step's rows.
        weight = len(targets) * self._world / batch.num_rows
        total = torch.zeros((), device=self._device)
        try:
            for chosen in torch.arange(len(targets)).tensor_split(min(recipe.accumulate, len(targets))):
                is_last = int(chosen[-1]) == len(targets) - 1
                with self._autocast(), self._no_sync(is_last):
                    loss = self._part_loss(images, targets, mixed, chosen) * (len(chosen) / len(targets))
                    (loss * weight).backward()
                total += loss.detach()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise CannotGoOn(
                f"out of memory on {self._device} at epoch {self._epoch}, step {batch.step}, with {len(targets)} crops "
                f"of {recipe.input_size} pixels on a worker: raise accumulate or the workers and go on under the same "
                "name, or begin a new run (--name) with a lower batch_size or input_size"
            ) from error
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), recipe.clip_norm).detach()
        self._optimizer.step()
        self._schedule.step()
        if self._average is not None:
            self._average.update_parameters(self._network)
        return total, norm

    def _part_loss(
        self,
        images: torch.Tensor,
        targets: torch.Tensor,
        mixed: Mixed | None,
        chosen: torch.Tensor,
    ) -> torch.Tensor:
        logits = self._model(images[chosen])
        loss: Callable[..., torch.Tensor] = self._loss
        if mixed is None:
            return loss(logits, targets[chosen])
        others = targets[mixed.order][chosen]
        return mixed.share * loss(logits, targets[chosen]) + (1 - mixed.share) * loss(logits, others)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=self._precision, enabled=self._precision != torch.float32)

    def _no_sync(self, is_last: bool) -> Any:
        """Gradients of the parts of a step travel once, with the last."""
        no_sync = getattr(self._model, "no_sync", None)
        return contextlib.nullcontext() if is_last or no_sync is None else no_sync()

    def _sum(self, value: float) -> float:
        """Over all workers."""
        if self._world == 1:
            return value
        total = torch.tensor(value, device=self._device)
        dist.all_reduce(total)
        return float(total)

    def _checked_mean(self, losses: "list[_Step]") -> float:
        """Mean loss; one look at the device for many steps.

        Raises:
            CannotGoOn: One is not finite, or its gradient.
        """
        values = torch.stack([step.loss for step in losses]).cpu()
        # The norm is of the sum of the workers' gradients: by it all of them know the step, by the loss one knows its
        # own batch.
        finite = torch.isfinite(values) & torch.isfinite(torch.stack([step.norm for step in losses]).cpu())
        if self._sum(float(not finite.all())):
            first = losses[int((~finite).int().argmax())]
            is_own = not math.isfinite(first.loss)
            num_own = self._sum(float(is_own))
            if not is_own and (num_own or self._rank):
                raise CannotGoOn("")  # another worker says which batch it was
            batch = first.batch
            names = ", ".join(list(dict.fromkeys(self._reader.names(batch.rows)))[:5])
            other = "" if self._precision == torch.float32 else "go on from it with --set precision=float32, or "
            raise CannotGoOn(
                f"the loss or its gradient is not finite at epoch {self._epoch}, step {batch.step} (videos {names}, "
                f"…): the last checkpoint is kept; {other}begin a new run (--name) with a lower learning_rate"
            )
        mean = values.mean()
        if self._world > 1:
            mean = mean.to(self._device)
            dist.all_reduce(mean)
            mean /= self._world
        return float(mean)

    def _end_epoch(self, figures: dict[str, float]) -> None:
        if self._world > 1:
            # Each worker's batch norm has statistics of its own rows; what is validated is what is saved, worker 0's.
            for buffer in self._validated().buffers():
                dist.broadcast(buffer, 0)
        logits, targets = validate(
            self._validated(), self._validation, self._worker.input, device=self._device, world=self._world
        )
        if not all(torch.isfinite(values).all() for values in logits.values()):
            raise CannotGoOn(
                f"the network's answers on the validation split are not finite after epoch {self._epoch}: the last "
                "checkpoint is kept; begin a new run (--name) with a lower learning_rate, or with precision float32"
            )
        # As the scorer of this epoch would answer: a temperature moves an expectation.
        calibration = fit_calibration(self._task, logits, targets.numpy())
        metrics = self._task.metrics(calibration.probabilities(logits), targets.numpy())
        value, sign = metrics[self._task.best_metric], 1 if self._task.higher_is_better else -1
        is_better = self._best is None or sign * value > sign * self._best
        if is_better:
            self._best, self._best_epoch = value, self._epoch
        for name, curve in self._curves.items():
            curve.append((metrics | figures)[name])
        epoch = self._epoch
        self._epoch, self._step = self._epoch + 1, 0
        self._loss_sum, self._num_losses = 0.0, 0
        if self._log is not None:
            if is_better:
                state: dict[str, Any] = {
                    "network": self._validated().state_dict(),
                    "logits": logits,
                    "targets": targets,
                }
                self._checkpoints.save(BEST, state | {"epoch": epoch})
            self._log.epoch(metrics | figures, epoch)
            self._save_last()
        best = {f"best_{self._task.best_metric}": self._best}
        ray.train.report({**metrics, **best, "loss": figures["loss"], "epoch": epoch})

    def _validated(self) -> Network:
        """The network that is validated and kept: the averaged one, where there is one."""
        if self._average is None:
            return self._network
        assert isinstance(self._average.module, Network)
        return self._average.module

    def _log_steps(self, loss: float) -> None:
        if self._log is not None:
            step = self._epoch * self._reader.steps_per_epoch + self._step
            self._log.steps({"train_loss": loss, "learning_rate": float(self._schedule.get_last_lr()[-1])}, step)

    def _save_last(self) -> None:
        if self._log is None:
            return
        untold = self._log.flush()
        self._checkpoints.save(
            LAST,
            {
                "untold": untold,
                "network": self._network.state_dict(),
                "average": None if self._average is None else self._average.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.last_epoch,
                "epoch": self._epoch,
                "step": self._step,
                "loss_sum": self._loss_sum,
                "num_losses": self._num_losses,
                "best": self._best,
                "best_epoch": self._best_epoch,
                "curves": self._curves,
            },
        )

    def _resume(self) -> None:
        state = self._checkpoints.load(LAST, self._device)
        if state is None:
            return
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._schedule.last_epoch = state["schedule"]
        self._epoch, self._step = state["epoch"], state["step"]
        self._loss_sum, self._num_losses = state["loss_sum"], state["num_losses"]
        self._best, self._best_epoch = state["best"], state["best_epoch"]
        # None of a run that an earlier version began.
        self._curves, self._untold = state.get("curves", {}), state.get("untold", [])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Of a GPU, which has a class of its own, or of the CPU's allocator, which has words alone."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def local_weights(weights: str, storage: Storage) -> Iterator[str]:
    """Starting weights as `build_network` takes them: those of storage as a local file, for the moment of loading."""
    if weights in ("none", "imagenet"):
        yield weights
        return
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(storage.read_all(weights))
        file.flush()
        yield file.name


@torch.inference_mode()
def validate(
    network: Network, rows: Pair, input_config: InputConfig, *, device: torch.device, world: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Logits (head -> float[n, C]) and targets (int64[n, H]) of the whole validation split, on every worker.

    Each worker computes the rows rank, rank + world, …; together they are each row once, in one order.
    """
    network.eval()
    crops, targets = rows
    batches = [
        answer(network, to_input(batch.to(device), input_config), mirror=input_config.mirror)
        for batch in crops.split(VALIDATION_BATCH)
        if len(batch)
    ]
    logits = {head.name: torch.cat([b[head.name].float().cpu() for b in batches]) for head in network.heads if batches}
    if world == 1:
        return logits, targets
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, (logits, targets))
    with_rows = [part for part in gathered if len(part[1])]
    # Row by row in turn, as the workers took them: the order does not depend on their number.
    order = np.argsort(
        np.concatenate([np.arange(len(part[1])) * world + rank for rank, part in enumerate(gathered)]), kind="stable"
    )
    return (
        {head.name: torch.cat([part[0][head.name] for part in with_rows])[order] for head in network.heads},
        torch.cat([part[1] for part in with_rows])[order],
    )
