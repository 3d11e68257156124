"""A recipe: everything about learning that does not depend on the data's place or on the cluster."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infra.errors import UserError
from models.transforms import AugmentConfig


class Recipe(BaseModel):
    """How a scorer is trained; the resolved values are logged with the run and stand in the scorer's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    backbone: str = Field("resnet18", description="torchvision's name of the backbone.")
    weights: str = Field(
        "none", description="Starting weights: none, imagenet, a .safetensors file, or a scorer (models:/…, champion)."
    )
    input_size: int = Field(224, ge=16, le=1024, description="Side of the network input, pixels.")
    normalise: Literal["imagenet", "dataset", "dataset_mean"] = Field(
        "imagenet",
        description="Mean and deviation of each channel: ImageNet's, the training split's, or its mean alone.",
    )
    mirror: bool = Field(
        False, description="Validate and answer with the mean over a crop and its mirror image: twice the work."
    )
    epochs: int = Field(20, ge=1, description="Passes over the training split.")
    batch_size: int = Field(32, ge=1, description="Crops per step, over all workers.")
    accumulate: int = Field(1, ge=1, description="Parts in which a worker computes its share of a step: less memory.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with Nesterov momentum.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum.")
    weight_decay: float = Field(0.05, ge=0, description="Weight decay; none on biases and normalisation.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="After the warm-up: down to 0, or flat.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of all steps in which the learning rate rises from 0.")
    backbone_factor: float = Field(1.0, gt=0, le=1, description="The backbone's learning rate as a part of the head's.")
    freeze_epochs: int = Field(0, ge=0, description="First epochs in which the backbone does not learn.")
    clip_norm: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the averaged weights that are validated; 0: none.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Of cross-entropies.")
    mixup: float = Field(0.0, ge=0, description="Beta distribution's parameter of mixing two crops; 0: none.")
    cutmix: float = Field(
        0.0, ge=0, description="The same of pasting a part of another crop; with mixup: either, step by step."
    )
    loss: Literal["default", "cross_entropy", "label_distribution", "mean_variance", "corn"] = Field(
        "default", description="One of the task's losses; default: its first."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the last layer.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Type under autocast in training; auto: bfloat16 where the hardware computes it."
    )
    compile: bool = Field(False, description="torch.compile: pays on GPUs in long runs, needs a compiler there.")
    per_class: int | None = Field(
        None, ge=1, description="Crops of each class in an epoch, repeated or left out by rank; null: all, once."
    )
    balance_by: str | None = Field(None, description="The label whose classes per_class means; a task's only one.")
    patience: int | None = Field(None, ge=1, description="Epochs without a better one after which training ends.")
    augmentation: AugmentConfig = Field(default=AugmentConfig(), description="How training crops are varied.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of weights, order and augmentation.")

    def flat(self) -> dict[str, str | bool | int | float]:
        """Every field that is set, those of the augmentation as ``augmentation.FIELD``."""
        values = self.model_dump(mode="json")
        values |= {f"augmentation.{name}": value for name, value in values.pop("augmentation").items()}
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size < self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} is more than batch_size {self.batch_size}")
        return self


def resolve_recipe(name: str | None, overrides: dict[str, Any]) -> Recipe:
    """A named recipe, or one of a YAML file, with some fields replaced.

    Raises:
        UserError: There is no such recipe or field, or a value breaks its rule.
    """
    from ray_jobs.recipes import read_recipe

    return _validated(_merged(read_recipe(name), overrides))


def replaced(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    """The recipe with some fields replaced; a section's own fields stay where the overrides have none.

    Raises:
        UserError: There is no such field, or a value breaks its rule.
    """
    return _validated(_merged(recipe.model_dump(mode="json"), overrides))


def nested(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields by dotted name (``augmentation.flip``) as sections hold them."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        *sections, field = name.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[field] = value
    return found


def _merged(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in overrides.items():
        within = merged.get(name)
        merged[name] = _merged(within, value) if isinstance(within, dict) and isinstance(value, dict) else value
    return merged


def _validated(values: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "recipe"
        if first["type"] == "extra_forbidden":
            section = ".".join(map(str, first["loc"][:-1]))
            known = AugmentConfig.model_fields if section == "augmentation" else Recipe.model_fields
            names = ", ".join(f"{section}.{name}" if section else name for name in known)
            raise UserError(f"a recipe has no field {field!r}; it has {names}") from error
        raise UserError(f"recipe field {field}: {first['input']!r}: {first['msg']}") from error
