"""A look, before minutes of work, at whether its result can be written and MLflow answers."""

import secrets
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from infra.errors import UserError
from infra.settings import TrackingSettings
from infra.storage import Storage, StorageError, is_s3, join
from infra.tracking import impatient, shown_uri, tracking_client, without_credentials


def refuse_unwritable(storage: Storage, option: str, uri: str) -> None:
    """Write an object below a bucket's prefix and remove it; a local folder says by itself, and at once.

    Raises:
        UserError: The store refuses, or is not reached.
    """
    if not is_s3(uri):
        return
    probe = join(uri, f"_probe-{secrets.token_hex(6)}")
    try:
        storage.put(probe, b"")
        storage.delete(probe)
    except StorageError as error:
        raise UserError(
            f"{option} {uri}: cannot be written: {error}; grant list, get, put and delete below it, or give another "
            "place (the verb doctor looks closer)"
        ) from error


def answering_client(settings: TrackingSettings, references: Iterable[str] | None = None) -> MlflowClient:
    """`tracking_client`, for the start of a job: once a process it is seen whether the server answers.

    MLflow itself tries for minutes, and goes on doing so in all later requests.

    Args:
        settings: Where MLflow is.
        references: The scorers that the client is wanted for, where for no more: directories need no server.

    Raises:
        UserError: Nobody answers within half a minute, or the credentials are refused.
    """
    client = tracking_client(settings)
    if references is None or not all(Path(reference).is_dir() for reference in references):
        _look(client.tracking_uri)
    return client


@cache
def _look(uri: str) -> None:
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with impatient():
            MlflowClient(uri, uri).search_experiments(max_results=1)
    except MlflowException as error:
        cause: BaseException = error  # MLflow wraps requests, which wraps urllib3, which wraps what has happened
        while cause.__context__ is not None:
            cause = cause.__context__
        if isinstance(reason := getattr(cause, "reason", None), Exception):  # "too many 503 error responses"
            cause = reason
        why = without_credentials(" ".join(str(cause).split()))[:300]
        if error.get_http_status_code() in (401, 403):
            word = "MLflow refuses"
            fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        else:
            word = "no MLflow answers there"
            fix = "start its server, or correct FACEREEL_TRACKING__URI"
        raise UserError(
            f"tracking.uri {shown_uri(uri)}: {word} ({why}): {fix}; the verb doctor looks closer"
        ) from error
