"""The verb ``tune``: its options, and one call."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from ray_jobs import options


def tune(
    task: Annotated[str, typer.Option(help="Task to train: attractiveness, fs2k.")],
    dataset: Annotated[str, typer.Option(help="Crops dataset, as made by the verb prepare.")],
    space: Annotated[
        Path, typer.Option(help="YAML: recipe field to a list of values, or to {low: …, high: …, log: true}.")
    ],
    recipe: Annotated[str | None, typer.Option(help="The recipe whose fields are searched.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Fix a field of the recipe; repeat.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Recipes to try.")] = 16,
    grace: Annotated[int, typer.Option(min=1, help="Epochs that every trial gets before ASHA may stop it.")] = 3,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at the same time. Default: as the cluster has room.")
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Folder or s3:// prefix for checkpoints, seen by all workers.")
    ] = "runs/tune",
    name: Annotated[str | None, typer.Option(help="Name of the search. Default: task and time.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Training workers of each trial.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU per worker.")] = False,
    num_cpus: options.NumCpus = None,
    config: options.Config = None,
) -> None:
    """Search a recipe's fields with Ray Tune: random samples, the weak ones stopped early (ASHA); writes best.yaml."""
    from infra.settings import load_settings
    from models.tasks.base import get_task
    from ray_jobs.training.config import TrainConfig
    from ray_jobs.training.recipe import resolve_recipe
    from ray_jobs.tuning import TuneConfig, read_space, run_tune

    fixed = options.fields(set_)
    base = TrainConfig(
        task=get_task(task).name,
        dataset=dataset,
        name=name or f"tune-{task}-{datetime.now(UTC):%Y%m%dT%H%M%S}",
        storage=storage,
        recipe=resolve_recipe(recipe, fixed),
        num_workers=workers,
        use_gpu=gpu,
    )
    run_tune(
        TuneConfig(
            base=base, space=read_space(space), num_trials=trials, grace_epochs=grace, num_concurrent=concurrent
        ),
        load_settings(config, **options.cluster_section(num_cpus)),
    )
