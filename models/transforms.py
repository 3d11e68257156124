"""From crops to network input: one function for training, evaluation and scoring, and augmentation for training."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

Crops = torch.Tensor | npt.NDArray[Any]


class InputConfig(BaseModel):
    """How a crop becomes the network's input. Defaults: what torchvision's ImageNet weights were trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=224, ge=16, le=1024, description="Side of the square network input, in pixels.")
    mean: tuple[float, float, float] = Field(
        default=(0.485, 0.456, 0.406), description="Subtracted from R, G, B, on the scale 0 to 1."
    )
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        default=(0.229, 0.224, 0.225), description="R, G, B are divided by it after the mean, on the scale 0 to 1."
    )
    mirror: bool = Field(
        default=False, description="Answer with the mean of a crop's logits and its mirror image's: twice the work."
    )


class AugmentConfig(BaseModel):
    """How much training crops are varied, each crop on its own.

    Only what leaves every label true: no change of hue and little of saturation, since hair colour is a label; small
    turns and shifts, since crops are aligned; small erased squares, so that an earring or a mouth is rarely lost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: float = Field(default=0.5, ge=0, le=1, description="Probability of mirroring left and right.")
    rotation_deg: float = Field(default=8.0, ge=0, le=45, description="Largest turn to either side, in degrees.")
    shift: float = Field(default=0.04, ge=0, le=0.5, description="Largest shift along x and y, as a share of the side.")
    scale: float = Field(default=0.08, ge=0, lt=1, description="Largest relative change of size.")
    brightness: float = Field(default=0.15, ge=0, lt=1, description="Largest relative change of brightness.")
    contrast: float = Field(default=0.15, ge=0, lt=1, description="Largest relative change of contrast.")
    saturation: float = Field(default=0.1, ge=0, lt=1, description="Largest relative change of saturation.")
    erase: float = Field(default=0.25, ge=0, le=1, description="Probability of erasing a square.")
    erase_side: float = Field(
        default=0.25, gt=0, lt=1, description="Largest side of the erased square, as a share of the crop's side."
    )


def as_tensor(crops: Crops) -> torch.Tensor:
    """Crops as a tensor, copied only where they are a read-only array, as Arrow's are (torch takes no such memory)."""
    if isinstance(crops, torch.Tensor):
        return crops
    return torch.from_numpy(np.require(crops, requirements=["C", "W"]))


def to_input(crops: Crops, config: InputConfig) -> torch.Tensor:
    """Network input float32[n, 3, size, size] of crops uint8[n, S, S, 3], on the crops' device, channels last.

    Resized (bilinear, antialiased) in float32, so that CPU and GPU agree; then scaled to 0-1 and normalised.
    """
    return _normalised(_resized(crops, config.size), config)


def to_training_input(
    crops: Crops,
    config: InputConfig,
    augmentation: AugmentConfig,
    generator: torch.Generator,
    *,
    num_images: int | None = None,
    part: slice = slice(None),
) -> torch.Tensor:
    """Like ``to_input``, with every crop varied at random before normalising; for the arguments see `augment`."""
    images = _resized(crops, config.size)
    return _normalised(augment(images, augmentation, generator, num_images=num_images, part=part), config)


def augment(
    images: torch.Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    *,
    num_images: int | None = None,
    part: slice = slice(None),
) -> torch.Tensor:
    """Images float32[n, 3, H, W] in 0-1, each varied by its own random draw; same shape, range and device.

    Not ``torchvision.transforms.v2``: its transforms draw once for a whole batch, and from the global generator only,
    so that one crop at a time would have to be launched and a resumed run could not repeat its draws.

    Args:
        images: The batch.
        config: The largest changes.
        generator: On the CPU, whatever the images' device, so that every device sees the same draws.
        num_images: Images of the whole batch, of which these are a part; None: these are all.
        part: Which of them these are. An image's draws do not depend on how a batch is shared among workers.
    """
    num_drawn = len(images) if num_images is None else num_images

    def uniform(low: float, high: float) -> torch.Tensor:
        return (torch.rand(num_drawn, generator=generator) * (high - low) + low)[part]

    # Every number is drawn on every call, used or not: a changed option leaves the other draws as they were.
    mirrored = uniform(0, 1) < config.flip
    angle_rad = uniform(-config.rotation_deg, config.rotation_deg) * (math.pi / 180)
    zoom = uniform(1 - config.scale, 1 + config.scale)
    # affine_grid's coordinates run from -1 to 1, so a share of the side is twice as much there.
    shift_x, shift_y = uniform(-2 * config.shift, 2 * config.shift), uniform(-2 * config.shift, 2 * config.shift)
    brightness, contrast, saturation = (
        uniform(1 - change, 1 + change) for change in (config.brightness, config.contrast, config.saturation)
    )
    erased = uniform(0, 1) < config.erase
    half_side = uniform(0, config.erase_side)
    center_x, center_y = uniform(-1, 1), uniform(-1, 1)

    cos, sin = torch.cos(angle_rad) / zoom, torch.sin(angle_rad) / zoom
    sign = torch.where(mirrored, -1.0, 1.0)
    affine = torch.stack([torch.stack([cos * sign, -sin, shift_x], 1), torch.stack([sin * sign, cos, shift_y], 1)], 1)
    images = _warped(images, affine)
    images = _jittered(images, brightness, contrast, saturation)
    return _erased(images, torch.where(erased, half_side, 0.0), center_x, center_y)


def _resized(crops: Crops, size: int) -> torch.Tensor:
    tensor = as_tensor(crops)
    assert tensor.dtype == torch.uint8, f"crops are uint8, got {tensor.dtype}"
    assert tensor.shape[1:] == (*tensor.shape[1:2] * 2, 3), f"crops are [n, S, S, 3], got {tuple(tensor.shape)}"
    # The permuted view of [n, S, S, 3] is channels last already: no copy.
    images = tensor.permute(0, 3, 1, 2).float().div_(255)
    if len(images) and images.shape[2:] != (size, size):
        return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return images if len(images) else images.new_empty(0, 3, size, size)


def _normalised(images: torch.Tensor, config: InputConfig) -> torch.Tensor:
    """In place: the images are the copy that resizing or augmentation made."""
    mean = torch.tensor(config.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(config.std, device=images.device).view(1, 3, 1, 1)
    return images.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def _warped(images: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    grid = F.affine_grid(affine.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _jittered(
    images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor
) -> torch.Tensor:
    # Brightness b scales the image x; contrast c moves it from its mean luma, saturation s from its own luma L(x), as
    # torchvision's colour jitter does. All three are linear: s·c·b·x + (1 - s)·c·b·L(x) + (1 - c)·b·mean L(x).
    b, c, s = (values.view(-1, 1, 1, 1).to(images.device) for values in (brightness, contrast, saturation))
    red, green, blue = torch.split(images, 1, dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # Rec. 601
    grey = luma * ((1 - s) * c * b) + (1 - c) * b * luma.mean((2, 3), keepdim=True)
    return (images * (s * c * b)).add_(grey).clamp_(0, 1)


def _erased(
    images: torch.Tensor, half_side: torch.Tensor, center_x: torch.Tensor, center_y: torch.Tensor
) -> torch.Tensor:
    """Squares around the centres (coordinates -1 to 1, half a side in the same) set to the image's mean colour."""
    device = images.device
    x, y = (torch.linspace(-1, 1, length, device=device) for length in (images.shape[3], images.shape[2]))
    near_x = (x[None] - center_x[:, None].to(device)).abs() < half_side[:, None].to(device)
    near_y = (y[None] - center_y[:, None].to(device)).abs() < half_side[:, None].to(device)
    square = (near_y[:, :, None] & near_x[:, None, :])[:, None]
    return torch.where(square, images.mean((2, 3), keepdim=True), images)
