"""The verb ``status``: its options, and one call."""

from typing import Annotated

import typer

from ray_jobs import options


def status(
    tables: options.Tables,
    runs: Annotated[int, typer.Option(min=0, help="How many of the last runs to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    config: options.Config = None,
) -> None:
    """Show the tables and the runs of a root, the one at work too."""
    from infra.settings import load_settings
    from ray_jobs.overview import overview, print_overview

    found = overview(tables, load_settings(config), num_runs=runs)
    if as_json:
        print(found.model_dump_json())
    else:
        print_overview(found)
