"""What bulk scoring costs a video on this machine, and what 100 million videos make of it on a thousand CPUs.

    python -m benchmarks.scale                 the model: where everything stands, by the kept costs (docs/scale.md)
    python -m benchmarks.scale measure         measure the costs here, some minutes on two cores
    python -m benchmarks.scale measure log     one of them: sink, driver, log, requests, faces, plan

Costs are CPU seconds of this machine, so that its other work weighs little. Each part runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import scale_costs, scale_driver, scale_log
from benchmarks.scale_model import Model

ROOT = Path(__file__).resolve().parents[1]
BASE = Model()
CASES = {
    "before": BASE.with_(block_s=0.058, row_task_s=0.00025, dataset_videos=100_000_000),
    "by default": BASE,
    "as advised": BASE.with_(commit_rows=50_000, rows_per_block=64, prefixes=16),
    "in two runs": BASE.with_(commit_rows=50_000, rows_per_block=64, prefixes=16, runs=2),
}
CHANGES: dict[str, dict[str, float]] = {
    "videos of 720p at GOP 250: 0.60 CPU s to decode": {"decode_s": 0.60},
    "keyframe mode: a quarter of the decoding": {"decode_s": BASE.costs.decode_s / 4},
    "no face detection on CPUs (0.02 s to cut)": {"faces_s": 0.02},
    "CPUs half as fast": {"decode_s": 2 * BASE.costs.decode_s, "faces_s": 2 * BASE.costs.faces_s},
    "a driver's CPU half as fast": {"block_s": 2 * BASE.costs.block_s, "row_task_s": 2 * BASE.costs.row_task_s},
    "GPUs as published with mixed precision (3,382 crops/s)": {"gpu_crops_per_s": 3382},
    "16 GPUs": {"gpus": 16},
    "one prefix": {"prefixes": 1},
    "long videos: 8 requests, 24 MB each": {"video_requests": 8, "video_read_bytes": 24e6},
    "a commit waits 5 s for storage": {"commit_latency_s": 5},
    "2,000 CPUs": {"cpus": 2_000, "nodes": 64},
    "4,000 CPUs, 64 GPUs": {"cpus": 4_000, "nodes": 128, "gpus": 64},
    "4,000 CPUs, 64 GPUs, in two runs": {"cpus": 4_000, "nodes": 128, "gpus": 64, "runs": 2},
    "commits of 10,000 rows": {"commit_rows": 10_000},
    "blocks of 32": {"rows_per_block": 32},
}
PARTS = {
    "sink": scale_costs.sink,
    "driver": scale_driver.driver,
    "log": scale_log.log,
    "requests": scale_costs.requests,
    "faces": scale_costs.faces,
    "plan": scale_costs.plan,
}


def measure(part: str) -> dict[str, Any]:
    """One part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "once", part]
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(answer.splitlines()[-1]))


def standing(console: Console, cases: dict[str, Model]) -> None:
    """What each part could take, and what comes of each way to run it."""
    table = Table(title="videos a second that each part can take", box=None)
    table.add_column("")
    for name in cases:
        table.add_column(name, justify="right")
    for part in next(iter(cases.values())).capacities():
        cells = []
        for model in cases.values():
            value = f"{model.capacities()[part]:,.0f}"
            cells.append(f"[bold]{value} ←[/]" if model.bottleneck() == part else value)
        table.add_row(part, *cells)
    found = {name: model.figures() for name, model in cases.items()}
    for figure in next(iter(found.values())):
        table.add_row(
            figure,
            *[
                f"{figures[figure]:,.3g}" if figures[figure] < 100 else f"{figures[figure]:,.0f}"
                for figures in found.values()
            ],
        )
    console.print(table)


def sensitivity(console: Console, model: Model) -> None:
    """Hours and bottleneck with one assumption changed at a time."""
    table = Table("assumption", "hours", "first to be full", title="one thing changed at a time", box=None)
    table.columns[1].justify = "right"
    table.add_row("none", f"{model.hours():.1f}", model.bottleneck())
    for words, values in CHANGES.items():
        changed = model.with_(**values)
        table.add_row(words, f"{changed.hours():.1f}", changed.bottleneck())
    console.print(table)


def plot(path: Path, cases: dict[str, Model]) -> None:
    """Progress of each case, and its hours by the number of CPUs, as an SVG file."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "facereel"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    numbers = [125, 250, 500, 750, 1000, 1500, 2000, 3000, 4000]
    for name, model in cases.items():
        steps = list(model.progress())
        steps = steps[:: max(1, len(steps) // 300)] + steps[-1:]
        left.plot([0, *[at for at, _, _ in steps]], [0, *[done / 1e6 for _, done, _ in steps]], label=name)
        hours = [model.with_(cpus=number, nodes=max(1, number // 32)).hours() for number in numbers]
        right.loglog(numbers, hours, marker="o", markersize=3, label=name)
    left.set(xlabel="hours", ylabel="million videos committed", xlim=(0, None), ylim=(0, None))
    right.set(xlabel="CPUs, with 32 GPUs", ylabel="hours for 100 million videos")
    for ticks, axis in ((numbers[::2], right.xaxis), ([10, 20, 50, 100, 200], right.yaxis)):
        axis.set_major_locator(matplotlib.ticker.FixedLocator(ticks))
        axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("model", "measure", "once"), default="model")
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--plot", type=Path, help="write the plot to this file (.svg)")
    options = parser.parse_args()
    if options.what == "once":
        print(json.dumps(PARTS[options.parts[0]]()))
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    if options.what == "measure":
        for part in options.parts or PARTS:
            with console.status(f"measuring {part}"):
                found = measure(part)
            console.print(part, found)
        return
    standing(console, CASES)
    sensitivity(console, CASES["as advised"])
    if options.plot:
        plot(options.plot, CASES)


if __name__ == "__main__":
    main()
