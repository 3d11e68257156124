"""Preparing a dataset: how busy both cores are while videos are decoded, and memory from 100 to 10,000 videos.

    python -m benchmarks.extraction                       100, 1,000 and 10,000 videos (about ten minutes)
    python -m benchmarks.extraction --videos 300          other numbers

Each run is ``prepare`` in a process of its own over drawn videos of two seconds and 320 × 240, of which there are 48,
linked under as many names as wanted. ``busy`` is the CPU time of all its processes over wall-clock time and cores, from
a quarter to three quarters of the videos; memory is proportional set size (shared pages count once).
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
NUM_DRAWN = 48
POLICY = "frame: {every: 24, limit: 2}\nface: {crop_size: 96}\ndataset: {near_duplicate_bits: null}\n"


def table_of(folder: Path, drawn: list[dict[str, str]], number: int) -> Path:
    """A label table of ``number`` videos, each under a name of its own."""
    links = folder / f"videos-{number}"
    links.mkdir()
    path = folder / f"labels-{number}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "creator_id", "score"])
        for index in range(number):
            row = drawn[index % len(drawn)]
            link = links / f"{index:06d}.mp4"
            link.symlink_to(row["uri"])
            writer.writerow([link, f"creator-{index % 997}", row["score"]])
    return path


class Watch:
    """Samples a process and all its descendants once a second."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self.samples: list[tuple[float, float, float, float, float]] = []  # time, cpu s, all, driver, largest worker
        self._used: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            sizes: list[tuple[float, bool]] = []
            try:
                processes = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in processes:
                try:
                    times = process.cpu_times()
                    # A decoder's child is gone by the next sample: its parent counts what it waited for.
                    self._used[process.pid] = times.user + times.system
                    sizes.append((process.memory_full_info().pss / 2**20, process.pid == self._root.pid))
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            driver = sum(size for size, is_driver in sizes if is_driver)
            largest = max((size for size, is_driver in sizes if not is_driver), default=0.0)
            total = sum(size for size, _ in sizes)
            self.samples.append((time.monotonic(), sum(self._used.values()), total, driver, largest))


def measure(labels: Path, folder: Path, number: int) -> tuple[str, ...]:
    out = folder / f"crops-{number}"
    policy = folder / "policy.yaml"
    policy.write_text(POLICY)
    command = [sys.executable, "-m", "ray_jobs", "prepare", "--labels", str(labels), "--out", str(out)]
    start = time.monotonic()
    process = subprocess.Popen(
        [*command, "--policy", str(policy)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    watch = Watch(process.pid)
    reached: list[tuple[float, int]] = []
    assert process.stdout is not None
    for line in process.stdout:
        found = re.match(r"prepare (\d+)/", line)
        if found:
            reached.append((time.monotonic(), int(found[1])))
    process.wait()
    watch.end()
    assert process.returncode == 0, f"prepare ended with {process.returncode}"
    wall_s = time.monotonic() - start
    began = next((at for at, done in reached if done >= number / 4), reached[0][0])
    ended = next((at for at, done in reached if done >= number * 3 / 4), reached[-1][0])
    inside = [sample for sample in watch.samples if began <= sample[0] <= ended]
    busy = "–"
    if len(inside) > 2:
        used = (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0]) / (os.cpu_count() or 1)
        busy = f"{used:.0%}"
    rate = (reached[-1][1] - reached[0][1]) / max(reached[-1][0] - reached[0][0], 1e-9)
    peaks = [max(sample[column] for sample in watch.samples) for column in (2, 3, 4)]
    return (f"{number:,}", f"{wall_s:.0f} s", f"{rate:.1f}", busy, *(f"{peak:,.0f} MiB" for peak in peaks))


def main() -> None:
    from ray_jobs.drawing.catalog import draw_catalog

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, action="append")
    args = parser.parse_args()
    table = Table(title="prepare over drawn videos, two frames each")
    for name in ("videos", "wall", "videos/s", "busy", "all processes", "driver", "largest worker"):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory(prefix="facereel-extraction-") as name:
        folder = Path(name)
        drawn = draw_catalog(folder, NUM_DRAWN, 0, 0, 0)
        with Path(drawn.truth).open() as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["uri"] = str((folder / row["uri"]).resolve())
        for number in args.videos or (100, 1_000, 10_000):
            table.add_row(*measure(table_of(folder, rows, number), folder, number))
            Console(width=110).print(table)


if __name__ == "__main__":
    main()
