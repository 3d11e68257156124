"""An MLflow server on loopback: runs and registry in Postgres, artifacts in a bucket, which only the server reaches."""

import urllib.error
import urllib.request

from infra.stack.postgres import database_uri
from infra.stack.programs import python_program
from infra.stack.stack import Stack
from infra.stack.swift import REGION, access_key, endpoint


def start_mlflow(stack: Stack) -> None:
    """Start it."""
    port = stack.state.ports["mlflow"]
    command = [str(python_program("python")), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--artifacts-destination", "s3://mlflow"]
    env = {
        "MLFLOW_BACKEND_STORE_URI": database_uri(stack),  # not in the command, which every user of the machine sees
        "MLFLOW_S3_ENDPOINT_URL": endpoint(stack),
        "AWS_ACCESS_KEY_ID": access_key(stack),
        "AWS_SECRET_ACCESS_KEY": stack.state.s3_secret,
        "AWS_DEFAULT_REGION": REGION,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # nine processes and 2 GB that nobody needs here
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    stack.launch("mlflow", command, f"MLflow at {tracking_uri(stack)}", env)


def tracking_uri(stack: Stack) -> str:
    """The server's address."""
    return f"http://127.0.0.1:{stack.state.ports['mlflow']}"


def answers(address: str) -> bool:
    """Whether a GET there succeeds."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
