"""Signals as a question: remembered once, deadly twice, and handlers put back."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ray_jobs.interrupts import Interrupts

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_remembered_and_the_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        assert interrupts.received is None
        os.kill(os.getpid(), number)
        assert interrupts.received is number
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_the_process() -> None:
    code = (
        "import os, signal\nfrom ray_jobs.interrupts import Interrupts\nwith Interrupts():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('once', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "once\n")


def test_in_another_thread_it_does_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def run() -> None:
        with Interrupts() as interrupts:
            seen.extend([signal.getsignal(signal.SIGINT), interrupts.received])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before, None]
