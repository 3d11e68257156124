"""What the service says of itself: metrics for Prometheus through Ray, and one structured log line a request."""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram
from typing_extensions import override

log = logging.getLogger("facereel.serve")
_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
_SIZES = [1.0, 2, 4, 8, 16, 32, 64, 128, 256]
_STANDARD = frozenset(vars(logging.makeLogRecord({})))


class JsonLines(logging.Formatter):
    """A log record as one line of JSON; what was given as ``extra`` are its fields."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        fields = {key: value for key, value in vars(record).items() if key not in (*_STANDARD, "message", "asctime")}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json() -> None:
    """Send the service's log to stderr as JSON lines: Ray keeps it with the replica's log."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def request_id_of(scope: Mapping[str, Any]) -> str:
    """The id of a request, which its answer and its log line carry."""
    found: str = scope.get("state", {}).get("request_id", "")
    return found


class Metrics:
    """The service's metrics; Prometheus sees them as ``ray_facereel_…`` at Ray's export port of each node."""

    def __init__(self) -> None:
        self.requests = Counter("facereel_requests", "Requests", ("route", "status", "code"))
        self.latency = Histogram("facereel_request_seconds", "Seconds to the answer", _SECONDS, ("route",))
        self.running = Gauge("facereel_requests_running", "Requests in work")
        self.waiting = Gauge("facereel_requests_waiting", "Requests in the queue")
        self.batch_faces = Histogram("facereel_batch_faces", "Faces in a batch", _SIZES, ("task",))
        self.predict = Histogram("facereel_predict_seconds", "Seconds of a batch in the network", _SECONDS, ("task",))
        self.answers = Counter("facereel_answers", "Answers of a scorer", ("task", "version", "role"))
        self.abstentions = Counter("facereel_abstentions", "Answers without a score", ("task", "reason"))
        self.version = Gauge("facereel_model_version", "Version in use", ("task", "role"))
        self.refused_models = Counter("facereel_models_refused", "Versions that failed their checks", ("task", "role"))
        self.ready = Gauge("facereel_ready", "1 where every task has a checked scorer")

    def in_use(self, task: str, role: str, version: str) -> None:
        """A version is in use; to be said again and again, since Ray forgets a gauge that is not set."""
        self.version.set(float(version), {"task": task, "role": role})
        # Prometheus counts no first increase of a series: this one is next to nothing, so the first refusal counts.
        self.refused_models.inc(1e-9, {"task": task, "role": role})


@cache
def metrics() -> Metrics:
    """This process's metrics: Ray wants each made once."""
    return Metrics()
