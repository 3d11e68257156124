"""The MLflow client: where it is, experiments and runs. The rest of the code sees MLflow through here."""

import contextlib
import logging
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from infra.settings import ENV_PREFIX, TrackingSettings

# "Creating initial MLflow database tables", "Waiting up to 300 seconds for model version", "Started monitoring".
_CHATTY = (
    "mlflow.store.db.utils",
    "mlflow.store.model_registry.abstract_store",
    "mlflow.system_metrics.system_metrics_monitor",
)
CODE_VERSION = f"{ENV_PREFIX}CODE_VERSION"
_CREDENTIALS = re.compile(r"^https?://([^/:]*):([^/]*)@")


def tracking_client(settings: TrackingSettings) -> MlflowClient:
    """A client for the tracking server and model registry of the settings; loading never unpickles.

    A user and a password in the address go where MLflow looks for them, and out of the address: its errors quote it.
    """
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = absolute_uri(settings.uri)
    found = _CREDENTIALS.match(uri)
    if found is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = map(unquote, found.groups())
        uri = without_credentials(uri)
    return _client(uri)


@cache
def _client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


# Two tries of ten seconds: whoever is asked for a quick look says within half a minute that nobody answers.
_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}
_IMPATIENCE = threading.RLock()


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """MLflow's clients try for minutes; within this, whatever the environment says, for at most 21 seconds a request.

    It changes the environment, which is everybody's: other threads' requests are impatient meanwhile, and only one
    thread is within at a time.
    """
    with _IMPATIENCE:
        before = {name: os.environ.get(name) for name in _IMPATIENT}
        retries = logging.getLogger("urllib3.connectionpool")  # a line for each try
        level = retries.level
        retries.setLevel(logging.ERROR)
        os.environ.update(_IMPATIENT)
        try:
            yield
        finally:
            retries.setLevel(level)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def silence(error: Exception) -> str | None:
    """What to tell of an error that means that the tracking server did not answer; None of any other error."""
    words = without_credentials(" ".join(str(error).split()))
    if not isinstance(error, MlflowException) or not words.startswith("API request to "):
        return None
    return f"MLflow does not answer any more ({words[:300]}); repeat the command once it does: it goes on where it was"


def absolute_uri(uri: str) -> str:
    """``sqlite:///relative.db`` as seen from this working directory, so that workers elsewhere open the same file."""
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return prefix + str(Path(uri.removeprefix(prefix)).resolve())
    return uri


def experiment_id(client: MlflowClient, settings: TrackingSettings) -> str:
    """The id of the settings' experiment, created when missing.

    With SQLite, artifacts lie in ``mlruns`` beside the database file; a tracking server decides by itself.
    """
    found = client.get_experiment_by_name(settings.experiment)
    if found is not None:
        return str(found.experiment_id)
    uri = absolute_uri(settings.uri)
    root = (Path(uri.removeprefix("sqlite:///")).parent / "mlruns").as_uri() if uri.startswith("sqlite:") else None
    return str(client.create_experiment(settings.experiment, artifact_location=root))


def code_version(folder: Path = Path()) -> str:
    """What `CODE_VERSION` says (of an image, of a job's uploaded copy), else the folder's commit; 'unknown' without."""
    if told := os.environ.get(CODE_VERSION):
        return told
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def shown_uri(uri: str) -> str:
    """A tracking address for messages and records: without its user, its password and its query."""
    return without_credentials(uri.partition("?")[0])


def without_credentials(text: str) -> str:
    """A text without the users and passwords of addresses in it; MLflow's own errors quote them."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)
