"""What lies where under one root: a score table for each task, one quarantine for all, scorers and runs."""

from infra.storage import join

QUARANTINE = "quarantine"
RUNS = "_runs"


def score_table(task: str) -> str:
    """The name of a task's score table."""
    return f"scores_{task}"


def scorer_uri(tables: str, digest: str) -> str:
    """The copy of the scorer that made rows of these tables."""
    return join(tables, "_scorers", digest)
