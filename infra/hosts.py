"""Which machine and process this is, so that another one can tell whether it still lives."""

import getpass
import os
from pathlib import Path


def user_name() -> str:
    """The login name, or the number of a user without one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def boot_id() -> str:
    """Names this boot of this machine's kernel and the name space of its process ids; empty where it does not tell.

    Containers of one host may share everything but that name space, and cannot see each other's processes.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_started(pid: int) -> str:
    """When a process of this machine started, in clock ticks since boot; empty where there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
