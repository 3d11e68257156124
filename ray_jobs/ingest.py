"""The verb ``ingest``: its options, and one call."""

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs import options


def ingest(
    source: Annotated[
        str,
        typer.Option(
            "--from", help="Label table (CSV, TSV, Excel, Parquet, JSON lines), or a text file, one URL a line."
        ),
    ],
    into: Annotated[str, typer.Option(help="Where the videos go: a folder or s3://bucket/prefix.")],
    resolver: Annotated[
        str | None,
        typer.Option(help="What finds the video on a web page: yt-dlp (where installed), or package.module:Class."),
    ] = None,
    retry: Annotated[
        list[str] | None,
        typer.Option(help="Try addresses again that failed for good, by reason; repeat, or 'all'."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Fetch at most so many addresses in this run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be fetched from where, and end.")] = False,
    policy: Annotated[Path | None, typer.Option(help="YAML with the sections ingest and labels.")] = None,
    num_cpus: options.NumCpus = None,
    config: options.Config = None,
) -> None:
    """Fetch videos from the web into storage, politely, each content once; a second run fetches what is missing."""
    from infra.settings import load_settings
    from ray_jobs.ingesting.run import IngestConfig, run_ingest
    from ray_jobs.policy_file import read_policies

    policies = read_policies(policy)
    run_ingest(
        IngestConfig(
            source=source,
            into=into,
            resolver=resolver,
            retry=tuple(retry or ()),
            limit=limit,
            dry_run=dry_run,
            rules=policies.ingest,
            label_rules=policies.labels,
        ),
        load_settings(config, **options.cluster_section(num_cpus)),
    )
