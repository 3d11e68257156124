"""Optimizer, learning rates, averaged weights and precision, as a recipe says."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from models.network import Network
from ray_jobs.training.recipe import Recipe


def make_optimizer(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """Backbone and head as groups of their own; no weight decay on biases and normalisation."""
    groups = []
    for is_backbone in (True, False):
        for decays in (True, False):
            parameters = [
                parameter
                for name, parameter in network.named_parameters()
                if name.startswith("backbone.") == is_backbone and (parameter.ndim > 1) == decays
            ]
            factor = recipe.backbone_factor if is_backbone else 1.0
            decay = recipe.weight_decay if decays else 0.0
            groups.append({"params": parameters, "lr": recipe.learning_rate * factor, "weight_decay": decay})
    if recipe.optimizer == "sgd":
        is_nesterov = recipe.momentum > 0
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=is_nesterov)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rates by step: linear warm-up, then cosine to 0 or flat; 0 for a backbone that is frozen."""
    total = recipe.epochs * steps_per_epoch
    num_warmup = round(recipe.warmup * total)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        if recipe.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, total - num_warmup)))

    def frozen(step: int) -> float:
        return 0.0 if step < recipe.freeze_epochs * steps_per_epoch else factor(step)

    factors: list[Callable[[int], float]] = [frozen, frozen, factor, factor]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)


def make_average(network: Network, recipe: Recipe, num_steps: Callable[[], int]) -> AveragedModel | None:
    """The moving average of weights and buffers; None where the recipe wants none.

    The plain mean of all steps so far, until these are 1 / (1 - decay), and exponential from then on: with the decay
    alone the random first weights would make 0.999^1000, over a third, of what is kept after a thousand steps.

    Args:
        network: What is averaged.
        recipe: Of the training.
        num_steps: The steps so far, the one that is averaged included; torch's own count lies on the device, which
            would have to be waited for.
    """
    if not recipe.ema:
        return None

    def update(averages: PARAM_LIST, values: PARAM_LIST, num_averaged: torch.Tensor | int) -> None:
        get_ema_multi_avg_fn(min(recipe.ema, 1 - 1 / num_steps()))(averages, values, num_averaged)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


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


@dataclass(frozen=True, slots=True)
class Mixed:
    """Which other crop each crop of a batch was mixed with, and the share of its own."""

    order: torch.Tensor  # int64[n]
    share: float


def mix(images: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[torch.Tensor, Mixed | None]:
    """Images mixed with others of the batch, as the recipe says; None where it wants no mixing.

    Mixup blends them (Zhang et al., "mixup", 2018), CutMix pastes a rectangle (Yun et al., "CutMix", 2019). Not
    torchvision's, which draw from the global generator and take one-hot labels of one head.
    """
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(recipe, kind)]
    if not kinds or len(images) < 2:
        return images, None
    kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
    alpha: float = getattr(recipe, kind)
    # torch's Beta distribution takes no generator.
    share = np.random.default_rng(int(torch.randint(1 << 40, (), generator=generator))).beta(alpha, alpha)
    order = torch.randperm(len(images), generator=generator).to(images.device)
    if kind == "mixup":
        return share * images + (1 - share) * images[order], Mixed(order, share)
    height, width = images.shape[2:]
    center_y, center_x = torch.rand(2, generator=generator).tolist()
    half = math.sqrt(1 - share) / 2
    top, bottom = (round(height * min(max(center_y + side, 0), 1)) for side in (-half, half))
    left, right = (round(width * min(max(center_x + side, 0), 1)) for side in (-half, half))
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[order][:, :, top:bottom, left:right]
    return images, Mixed(order, 1 - (bottom - top) * (right - left) / (height * width))
