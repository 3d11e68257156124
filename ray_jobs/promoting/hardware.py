"""What a scorer costs on this machine: time a crop and the largest memory, in a process of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import UserError

BATCH, ROUNDS = 32, 15


class Cost(BaseModel):
    """One scorer's predictor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(description="cpu or cuda.")
    ms_per_crop: float = Field(description="Milliseconds a crop in batches of 32, one thread; the least of fifteen.")
    peak_mib: float = Field(
        description="MiB that loading and predicting took: of the process on a CPU, of the device's memory on a GPU."
    )


def measure_cost(directory: Path) -> Cost:
    """Measure a scorer directory.

    Raises:
        UserError: It does not predict.
    """
    command = [sys.executable, "-m", "ray_jobs.promoting.hardware", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{directory} does not predict on this machine: {done.stderr.strip()[-500:]}")
    return Cost.model_validate_json(done.stdout.splitlines()[-1])


def _measure(directory: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    from models.predictor import Predictor
    from models.scorer import load_scorer

    # What else runs here makes a round longer, never shorter, and threads wait for one that does not get its CPU.
    torch.set_num_threads(1)
    before = _memory_mib("VmRSS")
    predictor = Predictor(load_scorer(directory))
    side = predictor.scorer.manifest.face_policy.crop_size
    crops = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)
    predictor.probabilities(crops)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        predictor.probabilities(crops)
        times.append(time.perf_counter() - start)
    if predictor.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = _memory_mib("VmHWM") - before
    return {"device": predictor.device.type, "ms_per_crop": 1000 * min(times) / BATCH, "peak_mib": peak}


def _memory_mib(name: str) -> float:
    """This process's memory now (VmRSS) or at most (VmHWM); getrusage counts its parent's from before the start."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name))) / 1024


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]))))
