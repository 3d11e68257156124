"""``python -m infra.stack up|down|show|answers|fetch``: all that facereel needs around it, on one machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from infra.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
Folder = Annotated[Path, typer.Option("--dir", help="Where state, logs and data lie.")]
DIR = Path("runs/stack")


@app.command()
def up(
    folder: Folder = DIR,
    swift_venv: Annotated[Path, typer.Option("--swift", help="Environment that holds OpenStack Swift.")] = Path(
        ".venv-stack"
    ),
) -> None:
    """Start Postgres, S3, MLflow, a Ray head with two workers, and Prometheus, all on free loopback ports."""
    from infra.stack.running import show as show_stack
    from infra.stack.running import up as bring_up
    from infra.stack.stack import StartFailed
    from infra.stack.state import StackFolder

    try:
        show_stack(bring_up(StackFolder(folder), swift_venv.resolve()))
    except StartFailed as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
def fetch(folder: Folder = DIR) -> None:
    """Unpack Prometheus from Debian's package where the path has none, for `up` and for the tests of the alerts."""
    from infra.stack.programs import prometheus_program, unpack_prometheus
    from infra.stack.state import StackFolder

    debian = StackFolder(folder).debian
    unpack_prometheus(debian)
    print(prometheus_program("promtool", debian) or "Prometheus is not on the path, and Debian's package not to be had")


@app.command()
def down(folder: Folder = DIR) -> None:
    """Stop exactly what `up` started; data and logs stay."""
    from infra.stack.running import down as take_down
    from infra.stack.state import StackFolder

    take_down(StackFolder(folder))


@app.command()
def show(folder: Folder = DIR) -> None:
    """Say what runs where."""
    from infra.stack.running import show as show_stack
    from infra.stack.stack import Stack
    from infra.stack.state import StackFolder

    found = StackFolder(folder)
    state = found.read()
    if state is None:
        raise UserError(f"{found.path}: no stack runs here: make stack")
    show_stack(Stack(found, state))


@app.command()
def answers(
    folder: Folder = DIR,
    minutes: Annotated[float, typer.Option(min=1, help="How far back.")] = 15,
) -> None:
    """Put the dashboard's queries to the stack's Prometheus, and print what they answer."""
    from infra.stack.answers import print_answers
    from infra.stack.prometheus import address
    from infra.stack.stack import Stack
    from infra.stack.state import StackFolder

    found = StackFolder(folder)
    state = found.read()
    if state is None or not any(record.name == "prometheus" for record in state.processes):
        raise UserError(f"{found.path}: no stack with Prometheus runs here: make stack")
    print_answers(address(Stack(found, state)), minutes * 60)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        app(prog_name="python -m infra.stack")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
