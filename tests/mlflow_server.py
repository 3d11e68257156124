"""A real MLflow server on 127.0.0.1 whose artifacts lie in an S3 bucket."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from infra.stack.ports import free_ports

START_TIMEOUT_S = 120
BUCKET = "mlflow-artifacts"
_KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True, slots=True)
class MlflowServer:
    """Where it listens, and where its bucket is."""

    uri: str
    endpoint_url: str

    def artifacts(self) -> list[str]:
        """Keys of all objects in the bucket."""
        pages = _s3(self.endpoint_url).get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


@contextmanager
def mlflow_server(folder: Path, database: str | None = None) -> Iterator[MlflowServer]:
    """Run a server until the block ends.

    Args:
        folder: For its log, and for its database where none is given.
        database: SQLAlchemy's URL of an empty one.
    """
    s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    endpoint_url = f"http://{host}:{port}"
    _s3(endpoint_url).create_bucket(Bucket=BUCKET)
    (own_port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(own_port)]
    command += ["--workers", "1", "--backend-store-uri", database or f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", f"s3://{BUCKET}"]
    environment = os.environ | _KEYS | {"MLFLOW_S3_ENDPOINT_URL": endpoint_url, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # nine processes that nobody needs here
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        uri = f"http://127.0.0.1:{own_port}"
        _wait(f"{uri}/health", process, folder / "server.log")
        yield MlflowServer(uri, endpoint_url)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
        s3.stop()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
            continue
        return
    raise RuntimeError(f"the MLflow server did not start: {log.read_text()[-2000:]}")


def _s3(endpoint_url: str):
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=_KEYS["AWS_DEFAULT_REGION"],
        aws_access_key_id=_KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=_KEYS["AWS_SECRET_ACCESS_KEY"],
    )
