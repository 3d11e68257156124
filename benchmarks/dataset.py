"""Finishing a crops dataset: near-duplicates, ranks, statistics and files, from 10,000 to 100,000 staged crops.

    python -m benchmarks.dataset                   10 thousand and 100 thousand crops
    python -m benchmarks.dataset --crops 1000      other numbers

Each run is a process of its own: seconds by the wall, peak memory of the process (imports included). The crops are
copies of some JPEGs under different names, ten to a video, and their perceptual hashes are drawn at random, with one in
fifty a near-duplicate of its neighbour.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
CROP_SIZE, NUM_PICTURES, CROPS_OF_VIDEO, FILE_ROWS = 256, 200, 10, 2_000
WANTED_S = 120.0


def make(root: Path, num_crops: int) -> None:
    """Staged files as extraction leaves them."""
    from ray_jobs.crops.jpeg import encode_crop
    from ray_jobs.crops.staging import KEY, PREFIX
    from ray_jobs.splits import split_of

    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(NUM_PICTURES):
        rough = rng.integers(0, 256, (16, 16, 3)).repeat(16, 0).repeat(16, 1)
        crop = np.clip(rough + rng.normal(0, 12, rough.shape), 0, 255).astype(np.uint8)
        pixels = crop.reshape(-1, 3).astype(np.int64)
        pictures.append((encode_crop(crop), pixels.sum(0).tolist(), (pixels**2).sum(0).tolist()))
    hashes = rng.integers(0, 1 << 63, num_crops, dtype=np.uint64)
    hashes[1::50] = hashes[0::50][: len(hashes[1::50])] ^ np.uint64(1)
    (root / KEY).write_text("benchmark")
    for number, start in enumerate(range(0, num_crops, FILE_ROWS)):
        rows = []
        for index in range(start, min(start + FILE_ROWS, num_crops)):
            video, face = divmod(index, CROPS_OF_VIDEO)
            crop, total, squares = pictures[index % NUM_PICTURES]
            creator = f"creator-{video % 5000}"
            row = {"video_id": f"video-{video:07d}", "creator_id": creator, "age": 30.0, "remarks": ["smoking"]}
            row |= {"source": f"labels.csv:{video}", "gender": "male", "reason": None, "num_faces": CROPS_OF_VIDEO}
            row |= {"split": split_of("creator", creator_id=creator, video_id="", frame_index=0), "dropped": []}
            row |= {"face": face, "frame_index": 50 * face, "pts_s": 2.0 * face, "faces_in_frame": 1, "crop": crop}
            row |= dict.fromkeys(("confidence", "size_px", "sharpness", "brightness", "yaw_deg", "roll_deg"), 0.5)
            row |= {"perceptual_hash": int(hashes[index]), "channel_sum": total, "channel_sum_of_squares": squares}
            rows.append(row | {"score": 60 + video % 40})
        schema = pa.schema(
            [("dropped", pa.map_(pa.string(), pa.int32())), ("reason", pa.string()), ("perceptual_hash", pa.uint64())]
        )
        table = pa.Table.from_pylist([{k: v for k, v in row.items() if k not in schema.names} for row in rows])
        for field in schema:
            table = table.append_column(field, pa.array([row[field.name] for row in rows], field.type))
        pq.write_table(table, root / f"{PREFIX}{number:06d}.parquet")


def finish_once(root: Path) -> None:
    """Finish the dataset, and print what it took as JSON."""
    from infra.storage import Storage
    from ray_jobs.crops.dataset import DatasetRules
    from ray_jobs.crops.finishing import finish
    from ray_jobs.crops.staging import Staging

    start_s = time.monotonic()
    staging = Staging(str(root), Storage(), "benchmark")
    found = finish(staging, str(root), Storage(), ["score"], crop_size=CROP_SIZE, rules=DatasetRules())
    figures = {
        "seconds": time.monotonic() - start_s,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "num_crops": sum(split.num_crops for split in found.splits.values()),
        "num_near": sum(split.num_near_duplicates for split in found.splits.values()),
    }
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        finish_once(options.once)
        return
    table = Table("crops", "near-duplicates", "seconds", "peak memory, MB", "verdict")
    for column in table.columns[:-1]:
        column.justify = "right"
    for num_crops in options.crops:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), num_crops)
            command = [sys.executable, "-m", "benchmarks.dataset", "--once", folder]
            answer = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
        assert answer["num_crops"] == num_crops, answer
        verdict = "holds" if answer["seconds"] <= WANTED_S else f"MISSES {WANTED_S:g} s"
        figures = (f"{answer['seconds']:.1f}", f"{answer['peak_bytes'] / 1e6:,.0f}")
        table.add_row(f"{num_crops:,}", f"{answer['num_near']:,}", *figures, verdict)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
