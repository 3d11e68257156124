"""The verb ``tables``: its options, and one call."""

from typing import Annotated

import typer

from ray_jobs import options


def tables(
    action: Annotated[str, typer.Argument(help="optimize: compact small files, remove old ones.")],
    tables: options.Tables,
    keep_hours: Annotated[
        int, typer.Option(min=1, help="Keep files that versions of these last hours refer to, for their readers.")
    ] = 168,
    config: options.Config = None,
) -> None:
    """Compact the tables of a root and remove files that nothing refers to any more; not while a run writes."""
    from infra.errors import UserError
    from infra.settings import load_settings
    from ray_jobs.maintenance import optimize

    if action != "optimize":
        raise UserError(f"tables {action}: the one action is optimize")
    optimize(tables, load_settings(config), keep_hours=keep_hours)
