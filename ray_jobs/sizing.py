"""How a cluster is shared out: arithmetic from its nodes to pools of decoders, predictors and training workers.

Pure: it knows numbers only. The figures come from ``python -m benchmarks.pools`` (docs/cluster.md has its table).
"""

import math
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

GIB = 1 << 30
# Not 1: a stage whose request equals the predictors' would be fused into their actors, and no longer scale by itself.
DECODE_CPUS = 0.9
PREDICT_CPUS = 1.0
# Measured peaks of a decoding task with its child process, and of a predictor on CPUs with the heaviest network of the
# recipes, rounded up to the next quarter of a GiB.
DECODE_MEMORY_BYTES = 1 * GIB
PREDICT_MEMORY_BYTES = int(1.75 * GIB)
# Of the CPUs, where nobody says otherwise. A 720p video takes 0.8 s of decoding and, with ten faces, 0.14 s (resnet18)
# to 2.0 s (densenet121) of predicting on one thread: the best share lies between 15% and 71%, and half of the CPUs
# gives at least 58% of the best throughput for each of them. A bound from above where GPUs predict.
PREDICT_SHARE = 0.5
# Two on a GPU: while one unpacks crops on its CPU, the other computes.
PREDICTORS_PER_GPU = 2
# A training worker before it holds any crops: torch, a network and its optimizer.
TRAIN_MEMORY_BYTES = int(1.25 * GIB)
# Beside it, of each process that decodes streamed crops, with batches of 64 crops of 256 pixels ahead.
TRAIN_DECODER_BYTES = GIB // 2
# And of the streamed crops that are read ahead, encoded: two windows (`WINDOW_ROWS`).
TRAIN_WINDOWS_BYTES = int(0.8 * GIB)
# Reading the due list and handing out rows must find a CPU whatever the pools take, or all wait for each other.
SPARE_CPUS = 2

SPOT = "spot"
MARKET_LABEL = "ray.io/market-type"  # Ray's own label of a node, from RAY_NODE_MARKET_TYPE or --labels
STEADY = {MARKET_LABEL: f"!{SPOT}"}  # a node that nobody takes away: any without that label, too
DECODE_RESOURCE = "decode"  # custom resource of nodes that decode; where no node has it, all do


class Wanted(BaseModel):
    """How much of a cluster a pipeline shall take; None: as the cluster allows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_predictors: int | None = Field(None, ge=1, description="actors that hold the scorers")
    gpus_per_predictor: float | None = Field(None, ge=0, description="GPUs of each; 0 predicts on CPUs")
    rows_per_block: int = Field(
        32, ge=1, description="videos per block: the unit of a decode task, of a retry and of a prediction"
    )


class Resources(Wanted):
    """How much of the cluster a pipeline takes."""

    num_predictors: int = Field(1, ge=1, description="actors that hold the scorers")
    gpus_per_predictor: float = Field(0.0, ge=0, description="GPUs of each; 0 predicts on CPUs")
    decode_resource: str | None = Field(None, description="custom resource that a decoding task takes one of")

    def spread(self, num_videos: int, num_cpus: float) -> "Resources":
        """Smaller blocks for few videos, so that every CPU gets some: at least four blocks a CPU where possible."""
        fitting = max(1, math.ceil(num_videos / (4 * max(num_cpus, 1))))
        return self.model_copy(update={"rows_per_block": min(self.rows_per_block, fitting)})


@dataclass(frozen=True, slots=True)
class Node:
    """What a node offers to tasks."""

    num_cpus: float
    num_gpus: float = 0.0
    memory_bytes: float = math.inf
    custom: dict[str, float] = field(default_factory=dict)
    is_spot: bool = False


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes that are there, and the most of each resource that an autoscaler may bring (empty: none does).

    ``free`` is what of each node nobody holds at the moment; None: all of it.
    """

    nodes: tuple[Node, ...]
    limits: dict[str, float] = field(default_factory=dict)
    free: tuple[Node, ...] | None = None

    @property
    def unused(self) -> "Cluster":
        """What others leave of it: a service, a training, another run."""
        if self.free is None:
            return self
        left = Cluster(self.free)
        held = {
            "CPU": self.num_cpus_now - left.num_cpus_now,
            "GPU": self.num_gpus_now - left.num_gpus_now,
            "memory": self.memory_bytes_now - left.memory_bytes_now if self.memory_bytes_now < math.inf else 0.0,
        }
        return Cluster(self.free, {name: max(0.0, limit - held.get(name, 0.0)) for name, limit in self.limits.items()})

    @property
    def num_cpus_now(self) -> float:
        """Logical CPUs of the nodes that are there."""
        return sum(node.num_cpus for node in self.nodes)

    @property
    def num_gpus_now(self) -> float:
        """GPUs of the nodes that are there."""
        return sum(node.num_gpus for node in self.nodes)

    @property
    def memory_bytes_now(self) -> float:
        """Memory for tasks of the nodes that are there."""
        return sum(node.memory_bytes for node in self.nodes)

    @property
    def num_cpus(self) -> float:
        """Logical CPUs, those that may still come included."""
        return max(self.num_cpus_now, self.limits.get("CPU", 0))

    @property
    def num_gpus(self) -> float:
        """GPUs, those that may still come included."""
        return max(self.num_gpus_now, self.limits.get("GPU", 0))

    @property
    def grows(self) -> bool:
        """Whether an autoscaler looks after it, so that what is missing may still come."""
        return any(self.limits.values())

    def has(self, resource: str) -> bool:
        """Whether any node offers a custom resource, or may."""
        return any(node.custom.get(resource) for node in self.nodes) or bool(self.limits.get(resource))


def size_pipeline(wanted: Wanted, cluster: Cluster) -> Resources:
    """Fill in what was left to the cluster. Predictors are a fixed pool; decoders take what is left.

    Where predictors run is decided by what the cluster has, how many by what nobody holds at the moment: predictors
    sized by CPUs that a service or another run keeps would take the decoders' place, and all would wait for ever.
    """
    share = wanted.gpus_per_predictor
    if share is None:
        share = 1 / PREDICTORS_PER_GPU
        share = share if predictors_on_gpus(cluster, share) else 0.0  # GPUs of spot nodes hold none
    unused = cluster.unused
    number = wanted.num_predictors or _num_predictors(share, unused)
    resources = Resources(
        num_predictors=number,
        gpus_per_predictor=share,
        rows_per_block=wanted.rows_per_block,
        decode_resource=DECODE_RESOURCE if cluster.has(DECODE_RESOURCE) else None,
    )
    if wanted.num_predictors is None and number > 1 and check_decoding(resources, unused, predicts=True):
        # Memory that no CPU goes with was counted: where a predictor less stands, a decoder does.
        return resources.model_copy(update={"num_predictors": number - 1})
    return resources


def _num_predictors(share: float, cluster: Cluster) -> int:
    """As many as their share of the CPUs gives, their GPUs and nodes hold, and memory has room for decoders beside."""
    if math.inf in cluster.limits.values():  # no bound to take a share of: by what is there
        cluster = Cluster(cluster.nodes)
    memory = cluster.limits.get("memory", math.inf) if cluster.grows else cluster.memory_bytes_now
    bounds = [
        cluster.num_cpus * PREDICT_SHARE,
        cluster.num_cpus - SPARE_CPUS,
        memory / (PREDICT_MEMORY_BYTES + DECODE_MEMORY_BYTES),
    ]
    if share:
        bounds.append(predictors_on_gpus(cluster, share))
    if not cluster.grows:
        bounds.append(_room(share, cluster))
    return max(1, math.floor(min(bounds)))


def predictors_on_gpus(cluster: Cluster, share: float) -> int:
    """Predictors that the GPUs hold; a part of a GPU does not reach over two, and spot nodes hold none."""
    steady = sum(_on_gpus(node.num_gpus, share) for node in cluster.nodes if not node.is_spot)
    return max(steady, _on_gpus(cluster.limits.get("GPU", 0), share))


def _on_gpus(num_gpus: float, share: float) -> int:
    return math.floor(num_gpus / share) if share >= 1 else math.floor(num_gpus) * predictors_on_gpu(share)


def predictors_on_gpu(share: float) -> int:
    """Predictors that one GPU holds; 0 where each takes several."""
    return math.floor(1 / share + 1e-9)


def num_decoders(resources: Resources, cluster: Cluster, *, predicts: bool = True) -> int:
    """Decoding tasks that run at a time on the nodes that are there, beside the predictors if any; 0: none fits."""
    left = resources.num_predictors if predicts else 0
    total = 0
    # Predictors go to nodes with GPUs first where they need them, and never to spot nodes.
    for node in sorted(cluster.nodes, key=lambda node: (node.is_spot, -node.num_gpus)):
        here = min(left, _predictors_on(node, resources.gpus_per_predictor))
        left -= here
        cpus = node.num_cpus - here * PREDICT_CPUS
        memory = node.memory_bytes - here * PREDICT_MEMORY_BYTES
        fitting = min(cpus / DECODE_CPUS, memory / DECODE_MEMORY_BYTES)
        if resources.decode_resource is not None:
            fitting = min(fitting, node.custom.get(resources.decode_resource, 0))
        total += max(0, math.floor(fitting))
    return total


def _room(share: float, cluster: Cluster) -> int:
    """Predictors that the nodes that are there hold."""
    return sum(_predictors_on(node, share) for node in cluster.nodes)


def _predictors_on(node: Node, share: float) -> int:
    if node.is_spot:
        return 0
    fitting = min(node.num_cpus / PREDICT_CPUS, node.memory_bytes / PREDICT_MEMORY_BYTES)
    return math.floor(fitting if share == 0 else min(fitting, _on_gpus(node.num_gpus, share)))


def check_pipeline(resources: Resources, cluster: Cluster) -> str | None:
    """Why the pipeline would hang on this cluster (one kind takes what another needs, or never starts), or None."""
    cpus, number, share = cluster.num_cpus, resources.num_predictors, resources.gpus_per_predictor
    least_cpus = number * PREDICT_CPUS + SPARE_CPUS
    if cpus < least_cpus:
        return (
            f"--predictors {number} needs {least_cpus:g} logical CPUs, the cluster has {cpus:g}: lower it, or add "
            "nodes (locally: --num-cpus)"
        )
    if share and predictors_on_gpus(cluster, share) < number:
        steady = max(sum(node.num_gpus for node in cluster.nodes if not node.is_spot), cluster.limits.get("GPU", 0))
        return (
            f"{number} predictors × {share:g} GPU need more than the cluster's {steady:g} GPUs hold (spot nodes do not "
            "count: they decode only): lower --predictors or --gpus-per-predictor (0: CPUs), or add GPU nodes"
        )
    if cluster.grows:  # what is to come may have the room
        return None
    room = _room(share, cluster)
    if room < number:
        return (
            f"{number} predictors need {number} × {PREDICT_MEMORY_BYTES / GIB:g} GiB and a CPU each on nodes that are "
            f"not spot; {room} fit: lower --predictors, or give nodes more memory (ray start --memory)"
        )
    return check_decoding(resources, cluster, predicts=True)


def check_decoding(resources: Resources, cluster: Cluster, *, predicts: bool = False) -> str | None:
    """Why no decoder ever starts on this cluster, beside the predictors if any, or None."""
    if cluster.grows or num_decoders(resources, cluster, predicts=predicts):
        return None
    nodes = f"a node with the resource {resources.decode_resource}" if resources.decode_resource else "a node"
    beside = (
        f" beside {resources.num_predictors} predictors: lower --predictors, add nodes" if predicts else ": add nodes"
    )
    return (
        f"a decoder needs {DECODE_CPUS:g} CPU and {DECODE_MEMORY_BYTES / GIB:g} GiB on {nodes}, which none has free"
        f"{beside}, or give them more memory (ray start --memory)"
    )


def check_tasks(cluster: Cluster, *, use_gpu: bool) -> str | None:
    """Why a task of one CPU, and one GPU if wanted, never starts on this cluster, or None."""
    if use_gpu and not cluster.num_gpus:
        return "--gpu: the cluster has no GPU, and none is to come: leave it out, or add GPU nodes"
    if cluster.num_cpus < 1:
        return f"the cluster has {cluster.num_cpus:g} CPUs for tasks: add nodes that have some (ray start --num-cpus)"
    return None


@dataclass(frozen=True, slots=True)
class Training:
    """What a training run asks for."""

    most: int  # workers
    least: int
    cpus_per_worker: int
    use_gpu: bool
    crops_bytes: int = 0  # of the training split, decoded
    resident_bytes: int = 0  # kept in a worker's memory, at most
    validation_bytes: int = 0  # of the validation split, decoded: kept, each worker its share

    @property
    def is_resident(self) -> bool:
        """Whether every worker keeps all decoded crops; else a process for each of its CPUs decodes them anew."""
        return self.crops_bytes <= self.resident_bytes

    @property
    def memory_bytes(self) -> int:
        """Of each worker."""
        streamed_bytes = self.cpus_per_worker * TRAIN_DECODER_BYTES + min(TRAIN_WINDOWS_BYTES, self.crops_bytes)
        crops_bytes = self.crops_bytes if self.is_resident else streamed_bytes
        return TRAIN_MEMORY_BYTES + crops_bytes + math.ceil(self.validation_bytes / self.least)

    def room(self, cluster: Cluster) -> int:
        """Workers that the nodes that are there hold; spot nodes hold none."""
        total = 0
        for node in cluster.nodes:
            fitting = min(node.num_cpus / self.cpus_per_worker, node.memory_bytes / self.memory_bytes)
            total += 0 if node.is_spot else math.floor(min(fitting, node.num_gpus) if self.use_gpu else fitting)
        return total


def check_training(training: Training, cluster: Cluster) -> str | None:
    """Why the least number of workers never starts on this cluster, or None."""
    least, cpus = training.least, training.least * training.cpus_per_worker
    gpus = least if training.use_gpu else 0
    if cluster.num_cpus < cpus or cluster.num_gpus < gpus:
        return (
            f"{least} workers need {cpus} CPUs{f' and {gpus} GPUs' if gpus else ''}, the cluster has "
            f"{cluster.num_cpus:g} CPUs and {cluster.num_gpus:g} GPUs: lower --workers or --cpus-per-worker, or add "
            f"nodes{' (or train without --gpu)' if gpus and not cluster.num_gpus else ''}"
        )
    if not cluster.grows and training.room(cluster) < least:
        return (
            f"{least} workers need {training.cpus_per_worker} CPUs{', a GPU' if gpus else ''} and "
            f"{training.memory_bytes / GIB:.1f} GiB each on nodes that are not spot; {training.room(cluster)} fit: "
            "lower --workers or --resident-bytes, or add nodes"
        )
    return None
