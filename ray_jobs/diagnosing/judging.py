"""What a machine's facts mean: pure functions from facts to findings."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ray_jobs.diagnosing.findings import Finding, fail, ok, warn
from ray_jobs.diagnosing.node import Disk, Gpus, NodeFacts
from ray_jobs.job_environment import RAYS_STOP_WAIT_S, STOP_WAIT, STOP_WAIT_S

GIB = 1 << 30
PYTHON = (3, 11)
# Ray makes no more objects on a disk that is fuller than this (RAY_local_fs_capacity_threshold).
FULL = 0.95
MIN_FREE_BYTES = 10 * GIB
MIN_SHM_BYTES = GIB
# A lease ends 60 s after its last renewal, which comes every 12 s: by a clock that is 48 s ahead it has always ended.
MAX_SKEW_S, SKEW_WARN_S = 30.0, 2.0
# Servers say whole seconds only.
SERVER_CLOCK_STEP_S = 1.0
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
SHOWN = 4
MIN_STOP_WAIT_S = 30  # a commit of a table with a long log takes seconds, and a store that is busy more


def read_pins(lock: str) -> dict[str, str]:
    """Package to version, of a lock's text."""
    return {name.lower(): version for name, version in PIN.findall(lock)}


def judge_python(facts: NodeFacts) -> Finding:
    """The interpreter."""
    found = ".".join(map(str, facts.python))
    if facts.python[:2] != PYTHON:
        needed = ".".join(map(str, PYTHON))
        return fail("python", f"{found}, the lock is for {needed}", f"install Python {needed} and run make setup")
    return ok("python", found)


def judge_packages(facts: NodeFacts, pins: Mapping[str, str]) -> Finding:
    """Installed packages against the lock. Without a GPU CUDA's libraries are not missed: the CPU image lacks some."""
    if not pins:
        return warn("packages", "no requirements.lock here, nothing to compare with", "run in the project's folder")
    optional = () if facts.gpus.names else ("nvidia-", "triton", "cuda-")
    missing = [
        name for name in pins if facts.packages.get(name) is None and not (optional and name.startswith(optional))
    ]
    other = [
        f"{name} {found} (lock: {pins[name]})"
        for name, found in facts.packages.items()
        if found is not None and found != pins[name].partition("+")[0]
    ]
    if not missing and not other:
        return ok("packages", f"{len(pins)} as in requirements.lock")
    return fail(
        "packages",
        "; ".join([f"{name} is missing" for name in missing[:SHOWN]] + other[:SHOWN])
        + (f"; {len(missing) + len(other)} in all" if len(missing) + len(other) > SHOWN else ""),
        "run `uv pip sync --require-hashes requirements.lock`, or use the image that was built from this lock",
    )


def judge_disks(disks: Iterable[Disk]) -> Finding:
    """Free space where Ray and decoders write."""
    worst: Finding | None = None
    shown = []
    for disk in disks:
        used = 1 - disk.free_bytes / disk.total_bytes
        text = f"{disk.path}: {disk.free_bytes / GIB:.1f} GiB free, {used:.0%} used"
        shown.append(text)
        if used >= FULL:
            fix = f"free some of {disk.path}, or let RAY_TMPDIR name another disk; Ray stops writing at {FULL:.0%}"
            worst = fail("disk", text, fix)
        elif disk.free_bytes < MIN_FREE_BYTES and worst is None:
            fix = f"free some of {disk.path}: objects that do not fit into memory, and checkpoints, go there"
            worst = warn("disk", text, fix)
    return worst or ok("disk", "; ".join(dict.fromkeys(shown)))


def judge_shm(facts: NodeFacts) -> Finding:
    """Shared memory for Ray's objects."""
    text = f"/dev/shm {facts.shm_bytes / GIB:.1f} GiB"
    if facts.shm_bytes < MIN_SHM_BYTES:
        return warn(
            "shared memory",
            f"{text}: Ray falls back to files, and gets slow",
            "mount a memory volume at /dev/shm (docker run --shm-size=8g; on Kubernetes an emptyDir of medium Memory)",
        )
    return ok("shared memory", text)


def judge_gpu(gpus: Gpus, *, num_of_ray: float | None) -> Finding:
    """The driver, torch and Ray see the same GPUs, and torch computes on them."""
    number = len(gpus.names)
    if not number:
        if num_of_ray:
            return fail(
                "gpu",
                f"Ray was told of {num_of_ray:g} GPUs, the driver shows none",
                "install the NVIDIA driver and container toolkit, or start the node without --num-gpus",
            )
        return ok("gpu", "none: videos are decoded and scored on CPUs")
    what = f"{number} × {gpus.names[0]}, driver {gpus.driver}"
    if gpus.torch_cuda is None and gpus.torch_error:
        return fail("gpu", f"{what}; torch: {gpus.torch_error}", "run `python -m ray_jobs.diagnosing.gpu_probe` there")
    if gpus.torch_cuda is None:
        return fail(
            "gpu", f"{what}; torch is a CPU build", "use the image with CUDA, or install from requirements.lock"
        )
    if gpus.torch_error or gpus.torch_count < number:
        why = gpus.torch_error or f"torch sees {gpus.torch_count}"
        return fail(
            "gpu",
            f"{what}; torch (CUDA {gpus.torch_cuda}) cannot use them: {why}",
            f"install a driver for CUDA {gpus.torch_cuda} or newer, and look for Xid errors in the kernel's log",
        )
    if num_of_ray is not None and num_of_ray < number:
        return warn(
            "gpu",
            f"{what}; Ray was told of {num_of_ray:g}",
            "start the node with --num-gpus, or leave it out: Ray looks",
        )
    return ok("gpu", f"{what}, CUDA {gpus.torch_cuda}")


def judge_nvdec(gpus: Gpus) -> Finding:
    """The GPU's decoder."""
    if gpus.nvdec_error is None:
        return ok("nvdec", "no GPU: videos are decoded on CPUs")
    if gpus.nvdec_error:
        return warn(
            "nvdec",
            f"the GPU's decoder does not work here: {gpus.nvdec_error}",
            "give the container the capability `video` (NVIDIA_DRIVER_CAPABILITIES=compute,utility,video); decoding "
            "goes on with CPUs meanwhile",
        )
    return ok("nvdec", "decodes H.264")


def judge_reach(facts: NodeFacts) -> list[Finding]:
    """Connections to the stores."""
    return [
        fail(
            "network",
            f"{address} is not reached: {why}",
            "open it in firewall and network policies for this node, or correct the address",
        )
        if why
        else ok("network", f"{address} is reached")
        for address, why in facts.reach.items()
    ]


def judge_versions(by_node: Mapping[str, NodeFacts], own: NodeFacts) -> Finding:
    """Ray and Python are the same on every node and in this process."""
    if not by_node:
        return fail("versions", "no node answered", "mend the nodes first")
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, facts in [("this process", own), *by_node.items()]:
        kinds[f"Ray {facts.packages.get('ray')} with Python {'.'.join(map(str, facts.python))}"].append(name)
    if len(kinds) > 1:
        text = "; ".join(f"{kind}: {', '.join(names[:SHOWN])}" for kind, names in kinds.items())
        return fail("versions", text, "start all nodes, and what submits, from one image")
    return ok("versions", f"{next(iter(kinds))} on {len(by_node)} nodes and here")


def judge_clock(name: str, offset_s: float, uncertainty_s: float) -> Finding:
    """A clock against this machine's; ``offset_s`` is known up to ``uncertainty_s``."""
    certain_s = max(0.0, abs(offset_s) - uncertainty_s)
    text = f"{name}: {offset_s:+.1f} s (± {uncertainty_s:.1f})"
    fix = "let a time service (chrony, systemd-timesyncd) set the clocks of all machines"
    if certain_s > MAX_SKEW_S:
        return fail("clock", f"{text}: leases of live runs would look dead", fix)
    if certain_s > SKEW_WARN_S:
        return warn("clock", text, fix)
    return ok("clock", text)


def judge_stop(wait: str | None) -> Finding:
    """What a job's environment says of the time between `ray job stop` and the end, in whole seconds."""
    fix = f'give env_vars {STOP_WAIT}: "{STOP_WAIT_S}" in the runtime environment (infra/runtime_env.yaml does)'
    if wait is not None and not wait.isdigit():
        return fail("stop", f"{STOP_WAIT} is {wait!r}: Ray takes whole seconds only", fix)
    wait_s = RAYS_STOP_WAIT_S if wait is None else int(wait)
    text = f"ray job stop kills after {wait_s} s"
    return ok("stop", text) if wait_s >= MIN_STOP_WAIT_S else warn("stop", f"{text}: too few for a last commit", fix)


def judge_ports(free: Mapping[int, bool], uses: Mapping[int, str]) -> list[Finding]:
    """Ports that local servers want."""
    return [
        ok("ports", f"{port} is free ({uses[port]})")
        if is_free
        else warn(
            "ports",
            f"{port} is taken ({uses[port]})",
            f"stop what listens there (ss -ltnp), or give another port to {uses[port]}",
        )
        for port, is_free in free.items()
    ]


def judge_gpus_wanted(num_gpus: float, *, wanted: bool) -> Finding:
    """Whether a GPU recipe finds GPUs."""
    if wanted and not num_gpus:
        return fail(
            "gpus for the recipe",
            "the cluster has no GPU, and its autoscaler brings none",
            "add a GPU node group, or run without --gpu and with --gpus-per-predictor 0",
        )
    return ok("gpus for the recipe", f"{num_gpus:g} GPUs" if wanted else "none asked for (--gpu asks)")


def judge_token(status: int) -> Finding:
    """How the dashboard answers who has no token."""
    if status in (401, 403):
        return ok("token", "the dashboard refuses requests without a token")
    return fail(
        "token",
        f"the dashboard answers without a token (HTTP {status}): whoever reaches it runs code on the cluster",
        "start every node with RAY_AUTH_MODE=token and the same token (docs/cluster.md)",
    )


def by_machine(name: str, findings: Sequence[Finding]) -> list[Finding]:
    """The findings of one machine, named after it."""
    return [Finding(f"{name}: {item.name}", item.level, item.message, item.fix) for item in findings]
