"""What a run would ask of the cluster and why, printed before anything is asked."""

from rich.table import Table

from infra.errors import UserError
from infra.settings import Settings
from infra.storage import Storage
from ray_jobs.cluster import connect
from ray_jobs.console import console
from ray_jobs.crops.dataset import read_manifest
from ray_jobs.pools import Pool, held, pipeline_pools, preparing_pools, training_pools
from ray_jobs.sizing import GIB, Cluster, Resources, Wanted, check_decoding, check_pipeline, size_pipeline
from ray_jobs.training.checks import check_resources, training_resources
from ray_jobs.training.config import TrainConfig


def print_pipeline(wanted: Wanted, settings: Settings) -> None:
    """The pools of a scoring run on this cluster.

    Raises:
        UserError: They would never start; after the table.
    """
    cluster = connect(settings.cluster)
    resources = size_pipeline(wanted, cluster)
    print_pools(pipeline_pools(resources, cluster, wanted), cluster)
    refusal = check_pipeline(resources, cluster)
    if refusal:
        raise UserError(refusal)


def print_preparing(settings: Settings) -> None:
    """The pools of preparing a dataset on this cluster.

    Raises:
        UserError: They would never start; after the table.
    """
    cluster = connect(settings.cluster)
    resources = size_pipeline(Resources(), cluster)
    print_pools(preparing_pools(resources, cluster), cluster)
    refusal = check_decoding(resources, cluster)
    if refusal:
        raise UserError(refusal)


def print_training(config: TrainConfig, settings: Settings) -> None:
    """The workers of a training run on this cluster.

    Raises:
        UserError: The dataset cannot be read, or the workers would never start; the latter after the table.
    """
    dataset = read_manifest(config.dataset, Storage(settings.storage))
    training = training_resources(config, dataset)
    cluster = connect(settings.cluster)
    print_pools(training_pools(training, cluster), cluster)
    check_resources(training, cluster)


def print_pools(pools: list[Pool], cluster: Cluster) -> None:
    """The cluster in a line, then a row a pool."""
    spot = sum(node.is_spot for node in cluster.nodes)
    growth = f", may grow to {cluster.num_cpus:g} CPUs and {cluster.num_gpus:g} GPUs" if cluster.grows else ""
    used = f"; others hold {held(cluster)}" if cluster.unused.num_cpus_now < cluster.num_cpus_now else ""
    console.print(
        f"cluster: {len(cluster.nodes)} nodes ({spot} spot), {cluster.num_cpus_now:g} CPUs, "
        f"{cluster.num_gpus_now:g} GPUs, {cluster.memory_bytes_now / GIB:.1f} GiB for tasks{growth}{used}",
        highlight=False,
    )
    table = Table()
    for name in ("pool", "how many", "CPUs each", "GPUs each", "GiB each", "where", "why"):
        table.add_column(name, justify="right" if name.endswith("each") else "left", overflow="fold")
    for pool in pools:
        memory_text = f"{pool.memory_bytes / GIB:.2f}" if pool.memory_bytes else "–"
        table.add_row(
            pool.name, pool.size, f"{pool.num_cpus:g}", f"{pool.num_gpus:g}", memory_text, pool.where, pool.why
        )
    console.print(table)
