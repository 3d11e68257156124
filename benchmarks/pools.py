"""What one decoder and one predictor take: seconds of CPU and memory for a video, the ground of `ray_jobs/sizing.py`.

    python -m benchmarks.pools                  about three minutes on two idle cores

Each runs in a process of its own with one thread, as Ray runs it. Memory is the peak of the proportional set size
(shared pages count once) of the process and its children. Videos are encoded here: 60 s, 25 pictures a second. Crops
are 256 × 256, ten a video, the most that the default policy gives.
"""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
VIDEOS = (
    "360p GOP 250, B-frames",
    "720p GOP 250, B-frames",
    "1080p phone, HEVC GOP 30, turned",
)
NETWORKS = (("resnet18", 112), ("resnet50", 224), ("densenet121", 256))
NUM_ROWS, NUM_FACES = 32, 10

DECODE = """
import sys, time, psutil, torch
torch.set_num_threads(1)
from infra.settings import StorageSettings
from models.faces.policy import FacePolicy
from models.video.sampling import FramePolicy
from ray_jobs.stages.extract import ExtractConfig, Extractor
config = ExtractConfig(frame_policy=FramePolicy(), face_policy=FacePolicy(), storage=StorageSettings())
extractor = Extractor(config)
row = extractor.extract(sys.argv[1], None)
assert row["reason"] is None, row
def used():
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)
before, start = used(), time.perf_counter()
for _ in range(3):
    extractor.extract(sys.argv[1], None)
print((used() - before) / 3)
"""
PREDICT = """
import sys, time, tempfile, numpy, pyarrow, torch
from pathlib import Path
torch.set_num_threads(1)
from infra.settings import StorageSettings
from infra.storage import Storage
from models.faces.policy import FacePolicy
from models.network import build_network
from models.scorer import save_scorer, load_scorer
from models.tasks.base import get_task
from models.transforms import InputConfig
from ray_jobs.stages.predict import CarriedScorer, PredictStage
from tests.unit.scorers import small_manifest
backbone, size, rows, faces = sys.argv[1], *map(int, sys.argv[2:])
policy = FacePolicy()
manifest = small_manifest("attractiveness").model_copy(
    update={"backbone": backbone, "input": InputConfig(size=size), "face_policy": policy})
with tempfile.TemporaryDirectory() as folder:
    directory = Path(folder) / "scorer"
    save_scorer(directory, build_network(backbone, get_task("attractiveness").heads).eval(), manifest)
    carried = CarriedScorer.carry(directory, "attractiveness", load_scorer(directory).digest)
stage = PredictStage([carried], Storage(StorageSettings()), "cpu")
crops = numpy.random.default_rng(0).integers(0, 256, (faces, policy.crop_size, policy.crop_size, 3), dtype=numpy.uint8)
batch = pyarrow.table({"due_tasks": [["attractiveness"]] * rows,
    "crops": pyarrow.array([crops.tobytes()] * rows, pyarrow.large_binary())})
start = time.process_time()
stage(batch)
print((time.process_time() - start) / rows)
"""
TRAIN = """
import sys, time, torch
torch.set_num_threads(1)
import ray_jobs.training.loop
from models.network import build_network
from models.tasks.base import get_task
network = build_network(sys.argv[1], get_task("attractiveness").heads)
optimizer = torch.optim.AdamW(network.parameters())
start = time.process_time()
logits = network(torch.zeros(2, 3, 64, 64))
sum(values.sum() for values in logits.values()).backward()
optimizer.step()
print(time.process_time() - start)
"""


def measured(code: str, *arguments: str) -> tuple[float, float]:
    """CPU seconds a video, as the code prints them, and peak memory of its processes in MiB."""
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    peak = 0.0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.1):
            total = 0.0
            try:
                for process in [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]:
                    total += process.memory_full_info().pss / 2**20
            except psutil.Error:
                continue
            peak = max(peak, total)

    thread = threading.Thread(target=watch)
    thread.start()
    printed, _ = child.communicate()
    ended.set()
    thread.join()
    assert child.returncode == 0
    return float(printed), peak


def main() -> None:
    """Measure and print."""
    from benchmarks.decode_catalog import CATALOG, make

    console = Console()
    console.print(f"one CPU thread, {time.strftime('%Y-%m-%d')}: CPU seconds a video, peak memory")
    with tempfile.TemporaryDirectory(prefix="facereel-") as folder:
        for backbone, size in NETWORKS:
            seconds, mib = measured(PREDICT, backbone, str(size), str(NUM_ROWS), str(NUM_FACES))
            console.print(f"predict {backbone} at {size}, {NUM_FACES} faces: {seconds:.2f} s, {mib:.0f} MiB")
        _, mib = measured(TRAIN, "resnet50")
        console.print(f"train resnet50, before crops and activations: {mib:.0f} MiB")
        for video in CATALOG:
            if video.name in VIDEOS:
                path = Path(folder) / f"{VIDEOS.index(video.name)}.{video.suffix}"
                make(video, path)
                seconds, mib = measured(DECODE, str(path))
                console.print(f"decode {video.name}: {seconds:.2f} s, {mib:.0f} MiB")


if __name__ == "__main__":
    main()
