"""A stack on its way up: launching and waiting for its processes, each recorded before anything else happens."""

import os
import pwd
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from infra.stack.processes import MARK, launch
from infra.stack.state import StackFolder, State

START_TIMEOUT_S = 240.0
# What belongs to other servers than the stack's: credentials of a cloud above all.
_FOREIGN = ("FACEREEL_", "AWS_", "MLFLOW_", "RAY_", "PG")


class StartFailed(Exception):
    """A server of the stack did not come up; the message holds its last lines."""


class Stack:
    """The folder and the state of a stack, and the environment that its processes share."""

    def __init__(self, folder: StackFolder, state: State) -> None:
        self.folder = folder
        self.state = state

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """This process's environment without what points elsewhere, the stack's mark, and ``extra``."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        return own | {MARK: self.state.id} | dict(extra or {})

    def launch(
        self,
        name: str,
        command: Sequence[str | Path],
        what: str,
        env: Mapping[str, str] | None = None,
        user: pwd.struct_passwd | None = None,
        cwd: Path = Path("/"),
    ) -> None:
        """Start a process and write it down."""
        record = launch(name, command, what, self.folder.logs / f"{name}.log", self.environment(env), user, cwd)
        self.state.processes.append(record)
        self.folder.write(self.state)

    def wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Wait until a process is ready.

        Raises:
            StartFailed: It has ended, or takes too long.
        """
        record = next(record for record in self.state.processes if record.name == name)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_ready():
            if not record.is_alive or time.monotonic() > deadline:
                last = "\n  ".join(record.log.read_text(errors="replace").splitlines()[-15:])
                how = "has ended" if not record.is_alive else f"is not ready after {START_TIMEOUT_S:g} s"
                raise StartFailed(f"{name} {how}; the end of {record.log}:\n  {last}")
            time.sleep(0.2)

    def link_ray_folder(self) -> Path:
        """A short name for Ray's folder: a socket's path may have 107 bytes, and a checkout may lie deep."""
        target = self.folder.path / "ray"
        target.mkdir(exist_ok=True)
        link = Path("/tmp") / f"fr-{secrets.token_hex(4)}"
        self.state.ray_link = str(link)
        self.folder.write(self.state)
        link.symlink_to(target)
        return link
