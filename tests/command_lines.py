"""Command lines parsed by the programs that they call, without running them."""

import importlib
import shlex
from collections.abc import Sequence
from typing import Any


def parse(words: Sequence[str]) -> list[str]:
    """The names of the commands that a line goes through; raises a click error for what the program would refuse.

    Raises:
        LookupError: the program is none of ours, Ray's or MLflow's.
    """
    command, arguments = _program(list(words))
    path = []
    while True:
        context = command.make_context(command.name or words[0], arguments)
        if not hasattr(command, "resolve_command") or not (rest := [*context._protected_args, *context.args]):
            return path
        name, command, arguments = command.resolve_command(context, rest)
        path.append(name)


def parse_line(line: str) -> list[str]:
    """As `parse`, for a line as a shell would read it."""
    return parse(shlex.split(line))


def _program(words: list[str]) -> tuple[Any, list[str]]:
    import typer

    match words:
        case ["python" | "python3", "-m", "ray_jobs", *arguments]:
            return typer.main.get_command(importlib.import_module("ray_jobs.__main__").app), arguments
        case ["python" | "python3", "-m", "serve", *arguments]:
            return typer.main.get_command(importlib.import_module("serve.__main__").cli), arguments
        case ["mlflow", *arguments]:
            return importlib.import_module("mlflow.cli").cli, arguments
        case ["ray", *arguments]:
            return importlib.import_module("ray.scripts.scripts").cli, arguments
        case ["serve", *arguments]:
            return importlib.import_module("ray.serve.scripts").cli, arguments
    raise LookupError(words[0])
