"""Prometheus on loopback, with the scrape configuration and the alert rules of ``infra/prometheus``."""

from pathlib import Path

import yaml

from infra.stack.programs import prometheus_program, unpack_prometheus
from infra.stack.ray_nodes import discovery_file
from infra.stack.stack import Stack

SOURCE = Path(__file__).resolve().parents[1] / "prometheus"


def start_prometheus(stack: Stack) -> bool:
    """Start it; False where this machine has none."""
    unpack_prometheus(stack.folder.debian)
    program = prometheus_program("prometheus", stack.folder.debian)
    if program is None:
        return False
    port = stack.state.ports["prometheus"]
    config = yaml.safe_load((SOURCE / "prometheus.yml").read_text())
    config["rule_files"] = [str(SOURCE / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        for found in job.get("file_sd_configs", []):
            found["files"] = [str(discovery_file(stack))]
        if job["job_name"] == "prometheus":
            job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    written = stack.folder.config / "prometheus.yml"
    written.write_text(yaml.safe_dump(config))
    data = stack.folder.data / "prometheus"
    data.mkdir(exist_ok=True)
    command = [str(program), f"--config.file={written}", f"--storage.tsdb.path={data}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=15d"]
    stack.launch("prometheus", command, f"Prometheus with the alert rules at {address(stack)}")
    return True


def address(stack: Stack) -> str:
    """Where it answers."""
    return f"http://127.0.0.1:{stack.state.ports['prometheus']}"
