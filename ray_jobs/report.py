"""The verb ``report``: its options, and one call."""

from typing import Annotated

import typer

from ray_jobs import options


def report(
    tables: options.Tables,
    out: Annotated[str, typer.Option(help="The HTML file to write: a path or s3://bucket/key.")] = "report.html",
    task: Annotated[
        list[str] | None, typer.Option(help="Task to report; repeat for several. Default: every task that has a table.")
    ] = None,
    faces: Annotated[int, typer.Option(min=0, max=200, help="Sample videos to show, decoded again.")] = 24,
    pictures: Annotated[bool, typer.Option(help="Show the samples' faces, or their predictions alone.")] = True,
    config: options.Config = None,
) -> None:
    """Write an HTML page about the score tables: distributions, sample faces, quarantine, throughput."""
    from infra.settings import load_settings
    from ray_jobs.reporting import write_report

    write_report(tables, out, load_settings(config), tasks=task, num_samples=faces, with_pictures=pictures)
