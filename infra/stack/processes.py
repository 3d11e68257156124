"""The stack's processes: started with a mark, recorded by pid and start time, and stopped by these alone."""

import contextlib
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from infra.hosts import boot_id, process_started

MARK = "FACEREEL_STACK_ID"
GRACE_S = 40.0  # Ray's head takes up to half a minute to end its node


class ProcessRecord(BaseModel):
    """One process that was started; pid, start and boot together name it for ever."""

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int
    started: str  # clock ticks since boot
    boot: str
    what: str  # for people: what it is, and where
    log: Path

    @property
    def is_alive(self) -> bool:
        """Whether this very process runs, not another one that got its number."""
        return bool(self.started) and self.boot == boot_id() and process_started(self.pid) == self.started


def launch(
    name: str,
    command: Sequence[str | Path],
    what: str,
    log: Path,
    env: Mapping[str, str],
    user: pwd.struct_passwd | None = None,
    cwd: Path = Path("/"),
) -> ProcessRecord:
    """Start a process in a session of its own, so that Ctrl-C at the terminal does not reach it."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            extra_groups=None if user is None else [],
        )
    return ProcessRecord(
        name=name, pid=child.pid, started=process_started(child.pid), boot=boot_id(), what=what, log=log
    )


def stop(records: Sequence[ProcessRecord], stack_id: str) -> int:
    """Stop the processes, the last started first, and all that came of them; the number of those that had to be killed.

    What came of them is found twice: as descendants, and by the mark in the environment, which also those carry whose
    parent has died.
    """
    living = [record for record in reversed(records) if record.is_alive]
    family = _descendants(living) | _marked(stack_id)
    for record in living:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGTERM)
        _wait(record, GRACE_S)
    family |= _marked(stack_id)
    _, left = psutil.wait_procs([one for one in family if _is_running(one)], timeout=3)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(left, timeout=5)
    return len(left)


def _wait(record: ProcessRecord, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while record.is_alive and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(record.pid, os.WNOHANG)  # ours, where the same command started it
        time.sleep(0.05)


def _is_running(one: psutil.Process) -> bool:
    """Whether it does something still; it may end while it is asked."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(one.is_running() and one.status() != psutil.STATUS_ZOMBIE)
    return False


def _descendants(records: Sequence[ProcessRecord]) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for record in records:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(record.pid)
            found |= {parent, *parent.children(recursive=True)}
    return found


def _marked(stack_id: str) -> set[psutil.Process]:
    """Processes of this machine that were started by the stack, or by what it started."""
    found = set()
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if one.pid != os.getpid() and one.environ().get(MARK) == stack_id:
                found.add(one)
    return found
