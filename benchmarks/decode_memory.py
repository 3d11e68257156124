"""Memory of decoding: a 4-hour video against a 1-minute one, and many opens in one process."""

import io
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.decode_catalog import Video, make
from models.video.decode import decode_frames
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy

ROOT = Path(__file__).resolve().parents[1]
MINUTE = Video("1 minute", "mp4", "libx264", 320, 180, {"preset": "veryfast", "crf": "30", "g": "50"})
NUM_OPENS = 10_000
PEAK = """
import resource, sys
from models.video.decode import decode_frames
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
indices = tuple(map(int, sys.argv[2].split(","))) if sys.argv[2] else None
with open(sys.argv[1], "rb") as source:
    frames = decode_frames(source, FramePolicy(indices=indices), DecodeLimits(max_cpu_s=1000), name="video").frames
print(len(frames), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak_mib(path: Path, indices: tuple[int, ...] = ()) -> float:
    """Peak resident memory of a fresh process that decodes this one video."""
    command = [sys.executable, "-c", PEAK, str(path), ",".join(map(str, indices))]
    num_frames, mib = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert int(num_frames) == 10, num_frames
    return float(mib)


def resident_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def print_memory(folder: Path, console: Console) -> None:
    """Measure and print."""
    minute, hours = folder / "minute.mp4", folder / "four-hours.mp4"
    make(MINUTE, minute)
    make(MINUTE, hours, num_copies=720)
    late = tuple(range(0, 360_000, 36_000))
    console.print(
        f"peak memory, default policy: 1 minute {peak_mib(minute):.0f} MiB, 4 hours {peak_mib(hours):.0f} MiB"
    )
    console.print(f"peak memory, ten frames spread over 4 hours: {peak_mib(hours, late):.0f} MiB")
    data = minute.read_bytes()
    policy, limits = FramePolicy(indices=(0, 30)), DecodeLimits()
    for number in range(NUM_OPENS + 500):
        if number == 500:
            before_mib = resident_mib()
        decode_frames(io.BytesIO(data), policy, limits, name="video")
    growth_mib = resident_mib() - before_mib
    verdict = "[green]holds[/]" if growth_mib < 50 else "[red]misses[/]"
    console.print(f"{verdict} {NUM_OPENS} opens grow the process by {growth_mib:.1f} MiB (wanted: < 50)")
