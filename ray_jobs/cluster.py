"""Connect to Ray: the cluster of the submitted job, a named one, or a local one that ends with the process."""

import logging
import math
import os
import sys
import time

import ray
import ray.data

from infra.errors import UserError
from infra.settings import ClusterSettings
from ray_jobs.sizing import (
    MARKET_LABEL,
    SPOT,
    Cluster,
    Node,
    Resources,
    Wanted,
    check_decoding,
    check_pipeline,
    size_pipeline,
)

# A silent hang costs 30 minutes by default; a stage without any progress for ten minutes is worth an error.
NO_PROGRESS_TIMEOUT_S = 600.0
RELEASE_S = 2.0
_LOCAL_ENVIRONMENT = {
    # Loopback only: without it the local cluster listens on the host's outward address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Workers without a GPU keep seeing the ones there are, as Ray will have it by default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's C++ side writes to the terminal what is meant for its log files. Errors of tasks still arrive as exceptions.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def named_address(settings: ClusterSettings) -> str | None:
    """The address of a cluster that is there already; None: a local one is started."""
    return settings.address or os.environ.get("RAY_ADDRESS")


def connect(settings: ClusterSettings) -> Cluster:
    """Connect this process to Ray, once; returns what the cluster offers now (`look`).

    A submitted job joins its cluster (``RAY_ADDRESS``). Otherwise a local cluster is started, never an existing one
    that happens to run on this machine.

    Raises:
        UserError: Nobody answers at the address, or the cluster runs another Ray or Python than this process.
    """
    if not ray.is_initialized():
        address = named_address(settings)
        if address:
            try:
                ray.init(address=address, logging_level=logging.WARNING, log_to_driver=True)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(f"cluster {address}: {' '.join(str(error).split())}") from error
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
    return look()


def look() -> Cluster:
    """The nodes of the cluster that this process is connected to, what of them is free, and how far it may grow."""
    # Neither what is free on each node nor what an autoscaler may bring is public; Ray Train asks the same way.
    state = ray._private.state.state
    nodes, free, free_now = [], [], state.available_resources_per_node()
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        is_spot = node.get("Labels", {}).get(MARKET_LABEL) == SPOT
        nodes.append(_node(node["Resources"], is_spot))
        free.append(_node(free_now.get(node["NodeID"], {}), is_spot))
    limits = state.get_max_resources_from_cluster_config() or {}
    return Cluster(
        tuple(nodes),
        {name: math.inf if value >= sys.maxsize else float(value) for name, value in limits.items()},
        tuple(free),
    )


def _node(resources: dict[str, float], is_spot: bool) -> Node:
    offered = {name: float(value) for name, value in resources.items()}
    return Node(
        num_cpus=offered.pop("CPU", 0.0),
        num_gpus=offered.pop("GPU", 0.0),
        memory_bytes=offered.pop("memory", 0.0),
        custom={
            name: value
            for name, value in offered.items()
            if name != "object_store_memory" and not name.startswith("node:")
        },
        is_spot=is_spot,
    )


def _look_until_free() -> Cluster:
    """What is free at the best moment of `RELEASE_S`: what has ended just now still holds its CPUs in Ray's books."""
    best = look()
    deadline = time.monotonic() + RELEASE_S
    while best.unused.num_cpus_now < best.num_cpus_now and time.monotonic() < deadline:
        time.sleep(0.2)
        best = max(best, look(), key=lambda cluster: cluster.unused.num_cpus_now)
    return best


def fit(wanted: Wanted, settings: ClusterSettings, *, predicts: bool = True) -> tuple[Resources, Cluster]:
    """Connect, and share the cluster out for a pipeline that decodes, and predicts too; the cluster beside.

    Raises:
        UserError: The cluster never has what is wanted, or there is none.
    """
    connect(settings)
    cluster = _look_until_free()
    resources = size_pipeline(wanted, cluster)
    refusal = check_pipeline(resources, cluster) if predicts else check_decoding(resources, cluster)
    if refusal:
        raise UserError(refusal)
    return resources, cluster
