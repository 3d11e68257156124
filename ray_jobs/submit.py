"""The verb ``submit``: another verb as a job of a cluster, and one call."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    verb: Annotated[list[str], typer.Argument(metavar="VERB [OPTIONS]", help="What to run, as on this machine.")],
    address: Annotated[
        str | None,
        typer.Option(
            help="The cluster's dashboard, http://HOST:8265. Default: RAY_API_SERVER_ADDRESS.",
            envvar="RAY_API_SERVER_ADDRESS",
        ),
    ] = None,
    working_dir: Annotated[Path, typer.Option(help="The project's folder, which the job runs in a copy of.")] = Path(),
    runtime_env: Annotated[
        Path | None, typer.Option(help="Runtime environment (YAML). Default: infra/runtime_env.yaml of the folder.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable of the job; repeat. No secrets.")
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=NODES_NAME]",
            help="A variable that every node takes from its own environment, by name; repeat. Never travels.",
        ),
    ] = None,
    submission_id: Annotated[str | None, typer.Option(help="Name of the job. Default: verb and time.")] = None,
    max_upload_mib: Annotated[float, typer.Option(min=0.1, help="Refuse a larger upload, MiB.")] = 20.0,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the log until the end, with the verb's exit code.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, print the command, and stop.")] = False,
) -> None:
    """Run another verb as a job of a cluster; prints the ``ray job submit`` that it runs, and keeps the exit code.

    Ctrl-C stops the job as ``ray job stop`` does: what is done stays, and the log says how to go on.
    """
    from ray_jobs.submitting.submission import Submission, run_submission

    run_submission(
        Submission(
            verb=tuple(verb),
            address=address,
            working_dir=working_dir,
            runtime_env=runtime_env,
            env=tuple(env or ()),
            secrets=tuple(secret or ()),
            submission_id=submission_id,
            max_upload_bytes=int(max_upload_mib * (1 << 20)),
            wait=wait,
            dry_run=dry_run,
        )
    )
