"""The verb ``promote``: its options, and one call."""

from typing import Annotated

import typer

from ray_jobs import options


def promote(
    task: Annotated[str, typer.Option(help="The task whose scorer changes.")],
    version: Annotated[str, typer.Option(help="The registered version, a number.")],
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "champion",
    config: options.Config = None,
) -> None:
    """Point an alias (by default the champion) at a registered version, after checking its files."""
    from infra.settings import load_settings
    from infra.tracking import tracking_client
    from models import registry
    from models.tasks.base import get_task
    from ray_jobs.console import console

    name = registry.model_name(get_task(task).name)
    before = registry.promote(tracking_client(load_settings(config).tracking), task, version, alias=alias)
    console.print(f"{name}: {alias} is version {version} now (before: {before or 'none'})", highlight=False)
