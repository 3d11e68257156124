"""The facts of one machine, as plain values that travel: gathered there, judged elsewhere."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

PROBE_TIMEOUT_S = 60
REACH_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system and what is free of it."""

    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Gpus:
    """What the driver and torch see."""

    names: tuple[str, ...] = ()  # by nvidia-smi; empty: no driver, or no GPU
    driver: str = ""
    torch_cuda: str | None = None  # CUDA that torch was built for; None: a CPU build
    torch_count: int = 0
    torch_error: str = ""
    nvdec_error: str | None = None  # None: not tried; empty: it decodes


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What there is to know about a machine."""

    host: str
    python: tuple[int, int, int]
    packages: dict[str, str | None]  # of the lock: installed version, None where missing
    disks: tuple[Disk, ...]
    shm_bytes: int
    gpus: Gpus
    reach: dict[str, str] = field(default_factory=dict)  # host:port -> why it is not reached; empty: it is


def gather(pins: dict[str, str], addresses: Sequence[str], *, with_gpus: bool = True) -> NodeFacts:
    """The facts of the machine that this runs on; ``addresses`` (host:port) are connected to."""
    paths = dict.fromkeys([tempfile.gettempdir(), os.environ.get("RAY_TMPDIR", "/tmp"), str(Path.cwd())])
    return NodeFacts(
        host=socket.gethostname(),
        python=sys.version_info[:3],
        packages={name: installed(name) for name in pins},
        disks=tuple(_disk(path) for path in paths),
        shm_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        gpus=look_at_gpus() if with_gpus else Gpus(),
        reach={address: reached(address) for address in addresses},
    )


def _disk(path: str) -> Disk:
    there = Path(path).absolute()
    while not there.exists():  # what Ray has still to make
        there = there.parent
    usage = shutil.disk_usage(there)
    return Disk(path, usage.free, usage.total)


def installed(package: str) -> str | None:
    """Its version, without a build's suffix (+cpu); None where it is not installed."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def clock() -> float:
    """Seconds since 1970 by this machine."""
    return time.time()


def reached(address: str) -> str:
    """Why no connection to host:port comes about; empty where one does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_TIMEOUT_S).close()
    except OSError as error:
        return str(error)
    return ""


def is_free(port: int) -> bool:
    """Whether a server could listen on the port of 127.0.0.1."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def address_of(url: str | None) -> str | None:
    """host:port of an http(s) address; None of anything else."""
    try:
        parts = urlsplit(url or "")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return None
        return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    except ValueError:  # http://mlflow:port
        return None


def look_at_gpus() -> Gpus:
    """By nvidia-smi, and by a process of its own that uses torch and NVDEC: a broken driver ends that one alone."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        listed = ""
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines() if "," in line]
    names, driver = tuple(row[0] for row in rows), rows[0][1] if rows else ""
    # Ray hides the GPUs from tasks that ask for none.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-m", "ray_jobs.diagnosing.gpu_probe", *(["--nvdec"] if names else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, env=environment, check=False
        )
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError) as error:
        return Gpus(names, driver, torch_error=f"the probe did not answer: {error}")
    return Gpus(names, driver, found["cuda"], found["count"], found["error"], found.get("nvdec"))
