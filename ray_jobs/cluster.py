"""Connect to Ray: the cluster of the submitted job, a named one, or a local one that ends with the process."""

import logging
import os

import ray
import ray.data

from infra.settings import ClusterSettings

# A silent hang costs 30 minutes by default; a stage without any progress for ten minutes is worth an error.
NO_PROGRESS_TIMEOUT_S = 600.0
_LOCAL_ENVIRONMENT = {
    # Loopback only: without it the local cluster listens on the host's outward address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Workers without a GPU keep seeing the ones there are, as Ray will have it by default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's C++ side writes to the terminal what is meant for its log files. Errors of tasks still arrive as exceptions.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def connect(settings: ClusterSettings) -> dict[str, float]:
    """Connect this process to Ray, once; returns the cluster's resources.

    A submitted job joins its cluster (``RAY_ADDRESS``). Otherwise a local cluster is started, never an existing one
    that happens to run on this machine.
    """
    if not ray.is_initialized():
        address = settings.address or os.environ.get("RAY_ADDRESS")
        if address:
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=True)
        else:
            # "Token authentication is enabled": as it should be.
            logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
            for name, value in _LOCAL_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            ray.init(
                address="local",
                # Readers, decoders and predictors each need a logical CPU, or they wait for each other for ever.
                num_cpus=settings.num_cpus or max(4, os.cpu_count() or 1),
                object_store_memory=settings.object_store_bytes,
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # "Progress bars disabled."
    return {name: float(value) for name, value in ray.cluster_resources().items()}
