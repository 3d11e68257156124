"""What lies where under one root: a score table for each task, one quarantine for all, scorers and runs."""

from infra.errors import TypedError
from infra.storage import StorageError, join
from models.video.errors import VideoError

QUARANTINE = "quarantine"
RUNS = "_runs"


def score_table(task: str) -> str:
    """The name of a task's score table."""
    return f"scores_{task}"


def scorer_uri(tables: str, digest: str) -> str:
    """The copy of the scorer that made rows of these tables."""
    return join(tables, "_scorers", digest)


def quarantine_reasons() -> frozenset[str]:
    """Everything that can stand as a reason in the quarantine table."""
    kinds: list[type[TypedError]] = [VideoError, StorageError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return frozenset(kind.reason for kind in kinds if "reason" in vars(kind) and kind is not VideoError)
