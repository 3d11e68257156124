"""The verb ``models``: look at the registry's scorers, and move one between registries."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_jobs import options

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Task = Annotated[str, typer.Option(help="Whose scorers: attractiveness, fs2k.")]
Reference = Annotated[str, typer.Argument(metavar="REF", help="A version's number, an alias, or models:/NAME/VERSION.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.command("list")
def list_(
    task: Annotated[str | None, typer.Option(help="One task. Default: all.")] = None, config: options.Config = None
) -> None:
    """List the versions of each task's model with their aliases and metrics, the newest first."""
    from models.tasks.base import get_task, task_names
    from ray_jobs.overseeing import print_versions

    for name in (get_task(task).name,) if task else task_names():
        print_versions(_client(config), name)


@app.command()
def show(ref: Reference, task: Task, config: options.Config = None) -> None:
    """Show one version: where it comes from, its metrics, its contract, and when it was champion."""
    from ray_jobs.overseeing import print_version

    print_version(_client(config), ref, task)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="REF", help="A version.")],
    second: Annotated[str, typer.Argument(metavar="REF", help="Another one.")],
    task: Task,
    config: options.Config = None,
) -> None:
    """Show what differs between two scorers: contract, recipe, calibration, metrics."""
    from ray_jobs.overseeing import print_difference

    print_difference(_client(config), first, second, task)


@app.command()
def log(task: Task, config: options.Config = None) -> None:
    """Show every change of a task's champion: promotions, rollbacks, who and why."""
    from ray_jobs.overseeing import print_changes

    print_changes(_client(config), task)


@app.command()
def export(
    ref: Reference,
    task: Task,
    out: Annotated[Path, typer.Option(help="A new folder for the scorer and what a registry has to know of it.")],
    config: options.Config = None,
) -> None:
    """Write a scorer to a folder, to be imported into another registry."""
    from models.exchange import export_scorer
    from models.tasks.base import get_task

    version = export_scorer(_client(config), ref, get_task(task).name, out)
    print(f"exported models:/{version.name}/{version.version} (digest {version.tags['digest'][:16]}) to {out}")


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="What export has written.")], config: options.Config = None
) -> None:
    """Register an exported scorer as a new version of this registry; its files and its digest stay the same."""
    from infra.settings import load_settings
    from infra.tracking import experiment_id
    from models.exchange import import_scorer

    client, settings = _client(config), load_settings(config)
    version = import_scorer(client, folder, experiment_id(client, settings.tracking))
    print(f"imported as models:/{version.name}/{version.version} (digest {version.tags['digest'][:16]})")


def _client(config: str | None) -> "MlflowClient":
    from infra.settings import load_settings
    from ray_jobs.preflight import answering_client

    return answering_client(load_settings(config).tracking)
