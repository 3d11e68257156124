"""A job's runtime environment: the file's, with values and references from the command line; secrets by name only."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from infra.errors import UserError
from infra.settings import ENV_DELIMITER, ENV_PREFIX, secret_fields
from ray_jobs.job_environment import REFERENCES, STOP_WAIT, STOP_WAIT_S

# A variable's name that stands for a secret, whoever reads it: AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD, …
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE_KEY|API_KEY|ACCESS_KEY(?!_ID)")
NAME = re.compile(r"[A-Z_][A-Z0-9_]*")  # Ray empties references of such names alone where the node has none
REFERENCE = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)\}")
PASSWORD_IN_ADDRESS = re.compile(r"://[^/@\s]*:[^/@\s]+@")
NO_SECRETS = {"RAY_AUTH_TOKEN_PATH"}  # paths of secrets, not secrets


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    own = {f"{ENV_PREFIX}{section}{ENV_DELIMITER}{key}".upper() for section, key in secret_fields()}
    return name.upper() not in NO_SECRETS and (name.upper() in own or bool(SECRET_NAME.search(name.upper())))


def read_runtime_env(path: Path) -> dict[str, Any]:
    """A runtime environment's file.

    Raises:
        UserError: It cannot be read, is no mapping, or holds a secret's value.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--runtime-env {path}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not isinstance(found.get("env_vars") or {}, dict):
        raise UserError(f"--runtime-env {path}: give a mapping with env_vars, as in infra/runtime_env.yaml")
    variables = found.get("env_vars") or {}
    for name, value in variables.items():
        where = f"--runtime-env {path}: env_vars.{name}"
        _refuse_plain_secret(where, str(name), str(value))
        if not isinstance(value, str):
            raise UserError(f"{where}: Ray takes text only; put {value!r} into quotes")
    if "working_dir" in found:
        raise UserError(f"--runtime-env {path}: working_dir is --working-dir's")
    return found


def with_variables(
    runtime_env: Mapping[str, Any], plain: Iterable[str], references: Iterable[str]
) -> tuple[dict[str, Any], bool]:
    """The environment with ``NAME=VALUE`` and references added, and whether that changed anything.

    Where it does not say how long a job that is stopped may take, it does afterwards. A reference is ``NAME`` or
    ``NAME=NODES_NAME``: on each node the variable becomes what ``NODES_NAME`` is there. The job is told what must not
    be empty, so that a missing secret ends it in its first second (`check_references`).

    Raises:
        UserError: An item is none, or gives a secret's value.
    """
    before = dict(runtime_env.get("env_vars") or {})
    variables = {STOP_WAIT: str(STOP_WAIT_S), **before}
    secrets = {name for name in variables if is_secret(name)}
    for item in plain:
        name, separator, value = item.partition("=")
        if not separator or not name:
            raise UserError(f"--env {name}: give NAME=VALUE")
        _refuse_plain_secret(f"--env {name}", name, value)
        variables[name] = value
    for item in references:
        name, _, source = item.partition("=")
        source = source or name
        if not NAME.fullmatch(name) or not NAME.fullmatch(source):
            raise UserError(
                f"--secret {name}: give NAME, or NAME=VARIABLE_OF_THE_NODES, in capitals; never the secret itself"
            )
        variables[name] = f"${{{source}}}"
        secrets.add(name)
    needed = [
        f"{name}={source}"
        for name, value in variables.items()
        for source in REFERENCE.findall(value)
        if name in secrets
    ]
    if needed:
        variables[REFERENCES] = ",".join(needed)
    return {**runtime_env, "env_vars": variables}, variables != before


def _refuse_plain_secret(where: str, name: str, value: str) -> None:
    plain = REFERENCE.sub("", value)
    if (is_secret(name) and plain) or PASSWORD_IN_ADDRESS.search(plain):
        raise UserError(
            f"{where}: a secret does not belong into a job's record: put it into the nodes' environment, and give "
            f"its name there (--secret {name}=VARIABLE_OF_THE_NODES, or {name}: ${{VARIABLE_OF_THE_NODES}} in the file)"
        )
