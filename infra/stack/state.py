"""What is known of a stack on disk: its folder, ports, secrets and processes, in ``state.json``."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, Field

from infra.errors import UserError
from infra.stack.ports import free_ports
from infra.stack.processes import ProcessRecord

PORTS = (
    *("postgres", "s3", "s3_account", "s3_container", "s3_object", "mlflow", "prometheus"),
    *("ray_gcs", "ray_dashboard", "ray_client", "ray_dashboard_metrics", "ray_autoscaler_metrics"),
    *("serve_metrics", "serve_stats"),
    *(f"{node}_{kind}" for node in ("head", "worker1", "worker2") for kind in ("metrics", "agent")),
)


def _secret() -> str:
    return secrets.token_hex(16)


class State(BaseModel):
    """A stack that is up, or was on its way to be."""

    id: str = Field(default_factory=_secret)
    ports: dict[str, int] = Field(default_factory=lambda: dict(zip(PORTS, free_ports(len(PORTS)), strict=True)))
    s3_key: str = "facereel"
    s3_secret: str = Field(default_factory=_secret)
    postgres_password: str = Field(default_factory=_secret)
    ray_token: str = Field(default_factory=_secret)
    ray_link: str = Field("", description="short name of Ray's folder: the paths of its sockets may have 107 bytes")
    processes: list[ProcessRecord] = []
    is_ready: bool = False


class StackFolder:
    """``runs/stack``: state, logs, data and the environment file. Files with a secret are for their owner alone."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"
        self.data = self.path / "data"
        self.env = self.path / "env"
        self.token = self.path / "ray-token"
        self.config = self.path / "config"
        self.debian = self.path / "debian"  # packages that are unpacked, not installed

    def make(self) -> None:
        """Make what is missing."""
        for folder in (self.path, self.logs, self.data, self.config):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep out a second command on the same stack.

        Raises:
            UserError: One is at work.
        """
        self.make()
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path}: another command starts or stops this stack: wait for it") from None
            os.set_inheritable(file.fileno(), False)
            yield

    def read(self) -> State | None:
        """The state, or None where no stack was started."""
        try:
            return State.model_validate_json((self.path / "state.json").read_bytes())
        except FileNotFoundError:
            return None

    def write(self, state: State) -> None:
        """Replace the state at once, so that whoever is killed here leaves the old or the new one."""
        self.write_secret(self.path / "state.json", state.model_dump_json(indent=1))

    def forget(self) -> None:
        """The stack is down."""
        for path in (self.path / "state.json", self.env, self.token):
            path.unlink(missing_ok=True)

    @staticmethod
    def write_secret(path: Path, text: str) -> None:
        """A file that only its owner reads."""
        new = path.with_name(f".{path.name}.new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(text)
        new.replace(path)
