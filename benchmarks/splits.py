"""What a split by image is worth: the same drawn videos, policies and training, split by creator and by image.

    python -m benchmarks.splits                           about five minutes

The figures are of each split's own validation crops.
"""

import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infra.settings import load_settings
from models.faces.policy import FacePolicy
from models.video.sampling import FramePolicy
from ray_jobs.drawing.catalog import draw_catalog
from ray_jobs.preparing import PrepareConfig, run_prepare
from ray_jobs.training.config import TrainConfig
from ray_jobs.training.recipe import resolve_recipe
from ray_jobs.training.run import run_train


def main() -> None:
    table = Table(title="attractiveness on drawn videos, ResNet-18, 11 epochs, one seed")
    for name in ("split", "crops in train, val", "validation MAE", "best constant", "within 5", "Spearman"):
        table.add_column(name, justify="left" if name == "split" else "right")
    with tempfile.TemporaryDirectory(prefix="facereel-splits-") as name:
        folder = Path(name)
        settings = load_settings(None, tracking={"uri": f"sqlite:///{folder}/mlflow.db"})
        drawn = draw_catalog(folder, 140, 0, 0, 0, num_processes=2)
        for split in ("creator", "image"):
            out = str(folder / split)
            dataset = run_prepare(
                PrepareConfig(
                    out=out,
                    labels=str(drawn.truth),
                    tasks=("attractiveness",),
                    split_by=split,
                    frame_policy=FramePolicy(every=12, limit=3),
                    face_policy=FacePolicy(crop_size=96),
                ),
                settings,
            )
            manifest = run_train(
                TrainConfig(
                    task="attractiveness",
                    dataset=out,
                    name=split,
                    storage=str(folder / "train"),
                    recipe=resolve_recipe("demo", {"epochs": 11}),
                ),
                settings,
            ).manifest
            figures = (f"{manifest.metrics[metric]:.2f}" for metric in ("mae", "within_5", "spearman"))
            mae, within, rank = figures
            sizes = f"{dataset.num_crops['train']}, {dataset.num_crops['val']}"
            table.add_row(split, sizes, mae, f"{manifest.baseline_metrics['mae']:.2f}", within, rank)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
