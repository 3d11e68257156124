"""A training run: its recipe, its data, its place, and what the driver hands to its workers."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from infra.settings import StorageSettings, TrackingSettings
from models.transforms import InputConfig
from ray_jobs.training.balance import Balance
from ray_jobs.training.recipe import Recipe


class TrainConfig(BaseModel):
    """One training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(description="Task to train.")
    dataset: str = Field(description="Crops dataset: a folder or s3://bucket/prefix.")
    name: str = Field(description="Name of the run; a run of the same name and storage resumes.", min_length=1)
    storage: str = Field(description="Folder or s3:// prefix for checkpoints, seen by all workers.")
    recipe: Recipe = Field(Recipe(), description="How to learn.")
    num_workers: int = Field(1, ge=1, description="Training workers; the most of them where min_workers is less.")
    min_workers: int | None = Field(None, ge=1, description="Workers with which the run goes on; null: num_workers.")
    cpus_per_worker: int = Field(1, ge=1, description="CPUs of a worker: threads of the network, without a GPU.")
    use_gpu: bool = Field(False, description="One GPU per worker (NCCL); otherwise CPUs (Gloo).")
    resident_bytes: int = Field(
        4 << 30,
        ge=0,
        description="Decoded crops that a worker may keep in memory, bytes; larger splits are read anew each epoch.",
    )
    checkpoint_every_steps: int = Field(
        500, ge=1, description="Steps between checkpoints within an epoch; one ends each epoch anyway."
    )
    log_every_steps: int = Field(20, ge=1, description="Steps between the losses that MLflow is told.")
    max_failures: int = Field(3, ge=0, description="Worker failures after which the run gives up.")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What the driver hands to every worker."""

    train: TrainConfig
    tracking: TrackingSettings
    mlflow_run_id: str
    train_parts: list[str]
    validation_parts: list[str]
    balance: Balance | None
    storage: StorageSettings
    input: InputConfig
    is_resident: bool  # the decoded crops stay in memory
