"""The verb ``doctor``: its options, and one call."""

from typing import Annotated

import typer

from ray_jobs import options


def doctor(
    tables: Annotated[
        str | None, typer.Option(help="Root that runs will write to: objects and Delta commits are tried there.")
    ] = None,
    catalog: Annotated[
        str | None, typer.Option(help="Table of videos, or a prefix: listed, and a range of it is read.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="A cluster's dashboard: its token and version are tried. Its nodes are looked at by `submit doctor`.",
            envvar="RAY_API_SERVER_ADDRESS",
        ),
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="GPUs are needed: none is a failure.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    config: options.Config = None,
) -> None:
    """Check machine, packages, cluster, GPUs, storage, MLflow, clocks, disks; each line ok, warn or fail, with the fix.

    Exit code 1 if anything failed. What the checks write is removed again.
    """
    from infra.settings import load_settings
    from ray_jobs.diagnosing.examination import Examination, examine, print_findings

    findings = examine(Examination(tables, catalog, address, gpu), load_settings(config))
    raise typer.Exit(print_findings(findings, as_json=as_json))
