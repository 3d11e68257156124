"""What one row, block, commit, request and plan cost: the measuring behind ``benchmarks.scale``."""

import hashlib
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import decode_catalog
from benchmarks.decode_catalog import CATALOG, make

TASKS = ("attractiveness", "fs2k")
FACES = 10  # of a video, by the default frame policy
BLOCK_ROWS = 32


def arriving(num_rows: int, start: int = 0) -> pa.Table:
    """Rows as they arrive at the driver: ``FACES`` faces each, random figures, so that Parquet cannot shrink them."""
    from models.tasks.base import get_task
    from ray_jobs.stages.extract import EXTRACT_FIELDS, FACE_TYPE
    from ray_jobs.stages.predict import face_schema, faces_column

    rng = np.random.default_rng(start)

    def value(kind: pa.DataType) -> Any:
        if pa.types.is_struct(kind):
            return {kind.field(i).name: value(kind.field(i).type) for i in range(kind.num_fields)}
        if pa.types.is_list(kind):
            return [value(kind.value_type) for _ in range(40 if pa.types.is_float32(kind.value_type) else 4)]
        if pa.types.is_boolean(kind):
            return bool(rng.integers(2))
        if pa.types.is_integer(kind):
            return int(rng.integers(500))
        return "brown" if pa.types.is_string(kind) else float(rng.random())

    ids = [f"video-{start + row:012d}" for row in range(num_rows)]
    known: dict[str, Any] = dict.fromkeys(("reason", "retryable", "message", "read_sha256"))
    known |= {"num_tries": 1, "read_bytes": 8_000_000, "fetched_bytes": 2_000_000, "num_frames": 10}
    known |= {"num_faces": FACES, "dropped": [("small", 1)], "extract_s": 0.8}
    columns: dict[str, Any] = {
        "video_id": ids,
        "uri": [f"s3://a-bucket-of-videos/uploads/2026/{name}/original.mp4" for name in ids],
        "etag": [rng.bytes(16).hex() for _ in ids],
        "due_tasks": [list(TASKS)] * num_rows,
        "attempts": pa.array([0] * num_rows, pa.int32()),
        "predict_s": pa.array([0.01] * num_rows, pa.float32()),
    }
    for field in EXTRACT_FIELDS:
        if field.name == "read_etag":
            columns[field.name] = columns["etag"]
        elif field.name == "faces":
            columns[field.name] = pa.array(
                [[value(FACE_TYPE) for _ in range(FACES)] for _ in ids], type=pa.list_(FACE_TYPE)
            )
        elif field.name != "crops":
            columns[field.name] = pa.array([known[field.name]] * num_rows, type=field.type)
    for task in TASKS:
        video, face = pa.struct(get_task(task).output_schema()), pa.struct(face_schema(task))
        columns[task] = pa.array([value(video) for _ in ids], type=video)
        columns[faces_column(task)] = pa.array([[value(face) for _ in range(FACES)] for _ in ids], type=pa.list_(face))
    return pa.table(columns)


def sink(num_commits: int = 5, rows_per_commit: int = 6_400) -> dict[str, float]:
    """Driver seconds a row for each task by the slope between small and large commits, and a commit's own seconds."""
    from infra.storage import Storage
    from infra.tables import DeltaStore
    from ray_jobs.stages.sink import ScoreSink, SinkConfig

    block = arriving(BLOCK_ROWS)
    found: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scorers = {task: ("d" * 64, f"models:/facereel-{task}/1") for task in TASKS}
        sink = ScoreSink(DeltaStore(folder, Storage()), SinkConfig("run", "policy", scorers))
        for num_rows in [rows_per_commit, BLOCK_ROWS] * num_commits:
            for _ in range(num_rows // BLOCK_ROWS):
                sink.add(block)
            start = time.process_time()
            sink.commit()
            found.setdefault(num_rows, []).append(time.process_time() - start)
        large, small = (statistics.median(found[num]) for num in (rows_per_commit, BLOCK_ROWS))
        sizes = [path.stat().st_size for path in Path(folder).glob("scores_*/*.parquet")]
        row_bytes = sum(sizes) / num_commits / (rows_per_commit + BLOCK_ROWS)
    per_row = (large - small) / (rows_per_commit - BLOCK_ROWS) / len(TASKS)
    return {
        "row_task_s": per_row,
        "commit_s": (small - per_row * BLOCK_ROWS * len(TASKS)) / len(TASKS),
        "table_row_bytes": row_bytes / len(TASKS),
    }


def requests() -> dict[str, Any]:
    """Requests and bytes of the default frame policy, over the files of the decoding benchmark (25 s and 75 s each)."""
    from infra.storage_base import ObjectStat
    from infra.storage_reader import SeekableReader
    from models.video.decode import decode_frames
    from models.video.limits import DecodeLimits
    from models.video.sampling import FramePolicy

    recipe = hashlib.sha256(Path(decode_catalog.__file__).read_bytes()).hexdigest()[:8]
    folder = Path(tempfile.gettempdir()) / f"facereel-decode-catalog-{recipe}"  # where `benchmarks.decode` keeps it
    folder.mkdir(exist_ok=True)
    found = {}
    for video in CATALOG:
        path = folder / f"{re.sub(r'[^a-z0-9]+', '-', video.name.lower())}.{video.suffix}"
        make(video, path)
        data = path.read_bytes()
        reader = SeekableReader(
            ObjectStat(path.name, len(data), "etag"),
            lambda start, end, data=data: data[start:end],
            read_ahead_bytes=1 << 20,
            head=data[: 1 << 20],
        )
        decode_frames(reader, FramePolicy(), DecodeLimits(), name=path.name)
        found[video.name] = {"requests": reader.num_requests, "read": reader.bytes_read, "size": len(data)}
    return {
        "video_requests": statistics.mean(one["requests"] for one in found.values()),
        "video_read_bytes": statistics.mean(one["read"] for one in found.values()),
        "videos": found,
    }


def faces(num_videos: int = 4) -> dict[str, float]:
    """CPU seconds to find and cut the faces of a video's ten frames (640 × 360, one drawn face each)."""
    import torch

    from models.faces.detect import build_detector
    from models.faces.extract import extract_faces
    from models.faces.policy import FacePolicy
    from models.video.frames import Frame
    from ray_jobs.drawing.attributes import FaceAttributes
    from ray_jobs.drawing.video import draw_frames

    torch.set_num_threads(1)
    rng, policy = np.random.default_rng(0), FacePolicy()
    detector = build_detector(policy)
    times = []
    for _ in range(num_videos):
        pictures = list(draw_frames(FaceAttributes.random(rng), FACES, (640, 360), rng))
        frames = [Frame(rgb=rgb, index=50 * number, pts_s=2.0 * number) for number, rgb in enumerate(pictures)]
        start = time.process_time()
        found = extract_faces(frames, policy, detector)
        times.append(time.process_time() - start)
    return {"faces_s": min(times), "crops": len(found.crops), "crop_bytes": found.crops[0].nbytes}


def plan(num_rows: int = 1_000_000) -> dict[str, float]:
    """A first plan (all new) and its due list: seconds, bytes of memory and of the scratch disk, a video."""
    import resource

    from benchmarks.plan import POLICY, SCORER
    from benchmarks.plan import make as make_tables
    from infra.settings import Settings
    from infra.storage import Storage
    from ray_jobs.planning import make_plan

    folder = Path(tempfile.gettempdir()) / "facereel-plan-tables"  # where `benchmarks.plan` keeps them
    make_tables(folder / str(num_rows), num_rows)
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    catalog = str(folder / str(num_rows) / "catalog.parquet")
    with (
        tempfile.TemporaryDirectory(dir=folder) as empty,
        make_plan(catalog, empty, policy=POLICY, scorers={"fs2k": SCORER}, settings=Settings()) as made,
    ):
        plan_s, plan_cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
        scratch = sum(path.stat().st_size for path in Path(made.folder.name).rglob("*") if path.is_file())
        made.write_due(f"{empty}/due", Storage())
        due_s = time.monotonic() - start_s - plan_s
        due = [path.stat().st_size for path in Path(empty, "due").iterdir()]
    return {
        "plan_s": plan_s / num_rows,
        "plan_cpu_s": plan_cpu_s / num_rows,
        "due_s": due_s / num_rows,
        "due_cpu_s": (time.process_time() - start_cpu_s - plan_cpu_s) / num_rows,
        "scratch_bytes": scratch / num_rows,
        "due_bytes": sum(due) / num_rows,
        "due_files": len(due),
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
