"""What the arithmetic of `ray_jobs.sizing` comes to, in words: each pool of processes, how many, where and why."""

from dataclasses import dataclass

from ray_jobs.sizing import (
    DECODE_CPUS,
    DECODE_MEMORY_BYTES,
    GIB,
    PREDICT_CPUS,
    PREDICT_MEMORY_BYTES,
    PREDICT_SHARE,
    Cluster,
    Resources,
    Training,
    Wanted,
    num_decoders,
    predictors_on_gpu,
)


@dataclass(frozen=True, slots=True)
class Pool:
    """Processes of one kind: how many, what each asks for, on which nodes, and why so."""

    name: str
    size: str
    num_cpus: float
    num_gpus: float
    memory_bytes: int
    where: str
    why: str


def spoken(resources: Resources, cluster: Cluster) -> str:
    """The pools of a run in a line of its log."""
    share = f" and {resources.gpus_per_predictor:g} GPU" if resources.gpus_per_predictor else ""
    number = num_decoders(resources, cluster.unused)
    lines = [
        f"pools: {number} decoders at a time ({DECODE_CPUS:g} CPU each), "
        f"{resources.num_predictors} predictors ({PREDICT_CPUS:g} CPU{share} each); --plan-resources says why"
    ]
    if cluster.unused.num_cpus_now < cluster.num_cpus_now:
        lines.append(f"  others hold {held(cluster)}")
    if not number and not cluster.grows:
        lines.append("  no decoder has room beside the predictors: it waits until others end, or for nodes")
    return "\n".join(lines)


def held(cluster: Cluster) -> str:
    """How much of the cluster is not free."""
    unused = cluster.unused
    gpus = f" and {cluster.num_gpus_now - unused.num_gpus_now:g} of {cluster.num_gpus_now:g} GPUs"
    return (
        f"{cluster.num_cpus_now - unused.num_cpus_now:g} of {cluster.num_cpus_now:g} CPUs"
        f"{gpus if unused.num_gpus_now < cluster.num_gpus_now else ''}"
    )


def pipeline_pools(resources: Resources, cluster: Cluster, wanted: Wanted | None = None) -> list[Pool]:
    """What scoring asks for, and why."""
    share, number, unused = resources.gpus_per_predictor, resources.num_predictors, cluster.unused
    given = wanted is not None and wanted.num_predictors is not None
    if given:
        why = "--predictors"
    elif share:
        why = (
            f"{unused.num_gpus:g} free GPUs × {predictors_on_gpu(share) or 1} on each, at most "
            f"{PREDICT_SHARE:.0%} of {unused.num_cpus:g} free CPUs, and what memory holds"
        )
    else:
        why = (
            f"{PREDICT_SHARE:.0%} of {unused.num_cpus:g} free CPUs, and what memory holds; plan --estimate measures "
            "what your scorers and videos take, and --predictors sets it"
        )
    return [
        Pool("driver", "1", 0, 0, 0, "the head node", "plans and commits; it asks for nothing, keep a CPU of the head"),
        _decoders(resources, num_decoders(resources, unused), "tasks on whatever CPUs the predictors leave"),
        Pool(
            "predictors",
            f"{number}, fixed",
            PREDICT_CPUS,
            share,
            PREDICT_MEMORY_BYTES,
            "nodes that are not spot",
            why,
        ),
    ]


def preparing_pools(resources: Resources, cluster: Cluster) -> list[Pool]:
    """What preparing a dataset asks for, and why."""
    number = num_decoders(resources, cluster.unused, predicts=False)
    return [
        Pool("driver", "1", 0, 0, 0, "the head node", "stages crops, and finishes the dataset"),
        _decoders(resources, number, "tasks on whatever CPUs are idle"),
        Pool("encoders", "as needed", DECODE_CPUS, 0, 0, "every node, spot too", "tasks that take turns with decoders"),
    ]


def _decoders(resources: Resources, number: int, why: str) -> Pool:
    where = f"nodes with {resources.decode_resource}" if resources.decode_resource else "every node, spot too"
    return Pool(
        "decoders",
        f"{number} now, as many as fit",
        DECODE_CPUS,
        0,
        DECODE_MEMORY_BYTES,
        where,
        f"{why}; a node that joins decodes, a lost one costs its blocks",
    )


def training_pools(training: Training, cluster: Cluster) -> list[Pool]:
    """What training asks for, and why."""
    size = f"{training.least} to {training.most}" if training.least < training.most else f"{training.most}, fixed"
    crops = f"{training.crops_bytes / GIB:.2f} GiB of decoded crops"
    return [
        Pool("driver", "1", 0, 0, 0, "the head node", "looks after the run; it asks for nothing"),
        Pool("controller", "1", 0, 0, 0, "the driver's node", "Ray Train's own; it asks for nothing"),
        Pool(
            "workers",
            size,
            training.cpus_per_worker,
            float(training.use_gpu),
            training.memory_bytes,
            "nodes that are not spot",
            f"--workers; there is room for {training.room(cluster)}. "
            + (
                f"Each keeps {crops}"
                if training.is_resident
                else f"{crops} are more than --resident-bytes, so they are streamed"
            ),
        ),
    ]
