"""Options of a training run, and what the driver hands to its workers."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.settings import StorageSettings, TrackingSettings
from models.transforms import AugmentConfig
from ray_jobs.training.balance import Balance


class TrainConfig(BaseModel):
    """One training run; the resolved values are logged with it and stand in the scorer's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(description="Task to train.")
    dataset: str = Field(description="Crops dataset: a folder or s3://bucket/prefix.")
    name: str = Field(description="Name of the run; a run of the same name and storage resumes.", min_length=1)
    storage: str = Field(description="Folder or s3:// prefix for checkpoints, seen by all workers.")
    backbone: str = Field("resnet18", description="torchvision's name of the backbone.")
    weights: str = Field("none", description="Starting weights: none, imagenet, or a .safetensors file.")
    input_size: int = Field(224, ge=16, le=1024, description="Side of the network input, pixels.")
    epochs: int = Field(20, ge=1, description="Passes over the training split.")
    batch_size: int = Field(32, ge=1, description="Crops per step and worker.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW (one-cycle schedule).")
    weight_decay: float = Field(0.05, ge=0, description="AdamW's weight decay.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the last layer.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Type under autocast in training; auto: bfloat16 where the hardware computes it."
    )
    per_class: int | None = Field(
        None, ge=1, description="Crops of each class in an epoch, repeated or left out by rank; None: all, once."
    )
    balance_by: str | None = Field(None, description="The label whose classes per_class means; a task's only one.")
    augmentation: AugmentConfig = Field(default=AugmentConfig(), description="How training crops are varied.")
    num_workers: int = Field(1, ge=1, description="Training workers.")
    use_gpu: bool = Field(False, description="One GPU per worker (NCCL); otherwise CPUs (Gloo).")
    resident_bytes: int = Field(
        4 << 30,
        ge=0,
        description="Decoded crops a worker may keep in memory, bytes; larger shards are streamed anew each epoch.",
    )
    max_failures: int = Field(3, ge=0, description="Worker failures after which the run gives up.")
    seed: int = Field(0, description="Seed of weights, order and augmentation.")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What the driver hands to every worker."""

    train: TrainConfig
    tracking: TrackingSettings
    mlflow_run_id: str
    num_train_rows: int
    train_parts: list[str]
    validation_parts: list[str]
    balance: Balance | None
    storage: StorageSettings
    crop_bytes: int  # of one decoded crop
