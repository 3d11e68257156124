"""Small scorers for tests: random weights, or ones that can be told apart."""

import hashlib
from pathlib import Path

import torch

from models.calibration import Calibration
from models.faces.policy import FacePolicy
from models.network import Network, build_network
from models.scorer import Scorer, ScorerManifest, TrainingSummary, load_scorer, save_scorer
from models.tasks.base import get_task
from models.transforms import InputConfig
from models.video.sampling import FramePolicy

BACKBONE = "shufflenet_v2_x0_5"
CROP_SIZE = 40
INPUT_SIZE = 32


def small_network(task: str, seed: int = 0) -> Network:
    """Random weights whose answers differ from crop to crop: batch norm has seen pictures, the last layer is large."""
    torch.manual_seed(seed)
    network = build_network(BACKBONE, get_task(task).heads)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    images = torch.randn(64, 3, 1, 1) + torch.randn(64, 3, INPUT_SIZE, INPUT_SIZE) / 4
    with torch.no_grad():
        network(images)
    torch.nn.init.normal_(network.classifier.weight, std=0.1)
    return network.eval()


def small_manifest(task: str, calibration: Calibration | None = None) -> ScorerManifest:
    return ScorerManifest(
        task=task,
        heads=get_task(task).heads,
        backbone=BACKBONE,
        input=InputConfig(size=INPUT_SIZE),
        frame_policy=FramePolicy(),
        face_policy=FacePolicy(crop_size=CROP_SIZE),
        calibration=calibration or Calibration(),
        metrics={get_task(task).best_metric: 0.5},
        baseline_metrics={get_task(task).best_metric: 0.25},
        dataset_fingerprint="0123abcd",
        code_version="0.1.0",
        training=TrainingSummary(
            num_epochs=3, best_epoch=2, num_train_rows=100, num_val_rows=20, recipe={"lr": 0.001, "seed": 7}
        ),
    )


def small_scorer(directory: Path, task: str, calibration: Calibration | None = None, seed: int = 0) -> Scorer:
    save_scorer(directory, small_network(task, seed), small_manifest(task, calibration))
    return load_scorer(directory)


def sign_again(directory: Path) -> str:
    """Make DIGEST agree with changed files, as somebody would who can write to the directory."""
    sums = "".join(
        f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("weights.safetensors", "scorer.json")
    )
    (directory / "DIGEST").write_text(sums)
    return hashlib.sha256(sums.encode()).hexdigest()
