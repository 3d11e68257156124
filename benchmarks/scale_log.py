"""What a Delta table's log costs whoever commits and reads, as its files add up."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.scale_costs import BLOCK_ROWS, arriving


def log(sizes: tuple[int, ...] = (100, 1_000), num_commits: int = 20) -> dict[str, Any]:
    """A score table of so many files, then commits upon it: CPU seconds to open, commit, read and compact.

    A table is opened from its last checkpoint (a line for each file; one every 100 commits) and the commits since.
    """
    return {f"{num_files} files": _table(num_files, num_commits) for num_files in sizes}


def _table(num_files: int, num_commits: int) -> dict[str, float]:
    import duckdb
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction

    from infra.storage import Storage
    from infra.tables import DeltaStore
    from ray_jobs.newest_rows import newest_sql
    from ray_jobs.score_table import score_table
    from ray_jobs.stages.sink import ScoreSink, SinkConfig

    name = score_table("fs2k")
    with tempfile.TemporaryDirectory() as folder:
        store, root = DeltaStore(folder, Storage()), Path(folder, name)
        sink = ScoreSink(store, SinkConfig("run", "policy", {"fs2k": ("d" * 64, "models:/facereel-fs2k/1")}))
        sink.add(arriving(BLOCK_ROWS))
        sink.commit()
        # One commit of many files instead of many commits: the same file under other names.
        lines = (root / "_delta_log" / f"{0:020}.json").read_text().splitlines()
        (add,) = [json.loads(line)["add"] for line in lines if '"add"' in line]
        actions = []
        for number in range(num_files - 1):
            os.link(root / add["path"], root / f"{number:06d}-{add['path']}")
            path = f"{number:06d}-{add['path']}"
            actions.append(AddAction(path, add["size"], {}, add["modificationTime"], True, add["stats"]))
        table = DeltaTable(store.uri(name))
        table.create_write_transaction(actions, "append", table.schema())
        DeltaTable(store.uri(name)).create_checkpoint()
        open_s, dataset_s = (_seconds(partial(work, name)) for work in (store.version, store.dataset))
        times = []
        for _ in range(num_commits):
            sink.add(arriving(1))
            times.append(_seconds(sink.commit, 1))
        connection = duckdb.connect()
        connection.register("rows", store.dataset(name))
        sql = f"SELECT count(*) FROM ({newest_sql('rows', 'video_id, committed_at')})"
        newest_s = _seconds(lambda: connection.execute(sql).fetchall(), 1)
        found = {
            "open_s": open_s,
            "dataset_s": dataset_s,
            "newest_s": newest_s,
            "commit_s": statistics.median(times[:5]),
            f"commit_s_{num_commits}_later": statistics.median(times[-5:]),
            "compact_s": _seconds(partial(store.compact, name), 1),
        }
        connection.register("rows", store.dataset(name))
        return found | {"newest_compacted_s": _seconds(lambda: connection.execute(sql).fetchall(), 1)}


def _seconds(work: Callable[[], object], num: int = 3) -> float:
    """CPU seconds of the least disturbed of some tries."""
    times = []
    for _ in range(num):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)
