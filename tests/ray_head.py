"""A Ray head of its own on free loopback ports, as a child process that ends with all it has started."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.stack.ports import free_ports


@dataclass(frozen=True)
class Head:
    """A running head node."""

    address: str
    metrics_port: int
    env: dict[str, str]  # of whoever connects
    dashboard: str  # of the job API
    agent_port: int  # of health checks


@contextmanager
def ray_head(folder: Path, env: dict[str, str], *, num_cpus: int = 8) -> Iterator[Head]:
    """A cluster of one node; ``env`` is its processes' environment."""
    token = folder / "ray-token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    env = env | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # half a minute, by default, in which it waits for nothing here
    port, dashboard, agent, client, metrics = free_ports(5)
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--num-cpus", str(num_cpus)]
    command += ["--port", str(port), "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent)]
    command += [
        "--ray-client-server-port",
        str(client),
        "--metrics-export-port",
        str(metrics),
        "--object-store-memory",
        str(200 << 20),
        "--disable-usage-stats",
    ]
    with (folder / "ray.log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | env, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (folder / "ray.log").read_text(errors="replace"):
            assert child.poll() is None, (folder / "ray.log").read_text()
            assert time.monotonic() < deadline, "the cluster does not start"
            time.sleep(0.2)
        yield Head(f"127.0.0.1:{port}", metrics, env, f"http://127.0.0.1:{dashboard}", agent)
    finally:
        child.send_signal(signal.SIGTERM)  # it ends the node's processes, and waits for them
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
