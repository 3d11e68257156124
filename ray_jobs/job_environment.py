"""What a submitted job checks of its own environment in its first second."""

import os
from collections.abc import Mapping

from infra.errors import UserError
from infra.settings import ENV_DELIMITER, ENV_PREFIX

# Names the variables that the job takes from its node's: NAME=NODES_NAME, …
REFERENCES = f"{ENV_PREFIX}REFERENCES"
# Seconds from `ray job stop`, which sends SIGTERM, to SIGKILL; read by Ray. Its default is too short for a commit.
STOP_WAIT, STOP_WAIT_S, RAYS_STOP_WAIT_S = "RAY_JOB_STOP_WAIT_TIME_S", 120, 3
# Set by Ray for the process of a submitted job.
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def is_submitted() -> bool:
    """Whether this process is a job that somebody submitted."""
    return JOB_CONFIG in os.environ


def check_references(environment: Mapping[str, str]) -> None:
    """Refuse to start without a secret that the job was to take from its node.

    Raises:
        UserError: Names the variables.
    """
    wanted = [item.partition("=") for item in environment.get(REFERENCES, "").split(",") if item]
    missing = [f"{name} (the node's {source})" for name, _, source in wanted if not environment.get(name)]
    if missing:
        raise UserError(
            f"missing on this node: {', '.join(missing)}; set what is missing in the environment of the cluster's "
            "nodes, or correct the names of --secret"
        )


def refuse_fleeting_tracking(uri: str) -> None:
    """Refuse to register what is learned in the job's own copy of the code, which goes away with the job.

    Raises:
        UserError: The registry is a relative SQLite file, and this is a submitted job.
    """
    if is_submitted() and uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        raise UserError(
            f"tracking.uri is {uri}, a file in this job's own copy of the code, which goes away with the job: set "
            f"{ENV_PREFIX}TRACKING{ENV_DELIMITER}URI to the cluster's MLflow server"
        )
