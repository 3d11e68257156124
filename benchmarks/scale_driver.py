"""What a block costs the driver of a scoring run, by the run's own pipeline around stages that do nothing."""

import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.scale_costs import BLOCK_ROWS, arriving

CROP_BYTES = 20_000  # that stand in for a video's crops: the driver never holds them


def _stage(template: pa.Table) -> Any:
    """Stands in for extraction: yields rows one at a time, as the real one does, with crops of a few bytes."""
    from ray_jobs.stages.extract import EXTRACT_FIELDS

    fields = [field for field in EXTRACT_FIELDS if field.name != "crops"]

    def extract(batch: pa.Table) -> Iterator[pa.Table]:
        for index in range(batch.num_rows):
            one = batch.slice(index, 1)
            for field in fields:
                one = one.append_column(field, template[field.name].slice(index % template.num_rows, 1))
            yield one.append_column("crops", pa.array([bytes(CROP_BYTES)], pa.large_binary()))

    return extract


def _predictor(template: pa.Table) -> type:
    """Stands in for prediction: drops the crops, adds the columns of both tasks, gives rows in one piece."""

    class Predictor:
        def __init__(self, *_: Any) -> None:
            pass

        def __call__(self, batch: pa.Table) -> pa.Table:
            rows = pa.array([row % template.num_rows for row in range(batch.num_rows)])
            batch = batch.drop_columns(["crops"])
            for name in template.column_names:
                if name not in batch.column_names:
                    batch = batch.append_column(name, template[name].take(rows))
            return batch.combine_chunks()

    return Predictor


def driver(num_blocks: int = 700, block_rows: int = BLOCK_ROWS) -> dict[str, Any]:
    """The driver's CPU seconds and memory a block: the pipeline that `score` builds, around stages that do nothing."""
    os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")
    import pyarrow.parquet as pq
    import ray.data

    from infra.settings import Settings
    from models.faces.policy import FacePolicy
    from models.video.sampling import FramePolicy
    from ray_jobs.cluster import connect
    from ray_jobs.stages import pipeline
    from ray_jobs.stages.extract import ExtractConfig

    template = arriving(block_rows)
    settings = Settings(cluster={"num_cpus": 4, "object_store_bytes": 300 << 20})
    with tempfile.TemporaryDirectory() as folder:
        due = template.select(["video_id", "uri", "etag", "due_tasks", "attempts"])
        per_file = 50_000 // block_rows
        for number in range(0, num_blocks, per_file):
            rows = pa.concat_tables([due] * min(per_file, num_blocks - number))
            pq.write_table(rows, f"{folder}/part-{number}.parquet")
        connect(settings.cluster)
        pipeline.extract_stage = lambda _: _stage(template)
        pipeline.PredictStage = _predictor(template)
        config = ExtractConfig(frame_policy=FramePolicy(), face_policy=FacePolicy(), storage=settings.storage)
        ds = pipeline.scored(
            ray.data.read_parquet(folder, partitioning=None),
            config,
            [],
            pipeline.Resources(rows_per_block=block_rows),
        )
        process, samples, num_rows = psutil.Process(), [], 0
        start_s = time.monotonic()
        with pipeline.Arrivals(ds) as arrivals:
            for rows in arrivals:
                if rows is not None:
                    num_rows += rows.num_rows
                    used = process.cpu_times()
                    samples.append((num_rows / block_rows, used.user + used.system, process.memory_info().rss))
        wall_s = time.monotonic() - start_s
        system_s = {child.name(): sum(child.cpu_times()[:2]) for child in process.children(recursive=True)}
        assert num_rows == num_blocks * block_rows, (num_rows, num_blocks)
        ray.shutdown()
    blocks, cpu_s, memory = (np.array(column, float) for column in zip(*samples, strict=True))
    quarters = {}
    for name, low, high in (("second_quarter", 0.25, 0.5), ("second_half", 0.5, 1.0)):
        part = (blocks > low * num_blocks) & (blocks <= high * num_blocks)
        quarters[f"block_s_{name}"] = float(np.polyfit(blocks[part], cpu_s[part], 1)[0])
        quarters[f"block_bytes_{name}"] = float(np.polyfit(blocks[part], memory[part], 1)[0])
    return {
        "block_s": float(np.polyfit(blocks[blocks > num_blocks / 4], cpu_s[blocks > num_blocks / 4], 1)[0]),
        **quarters,
        "memory_bytes": float(memory[-1]),
        "wall_s": wall_s,
        "raylet_block_s": system_s.get("raylet", 0.0) / num_blocks,
        "gcs_block_s": system_s.get("gcs_server", 0.0) / num_blocks,
    }
