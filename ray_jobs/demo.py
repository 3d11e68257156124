"""The verb ``demo``: its options, and one call."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="Where everything goes; an earlier demo there is replaced.")
    ] = Path("runs/demo"),
    videos: Annotated[int, typer.Option(min=24, help="Videos with a face to draw.")] = 150,
    seed: Annotated[int, typer.Option(help="Seed of the drawing and of the training.")] = 0,
) -> None:
    """Draw a catalog, train both tasks, promote them, score the catalog twice, and write a report."""
    from ray_jobs.demonstration import run_demo

    run_demo(folder, num_videos=videos, seed=seed)
