"""Facts of every node of a cluster, gathered by a task on each, and findings about the cluster as a whole."""

import time
from dataclasses import dataclass
from typing import Any

import httpx
import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from infra.settings import Settings
from ray_jobs.cluster import connect
from ray_jobs.diagnosing.findings import Finding, fail, guarded
from ray_jobs.diagnosing.judging import (
    by_machine,
    judge_clock,
    judge_disks,
    judge_gpu,
    judge_gpus_wanted,
    judge_nvdec,
    judge_packages,
    judge_python,
    judge_reach,
    judge_shm,
    judge_token,
    judge_versions,
)
from ray_jobs.diagnosing.node import NodeFacts, clock, gather

# A node whose worker has not started by then would not decode either.
NODE_TIMEOUT_S = 120.0
NUM_CLOCK_LOOKS = 5


@dataclass(frozen=True, slots=True)
class Visit:
    """One node's facts, its clock against ours, and the GPUs that Ray was told of."""

    name: str
    facts: NodeFacts
    offset_s: float
    uncertainty_s: float
    num_gpus: float


def examine(
    settings: Settings, pins: dict[str, str], addresses: list[str], own: NodeFacts, *, gpu_wanted: bool
) -> list[Finding]:
    """Connect to the cluster and look at each of its nodes."""
    cluster = connect(settings.cluster)
    findings = []
    visits = []
    nodes = [node for node in ray.nodes() if node["Alive"]]
    until_s = time.monotonic() + NODE_TIMEOUT_S
    # All at once: a large cluster would take as many times as long.
    gathering = [ray.remote(gather).options(**_there(node)).remote(pins, addresses) for node in nodes]
    for node, reference in zip(nodes, gathering, strict=True):
        name = f"{node['NodeManagerHostname']} {node['NodeID'][:6]}"
        try:
            facts = ray.get(reference, timeout=max(0.0, until_s - time.monotonic()))
            visits.append(_visit(name, node, facts))
        except GetTimeoutError:
            findings.append(
                fail(
                    f"{name}: node",
                    f"no task came back within {NODE_TIMEOUT_S:g} s",
                    "look at its raylet's log, and whether the cluster is full of other work",
                )
            )
        except ray.exceptions.RayError as error:
            words = " ".join(str(error).split())[-300:]
            findings.append(
                fail(f"{name}: node", words, "submit the doctor as a job (submit doctor …), so that the code is there")
            )
    for visit in visits:
        facts = visit.facts
        findings += by_machine(
            visit.name,
            [
                judge_python(facts),
                judge_packages(facts, pins),
                judge_disks(facts.disks),
                judge_shm(facts),
                judge_gpu(facts.gpus, num_of_ray=visit.num_gpus),
                judge_nvdec(facts.gpus),
                *judge_reach(facts),
                judge_clock("against this process", visit.offset_s, visit.uncertainty_s),
            ],
        )
    findings.append(judge_versions({visit.name: visit.facts for visit in visits}, own))
    findings.append(judge_gpus_wanted(cluster.num_gpus, wanted=gpu_wanted))
    findings += guarded("token", "let the head's dashboard run (include_dashboard)", _token)
    return findings


def _there(node: dict[str, Any]) -> dict[str, Any]:
    return {
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        "num_cpus": 0,  # also on a node that is busy, and on a head that offers none
        "max_retries": 0,
    }


def _visit(name: str, node: dict[str, Any], facts: NodeFacts) -> Visit:
    looks = []
    for _ in range(NUM_CLOCK_LOOKS):
        before = time.time()
        now = ray.get(ray.remote(clock).options(**_there(node)).remote(), timeout=NODE_TIMEOUT_S)
        after = time.time()
        looks.append(((after - before) / 2, now - (before + after) / 2))
    uncertainty_s, offset_s = min(looks)  # the quickest answer knows best
    return Visit(name, facts, offset_s, uncertainty_s, float(node["Resources"].get("GPU", 0)))


def _token() -> Finding:
    # Nothing public tells a connected driver where the dashboard is.
    url = ray._private.worker.get_dashboard_url()
    if not url:
        return fail("token", "the cluster has no dashboard, so no job API", "start the head with its dashboard")
    return judge_token(httpx.get(f"http://{url}/api/version", timeout=10).status_code)
