"""The verb ``demo``: its options, and one call."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="Where everything goes; an earlier demo there is replaced.")
    ] = Path("runs/demo"),
    story: Annotated[
        Literal["scoring", "promotion"],
        typer.Option(help="scoring: the main job. promotion: three scorers before the gates, and the way back."),
    ] = "scoring",
    videos: Annotated[
        int | None, typer.Option(min=24, help="Videos with a face to draw. Default: 150, for promotion 240.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawing and of the training.")] = 0,
) -> None:
    """Draw a catalog, train both tasks, promote them, score the catalog twice, and write a report."""
    from ray_jobs.demonstration import demo_settings, empty, run_demo

    empty(folder)
    settings = demo_settings(folder)
    if story == "promotion":
        from ray_jobs.promotion_story import run_story

        run_story(folder, settings, num_videos=videos or 240, seed=seed)
    else:
        run_demo(folder, settings, num_videos=videos or 150, seed=seed)
