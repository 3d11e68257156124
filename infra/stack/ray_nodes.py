"""A Ray head without work and two workers, on loopback, with token authentication; Ray runs as a program only."""

import os
import socket
from pathlib import Path

from infra.settings import ENV_DELIMITER, ENV_PREFIX
from infra.stack.mlflow_server import tracking_uri
from infra.stack.programs import python_program
from infra.stack.stack import Stack
from infra.stack.swift import BUCKETS, REGION, access_key, endpoint

WORKERS = ("worker1", "worker2")
ROOT = Path(__file__).resolve().parents[2]
OBJECT_STORE_BYTES = 200 << 20
# Examples, so that the dashboard shows a cost: yours go into the settings.
PRICES = {"prices.cpu_hour": "0.04", "prices.gpu_hour": "2.5", "prices.read_gb": "0.01"}
# What `python -m serve` needs in the environment of the cluster's processes; a test compares it with the service's own.
SERVE_ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
    "RAY_SERVE_LOG_TO_STDERR": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
}


def client_environment(stack: Stack) -> dict[str, str]:
    """What a command needs to work with the stack; jobs get it from their node."""
    ports = stack.state.ports
    return {
        **{f"{ENV_PREFIX}{key.replace('.', ENV_DELIMITER).upper()}": value for key, value in _settings(stack).items()},
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['ray_dashboard']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(stack.folder.token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # nothing listens beyond loopback
        "RAY_DATA_USE_DATASOURCE_V2": "0",
    }


def _settings(stack: Stack) -> dict[str, str]:
    return {
        "storage.endpoint_url": endpoint(stack),
        "storage.region": REGION,
        "storage.access_key_id": access_key(stack),
        "storage.secret_access_key": stack.state.s3_secret,
        "tracking.uri": tracking_uri(stack),
        "cluster.address": gcs_address(stack),
        **PRICES,
        "serving.batches": f"s3://{BUCKETS[0]}/batches",
        "serving.buckets": f'["s3://{BUCKETS[0]}"]',
    }


def gcs_address(stack: Stack) -> str:
    """Where nodes and drivers join the cluster."""
    return f"127.0.0.1:{stack.state.ports['ray_gcs']}"


def start_head(stack: Stack) -> None:
    """Start the head node: no CPUs and no GPUs, so that work which takes its node down leaves the cluster up."""
    ports = stack.state.ports
    stack.folder.write_secret(stack.folder.token, stack.state.ray_token)
    command = [*_node(stack, "head", num_cpus=0, gpus=False), "--head", "--port", str(ports["ray_gcs"])]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(ports["ray_dashboard"])]
    command += ["--ray-client-server-port", str(ports["ray_client"]), "--temp-dir", str(stack.link_ray_folder())]
    what = f"Ray head: jobs and dashboard at http://127.0.0.1:{ports['ray_dashboard']}, nodes join {gcs_address(stack)}"
    stack.launch("ray-head", command, what, _environment(stack))


def start_worker(stack: Stack, name: str) -> None:
    """Start a worker node: half of the machine's CPUs, two at least; the first has its GPUs.

    One after the other: nodes that start at once on one machine choose the same sockets.
    """
    num_cpus = max(2, (os.cpu_count() or 1) // len(WORKERS))
    gpus = name == WORKERS[0]
    command = [*_node(stack, name, num_cpus=num_cpus, gpus=gpus), "--address", gcs_address(stack)]
    # In one folder each node would unpack a job's files over those that another node's processes are reading.
    command += ["--temp-dir", f"{stack.state.ray_link}/{name}"]
    # Ray's own command has no way to keep a second node on loopback.
    command[:1] = [str(python_program("python")), "-m", "ray_jobs.loopback_node"]
    what = f"Ray worker with {num_cpus} CPUs{' and the GPUs, if any' if gpus else ''}"
    stack.launch(f"ray-{name}", command, what, _environment(stack), cwd=ROOT)


def has_started(stack: Stack, name: str) -> bool:
    """Whether a node has said that it runs."""
    return "Ray runtime started" in (stack.folder.logs / f"ray-{name}.log").read_text(errors="replace")


def dashboard_listens(stack: Stack) -> bool:
    """Whether the head takes jobs: its dashboard comes up after the node."""
    try:
        socket.create_connection(("127.0.0.1", stack.state.ports["ray_dashboard"]), 2).close()
    except OSError:
        return False
    return True


def discovery_file(stack: Stack) -> Path:
    """Where the head writes its nodes' addresses for Prometheus."""
    return stack.folder.path / "ray" / "prom_metrics_service_discovery.json"


def _node(stack: Stack, name: str, *, num_cpus: int, gpus: bool) -> list[str]:
    """Ports that would collide with those of another node on this machine are given, the others Ray chooses."""
    ports = stack.state.ports
    command = [str(python_program("ray")), "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    command += ["--num-cpus", str(num_cpus), "--object-store-memory", str(OBJECT_STORE_BYTES)]
    command += [] if gpus else ["--num-gpus", "0"]
    command += ["--metrics-export-port", str(ports[f"{name}_metrics"])]
    command += ["--dashboard-agent-listen-port", str(ports[f"{name}_agent"])]
    return [*command, "--min-worker-port", "0", "--max-worker-port", "0"]


def _environment(stack: Stack) -> dict[str, str]:
    ports = stack.state.ports
    programs = python_program("python").parent
    return {
        **client_environment(stack),
        **SERVE_ENVIRONMENT,
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["serve_metrics"]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["serve_stats"]),
        "DASHBOARD_METRIC_PORT": str(ports["ray_dashboard_metrics"]),
        "AUTOSCALER_METRIC_PORT": str(ports["ray_autoscaler_metrics"]),
        "RAY_PROMETHEUS_HOST": f"http://127.0.0.1:{ports['prometheus']}",
        "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",  # `python` of a job's command is this one
    }
