"""The service on one machine: a Ray cluster of its own, until it is interrupted."""

import os
import signal
import socket
import threading
import time

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from infra.errors import UserError
from infra.settings import Settings
from serve.deployments import application
from serve.security import is_loopback

LEAST_CPUS = 6  # logical ones: a scorer, a decoder, and what the job of a batch takes
NAME = "facereel"


def start(settings: Settings, host: str, port: int, num_cpus: int | None = None) -> str:
    """Start the service, wait until its replicas run, and return its address.

    Raises:
        UserError: It would listen beyond loopback without API keys, or nothing can listen there.
    """
    if settings.serving.api_keys is None and not is_loopback(host):
        raise UserError(
            f"--host {host} is beyond loopback, where API keys are needed: make one (python -m serve keys add NAME) "
            "and name its file in FACEREEL_SERVING__API_KEYS"
        )
    if settings.cluster.address:  # its nodes listen, not this machine; perhaps they do already, and change the app
        ray.init(address=settings.cluster.address)
    else:
        _check_free(host, port)
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # its own cluster listens on loopback alone
        ray.init(address="local", num_cpus=num_cpus or max(LEAST_CPUS, os.cpu_count() or 1))
    serve.start(http_options=HTTPOptions(host=host, port=port))
    serve.run(application(settings), name=NAME, route_prefix="/")
    return f"http://{'[' + host + ']' if ':' in host else host}:{port}"


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"nothing can listen on {host}:{port} ({error.strerror}): give another --port or --host"
            ) from error


def stop() -> None:
    """End the service and the cluster: requests in work are answered first."""
    serve.shutdown()
    ray.shutdown()


def serve_until_interrupted(settings: Settings, host: str, port: int, num_cpus: int | None) -> None:
    """Serve until SIGINT or SIGTERM."""
    ended = threading.Event()
    begun = time.monotonic()
    url = start(settings, host, port, num_cpus)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    print(f"facereel answers at {url}/ after {time.monotonic() - begun:.0f} s (page at /, Ctrl-C ends it)", flush=True)
    while not ended.wait(1):
        pass
    print("ending: requests in work are answered first", flush=True)
    stop()
