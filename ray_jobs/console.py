"""What the commands print: tables, and progress as a bar on a terminal or a plain line every few seconds elsewhere."""

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from ray_jobs.planning import Plan

LINE_EVERY_S = 5.0
# Logs are wider than the 80 columns that are assumed where there is no terminal to ask.
console = Console(soft_wrap=True, markup=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 150)


class RunProgress:
    """Progress of a run over a known number of items: done/total, rate, time left, and a note (failures, say)."""

    def __init__(self, title: str, total: int, unit: str = "videos", *, quiet: bool = False) -> None:
        self._title, self._total, self._unit, self._quiet = title, total, unit, quiet
        self._start = time.monotonic()
        self._last_line = 0.0
        self._first: tuple[float, int] | None = None
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, rate="", note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Show that ``done`` of the total are done."""
        elapsed_s = time.monotonic() - self._start
        if self._first is None and done:
            self._first = (elapsed_s, done)
        # Measured from the first arrival on: starting workers takes a while and says nothing about the rate.
        since_s, since = self._first or (elapsed_s, done)
        rate = (done - since) / (elapsed_s - since_s) if elapsed_s > since_s else 0.0
        self._bar.update(self._task, completed=done, rate=f"{rate:.1f} {self._unit}/s", note=note)
        if self._quiet or console.is_terminal or (elapsed_s - self._last_line < LINE_EVERY_S and done < self._total):
            return
        self._last_line = elapsed_s
        left = f"{(self._total - done) / rate:.0f} s left" if rate else f"first after {elapsed_s:.0f} s"
        tail = f" · {note}" if note else ""
        console.print(
            f"{self._title} {done}/{self._total} {self._unit} ({done / max(self._total, 1):.0%}) · "
            f"{rate:.2f}/s · {left}{tail}",
            highlight=False,
        )


def print_plan(plan: "Plan") -> None:
    """The plan as a table: a row a state, a column a task, and a few ids of each state."""
    later = f" now, {plan.num_later:,} later" if plan.num_later else ""
    table = Table(title=f"plan for {plan.catalog}: {plan.num_videos:,} videos, {plan.num_due:,} due{later}")
    table.add_column("state")
    for task in plan.counts:
        table.add_column(task, justify="right")
    table.add_column("for example", overflow="ellipsis", no_wrap=True)
    for state in next(iter(plan.counts.values())):
        numbers = [plan.counts[task][state] for task in plan.counts]
        if any(numbers):
            ids = dict.fromkeys(name for task in plan.counts for name in plan.examples[task].get(state, []))
            table.add_row(state, *[f"{number:,}" for number in numbers], ", ".join(list(ids)[:3]))
    console.print(table)
    if plan.opted_out is not None:
        num_ids, num_named = plan.opted_out
        console.print(f"opt-out list: {num_ids:,} ids, which name {num_named:,} videos of this catalog")
    if plan.reasons:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in plan.reasons.items())
        console.print(f"failed with this content and policy: {reasons} (--retry REASON plans them again)")
