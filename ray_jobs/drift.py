"""The verb ``drift``: its options, and one call."""

from datetime import datetime
from typing import Annotated

import typer

from ray_jobs import options


def drift(
    tables: options.Tables,
    task: Annotated[str, typer.Option(help="Task whose score table is looked at.")],
    recent: Annotated[str, typer.Option(metavar="TIME", help="Length of the window looked at: 12h, 7d.")] = "7d",
    reference: Annotated[
        str, typer.Option(metavar="TIME", help="Length of the window before it, which is compared with.")
    ] = "28d",
    until: Annotated[datetime | None, typer.Option(help="End of the recent window, UTC. Default: now.")] = None,
    limits: Annotated[
        str | None, typer.Option(help="YAML: max_psi, max_ks, max_rate_change, min_videos (docs/promotion.md).")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder for drift.html and drift.json.")] = None,
    config: options.Config = None,
) -> None:
    """Compare recent rows with earlier ones: answers, faces, failures. Exit code 4 where something has drifted."""
    from datetime import UTC

    from infra.errors import RunStopped
    from infra.settings import load_settings
    from ray_jobs.drifting import DRIFTED, DriftConfig, read_limits, run_drift

    run = DriftConfig(
        tables=tables,
        task=task,
        recent_s=options.seconds("--recent", recent),
        reference_s=options.seconds("--reference", reference),
        until=None if until is None else until.replace(tzinfo=UTC),
        limits=read_limits(limits),
        out=out,
    )
    found = run_drift(run, load_settings(config))
    if found.found:
        raise RunStopped(f"{len(found.found)} figures are beyond their limits", DRIFTED)
