"""Named recipes: what was published, what we train with ourselves, and the demo's."""

from pathlib import Path
from typing import Any

import yaml

from infra.errors import UserError

# What was published says nothing of augmentation, clipping and Nesterov's momentum: those are the defaults.
_FS2K_PUBLISHED: dict[str, Any] = {
    "input_size": 256,
    "epochs": 20,
    "batch_size": 64,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": 0.0,
}

RECIPES: dict[str, dict[str, Any]] = {
    # Cross-entropy over 40 classes, answered as an expectation; mean subtraction; 1000 crops of each score an epoch.
    "attractiveness-published": {
        "backbone": "resnet50",
        "weights": "imagenet",
        "input_size": 224,
        "normalise": "dataset_mean",
        "epochs": 20,
        "batch_size": 64,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "weight_decay": 0.0005,
        "loss": "cross_entropy",
        "per_class": 1000,
    },
    "attractiveness-best": {
        "backbone": "resnet50",
        "weights": "imagenet",
        "input_size": 224,
        "epochs": 20,
        "batch_size": 64,
        "learning_rate": 5e-4,
        "backbone_factor": 0.2,
        "ema": 0.999,
        "loss": "label_distribution",
    },
    "fs2k-published-vgg16": {**_FS2K_PUBLISHED, "backbone": "vgg16"},
    "fs2k-published-resnet18": {**_FS2K_PUBLISHED, "backbone": "resnet18"},
    "fs2k-published-densenet121": {**_FS2K_PUBLISHED, "backbone": "densenet121", "weights": "imagenet"},
    # From scratch, one modality, within forty minutes of two CPU cores.
    "fs2k-best": {
        "backbone": "resnet18",
        "input_size": 112,
        "mirror": True,
        "epochs": 54,
        "batch_size": 32,
        "learning_rate": 3e-3,
        "warmup": 0.2,
        "ema": 0.995,
        "label_smoothing": 0.1,
        "augmentation": {
            "rotation_deg": 12.0,
            "shift": 0.05,
            "scale": 0.12,
            "brightness": 0.25,
            "contrast": 0.25,
            "saturation": 0.2,
            "erase_side": 0.35,
        },
    },
    "demo": {"backbone": "resnet18", "input_size": 48, "batch_size": 32, "warmup": 0.2},
}


def read_recipe(name: str | None) -> dict[str, Any]:
    """The fields that a recipe sets: of the name, or of a YAML file; none without a name.

    Raises:
        UserError: There is no such recipe, or the file is none.
    """
    if name is None:
        return {}
    if name in RECIPES:
        return dict(RECIPES[name])
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"there is no recipe {name!r}; known are {', '.join(RECIPES)}, or give a .yaml file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: the recipe cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of fields to values")
    return values
