"""``python -m serve``: start the service on this machine, and make API keys."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from infra.errors import UserError

# Set before Ray is imported: they are read at the start of its processes. HAProxy in front, no hop between the HTTP
# server and the scorers, and nothing that listens beyond this machine by itself.
ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
    "RAY_SERVE_LOG_TO_STDERR": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # A busy machine is no broken one: by default HAProxy is killed where it needs more than 15 seconds to start.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "60",
}

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, invoke_without_command=True)
keys = typer.Typer(add_completion=False, no_args_is_help=True, help="API keys.")
cli.add_typer(keys, name="keys")
Config = Annotated[str | None, typer.Option(help="Settings file (YAML). Default: facereel.yaml where it exists.")]
KeyFile = Annotated[Path, typer.Option("--file", help="File of hashed keys.")]


@cli.callback()
def run(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback API keys are needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    num_cpus: Annotated[
        int | None, typer.Option(min=1, help="Logical CPUs of the local cluster. Default: all, at least 6.")
    ] = None,
    config: Config = None,
) -> None:
    """Start the service on this machine until Ctrl-C: scorers by the registry's champions, page at /."""
    if context.invoked_subcommand is not None:
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if config is not None:
        os.environ["FACEREEL_CONFIG"] = str(Path(config).resolve())

    from infra.settings import load_settings
    from serve.local import serve_until_interrupted

    serve_until_interrupted(load_settings(), host, port, num_cpus)


@keys.command("add")
def add(name: str, file: KeyFile = Path("facereel-keys")) -> None:
    """Make a key: it is printed this once, the file keeps its hash."""
    from serve.security import add_key

    print(add_key(file, name))
    print(f"the key of {name!r}: keep it, {file} holds only its hash", file=sys.stderr)


@keys.command("list")
def show(file: KeyFile = Path("facereel-keys")) -> None:
    """Names of the keys in a file."""
    from serve.security import read_keys

    for name in read_keys(file):
        print(name)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        cli(prog_name="python -m serve")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
