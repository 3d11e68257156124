"""Where the programs of the stack are on this machine, and how to get those that are missing."""

import shutil
import subprocess
import sys
from pathlib import Path

from infra.errors import UserError

# Debian keeps the server's programs beside the path.
_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)


def postgres_program(name: str) -> Path:
    """A program of the Postgres server.

    Raises:
        UserError: It is not installed.
    """
    found = shutil.which(name) or next((place / name for place in _POSTGRES if (place / name).is_file()), None)
    if found is None:
        raise UserError(f"{name}: PostgreSQL is not installed: sudo apt-get install postgresql (or put it on PATH)")
    return Path(found)


def swift_program(venv: Path, name: str) -> Path:
    """A program of OpenStack Swift.

    Raises:
        UserError: The environment was not built.
    """
    if not (venv / "bin" / name).is_file():
        raise UserError(f"{venv}: holds no OpenStack Swift: `make stack` builds it from requirements-stack.lock")
    return venv / "bin" / name


def python_program(name: str) -> Path:
    """A program beside this Python."""
    return Path(sys.executable).with_name(name)


def prometheus_program(folder: Path) -> Path | None:
    """Prometheus from the path, else unpacked from Debian's package into ``folder``; None where neither can be had.

    Unpacked, not installed: the package would start a server of its own, on all addresses, and needs root.
    """
    found = shutil.which("prometheus")
    if found is not None:
        return Path(found)
    program = folder / "usr" / "bin" / "prometheus"
    if not program.is_file() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["apt-get", "download", "-qq", "prometheus"], cwd=folder, capture_output=True, check=False
        )
        packages = sorted(folder.glob("prometheus_*.deb"))
        if done.returncode == 0 and packages:
            subprocess.run(["dpkg-deb", "-x", packages[-1], folder], check=True)
            packages[-1].unlink()
    return program if program.is_file() else None
