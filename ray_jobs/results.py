"""The verb ``results``: its options, and one call."""

from typing import Annotated

import typer

from ray_jobs import options


def results(
    tables: options.Tables,
    task: Annotated[str, typer.Option(help="Task whose scores to show.")],
    out: Annotated[
        str | None, typer.Option(help="Write to this file instead (.parquet, .csv or .jsonl; local or s3://).")
    ] = None,
    video: Annotated[list[str] | None, typer.Option(help="Only this video; repeat for several.")] = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="Only rows of this scorer: a digest's beginning, a registry version, or an alias."),
    ] = None,
    faces: Annotated[bool, typer.Option("--faces", help="With each face's detail, in a nested column.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 20,
    config: options.Config = None,
) -> None:
    """Print or export each video's newest row, with the version of the scorer that made it."""
    from infra.settings import load_settings
    from ray_jobs.newest_rows import NewestRows, export_rows, print_rows

    query = NewestRows(tables=tables, task=task, videos=tuple(video or ()), scorer=scorer, with_faces=faces)
    settings = load_settings(config)
    if out is None:
        print_rows(query, settings, limit=limit)
    else:
        export_rows(query, settings, out)
