"""Where the programs of the stack are on this machine, and how to get those that are missing."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from infra.errors import UserError

# Debian keeps the server's programs beside the path.
_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)

# An index that does not answer is one that is not there.
_DOWNLOAD = ("apt-get", "-qq", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::Retries=0", "download")


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


def prometheus_program(name: str, folder: Path) -> Path | None:
    """``prometheus`` or ``promtool``: on the path, or unpacked into ``folder`` before; else None."""
    found = shutil.which(name)
    program = Path(found) if found is not None else folder / "usr" / "bin" / name
    return program if program.is_file() else None


def unpack_prometheus(folder: Path) -> None:
    """Unpack Debian's package (19 MB) into ``folder``, where Prometheus is not there yet and the package can be had.

    Unpacked, not installed: the package would start a server of its own, on all addresses, and needs root.
    """
    if prometheus_program("prometheus", folder) and prometheus_program("promtool", folder):
        return
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        subprocess.run([*_DOWNLOAD, "prometheus"], cwd=scratch, capture_output=True, check=False)
        for package in Path(scratch).glob("prometheus_*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, scratch], check=True)
            shutil.rmtree(folder / "usr", ignore_errors=True)
            Path(scratch, "usr").rename(folder / "usr")
