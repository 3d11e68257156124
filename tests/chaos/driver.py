"""A scoring run that keeps a journal, for whoever kills it: ``python -m tests.chaos.driver CONFIG``.

Everything but the journal is the product's own. Exit codes are those of the command line.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")

import pyarrow as pa

from infra.errors import RunStopped, TypedError, UserError
from infra.settings import load_settings
from ray_jobs import scoring
from ray_jobs.failure_guard import FailureLimits
from ray_jobs.score_config import ScoreConfig
from ray_jobs.scoring import run_score
from ray_jobs.sizing import Resources
from ray_jobs.stages.sink import ScoreSink


def journalled(path: Path) -> type[ScoreSink]:
    """A sink that notes each arrival and each commit; a line is in the file before the next step begins."""
    file = path.open("a", buffering=1)

    def note(kind: str, pending: int, arrived: int = 0) -> None:
        print(json.dumps({"at": time.time(), "kind": kind, "pending": pending, "arrived": arrived}), file=file)

    class Journalled(ScoreSink):
        def add(self, rows: pa.Table) -> None:
            super().add(rows)
            note("arrive", self.num_pending, rows.num_rows)

        def commit(self) -> None:
            if self.num_pending:
                note("commit", self.num_pending)
            super().commit()
            note("committed", self.num_pending)

    return Journalled


def main() -> int:
    options = json.loads(Path(sys.argv[1]).read_text())
    scoring.ScoreSink = journalled(Path(options["journal"]))  # type: ignore[misc]
    config = ScoreConfig(
        catalog=options["catalog"],
        tables=options["tables"],
        scorers=options["scorers"],
        resources=Resources(rows_per_block=options["rows_per_block"]),
        failures=FailureLimits(max_rate=1, first=0),
        commit_every_s=options["commit_every_s"],
        commit_every_rows=options["commit_every_rows"],
        lease_ttl_s=options["lease_ttl_s"],
    )
    settings = load_settings(os.devnull, tracking=options["tracking"], cluster={"address": options["address"]})
    try:
        run_score(config, settings)
    except (UserError, TypedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunStopped as error:
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
