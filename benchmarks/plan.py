"""The plan at scale: time and memory from 100,000 to 10,000,000 catalog rows, nine tenths of them committed.

    python -m benchmarks.plan                      100 thousand, 1 million and 10 million rows
    python -m benchmarks.plan --rows 1000000       other sizes

Each plan runs in a process of its own: seconds by the wall, peak memory of the process (imports included), and the
due list written as files. The tables are made once and kept; making those for 10 million rows takes some minutes.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import pyarrow as pa
from deltalake import write_deltalake
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
POLICY, SCORER = "policy-of-now", "d" * 64
WANTED_S, WANTED_BYTES = 60.0, 2e9
FILES_ROWS = 250_000

CATALOG_SQL = """
    SELECT 'video-' || lpad(i::VARCHAR, 12, '0') AS video_id,
           's3://a-bucket-of-videos/uploads/2026/' || md5(i::VARCHAR) || '/original.mp4' AS uri,
           md5('etag' || i) AS etag, 'creator-' || (hash(i) % 1000000) AS creator_id,
           1000000 + (i % 9000000) AS size, 16 + (i % 600) / 10.0 AS age, i AS views
    FROM range({num_rows}) t(i)
"""
# Of ten rows nine are committed; of those 1/30 are for other content, 1/30 for another policy, 1/18 of another scorer.
SCORED_SQL = f"""
    SELECT video_id, uri, if(views % 30 = 1, md5('old' || views), etag) AS etag, size AS size_bytes,
           if(views % 30 = 2, 'policy-of-old', '{POLICY}') AS policy,
           if(views % 18 = 3, repeat('c', 64), '{SCORER}') AS scorer, 'models:/facereel-fs2k/3' AS scorer_version,
           'scored' AS status, (views % 40)::FLOAT AS score, 'run-1' AS run_id,
           TIMESTAMPTZ '2026-01-01 00:00:00+00' AS committed_at
    FROM catalog WHERE views % 10 <> 0
"""
QUARANTINE_SQL = f"""
    SELECT video_id, uri, etag, '{POLICY}' AS policy, if(views % 200 = 0, 'truncated', 'storage_timeout') AS reason,
           views % 200 <> 0 AS retryable, 1::INTEGER AS attempts, TIMESTAMPTZ '2026-01-01 00:00:00+00' AS committed_at
    FROM catalog WHERE views % 100 = 0
"""


def make(folder: Path, num_rows: int) -> None:
    """The catalog and the tables, unless they are there."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(str(folder / "making.duckdb"), config={"memory_limit": "2GB"})
    connection.execute(
        f"COPY ({CATALOG_SQL.format(num_rows=num_rows)}) TO '{folder / 'catalog.parquet'}' (FORMAT PARQUET)"
    )
    connection.execute(f"CREATE VIEW catalog AS SELECT * FROM '{folder / 'catalog.parquet'}'")
    for name, sql in (("scores_fs2k", SCORED_SQL), ("quarantine", QUARANTINE_SQL)):
        for batch in connection.sql(sql).to_arrow_reader(FILES_ROWS):
            write_deltalake(str(folder / "tables" / name), pa.Table.from_batches([batch]), mode="append")
    connection.close()
    (folder / "making.duckdb").unlink()
    (folder / "done").touch()


def plan_once(folder: Path) -> None:
    """Plan, write the due list, and print what it took as JSON."""
    from infra.settings import Settings
    from infra.storage import Storage
    from ray_jobs.planning import make_plan

    start_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory(dir=folder) as due,
        make_plan(
            str(folder / "catalog.parquet"),
            str(folder / "tables"),
            policy=POLICY,
            scorers={"fs2k": SCORER},
            settings=Settings(),
        ) as plan,
    ):
        planned_s = time.monotonic() - start_s
        plan.write_due(f"{due}/due", Storage())
        figures = {
            "plan_s": planned_s,
            "due_s": time.monotonic() - start_s - planned_s,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "num_due": plan.num_due,
            "counts": plan.counts["fs2k"],
        }
    print(json.dumps(figures))


def expected(num_rows: int) -> dict[str, int]:
    """The counts by another way: a formula over the row's number."""
    (row,) = duckdb.sql(
        f"""
        SELECT count(*) FILTER (age < 18), count(*) FILTER (age >= 18 AND i % 10 <> 0 AND i % 30 = 1),
               count(*) FILTER (age >= 18 AND i % 100 = 0)
        FROM (SELECT i, 16 + (i % 600) / 10.0 AS age FROM range({num_rows}) t(i))
        """
    ).fetchall()
    return dict(zip(("minor", "stale_content", "failed"), row, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    default = Path(tempfile.gettempdir()) / "facereel-plan-tables"
    parser.add_argument("--folder", type=Path, default=default, help="where the tables are kept")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        plan_once(options.once)
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("catalog", "committed", "due", "plan, s", "due list, s", "peak memory, MB", "verdict")
    for column in table.columns[:-1]:
        column.justify = "right"
    for num_rows in options.rows:
        folder = options.folder / str(num_rows)
        with console.status(f"making tables for {num_rows:,} rows"):
            make(folder, num_rows)
        with console.status(f"planning {num_rows:,} rows"):
            command = [sys.executable, "-m", "benchmarks.plan", "--once", str(folder)]
            answer = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
        counts = answer["counts"]
        found = {
            "minor": counts["minor"],
            "stale_content": counts["stale_content"],
            "failed": counts["quarantined"] + counts["quarantined_retryable"],
        }
        assert found == expected(num_rows), (found, expected(num_rows))
        assert sum(counts.values()) == num_rows, counts
        holds = answer["plan_s"] <= WANTED_S and answer["peak_bytes"] <= WANTED_BYTES
        verdict = "[green]holds[/]" if holds else "[red]misses[/]"
        table.add_row(
            f"{num_rows:,}",
            f"{num_rows * 9 // 10:,}",
            f"{answer['num_due']:,}",
            f"{answer['plan_s']:.1f}",
            f"{answer['due_s']:.1f}",
            f"{answer['peak_bytes'] / 1e6:,.0f}",
            f"{verdict} (wanted: ≤ {WANTED_S:.0f} s, ≤ {WANTED_BYTES / 1e9:g} GB)",
        )
    console.print(table)


if __name__ == "__main__":
    main()
