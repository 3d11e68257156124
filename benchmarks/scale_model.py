"""A model of a long scoring run: what each part can take, and the run from commit to commit as its log grows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What things cost; measured by ``benchmarks.scale measure`` unless said otherwise (docs/scale.md has the runs)."""

    decode_s: float = 3.656 / 13  # CPU, of a video's ten frames: docs/frames.md, mean of 13 kinds of video
    faces_s: float = 0.38  # CPU, of its ten frames: find and cut faces
    crop_bytes: int = 10 * 256 * 256 * 3  # of a video in the object store: the default face policy
    video_requests: float = 2.92
    video_read_bytes: float = 3.99e6
    row_task_s: float = 63e-6  # driver's CPU, a row into the table of one task
    block_s: float = 0.021  # driver's CPU, a block through Ray Data
    block_bytes: float = 12e3  # driver's memory that a block leaves behind while its dataset is executed
    commit_s: float = 0.018  # driver's CPU, a commit of one table with a short log
    open_s_per_log_file: float = 0.5e-3  # a commit reads what came after the last checkpoint (every 100 commits)
    commit_s_per_file: float = 38e-6  # and the checkpoint, which has a line for each file
    plan_s: float = 7.5e-6  # wall, a video, two cores
    due_s: float = 4.9e-6  # the due list, a video
    gpu_crops_per_s: float = 1261.0  # published by NVIDIA: ResNet-50, 224, float32, batch 256, V100


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is."""

    cpus: int = 1_000
    gpus: int = 32
    nodes: int = 32  # that read and decode
    node_bytes_per_s: float = 10e9 / 8  # an assumption: 10 Gbit/s each
    prefixes: int = 1  # of the bucket that videos lie under
    get_per_s: float = 5_500.0  # a prefix (AWS, "Best practices design patterns: optimizing Amazon S3 performance")
    commit_latency_s: float = 1.0  # waiting for storage in one commit; an assumption
    restart_s: float = 60.0  # until a new pipeline is as fast as the one before; an assumption


@dataclass(frozen=True, slots=True)
class Options:
    """How it is run."""

    videos: int = 100_000_000
    tasks: int = 2
    rows_per_block: int = 32
    commit_rows: int = 10_000
    commit_every_s: float = 30.0
    runs: int = 1  # beside each other, each with a part of the catalog and tables of its own
    dataset_videos: int = 5_000_000  # that go through one pipeline (`ray_jobs.score_run.FILES_PER_DATASET`)
    optimize_every: int = 100_000_000  # videos after which a run ends and its tables are compacted


@dataclass(frozen=True, slots=True)
class Model:
    """One cluster, one way to run it."""

    costs: Costs = Costs()
    cluster: Cluster = Cluster()
    options: Options = Options()

    def with_(self, **values: float) -> "Model":
        """The same with other values, whichever part they belong to."""
        parts = {}
        for name in ("costs", "cluster", "options"):
            part = getattr(self, name)
            own = {key: value for key, value in values.items() if hasattr(part, key)}
            parts[name] = replace(part, **own)
        assert all(any(hasattr(part, key) for part in parts.values()) for key in values), values
        return Model(**parts)

    def capacities(self) -> dict[str, float]:
        """Videos a second that each part could take if nothing else held it up; commits with a short log."""
        costs, cluster, options = self.costs, self.cluster, self.options
        # A predictor asks for a CPU, and so does each run's driver.
        cpus = cluster.cpus - cluster.gpus - options.runs
        return {
            "CPUs: decode, faces": cpus / (costs.decode_s + costs.faces_s),
            "GPUs": cluster.gpus * costs.gpu_crops_per_s / (10 * options.tasks),
            "GET requests": cluster.prefixes * cluster.get_per_s / costs.video_requests,
            "network": cluster.nodes * cluster.node_bytes_per_s / (costs.video_read_bytes + costs.crop_bytes),
            "driver": options.runs / (self.row_s() + self.commit_cycle_s(0) / options.commit_rows),
        }

    def row_s(self) -> float:
        """The driver's CPU for a row, commits apart."""
        return self.costs.block_s / self.options.rows_per_block + self.options.tasks * self.costs.row_task_s

    def commit_cycle_s(self, num_files: int) -> float:
        """Seconds in which the driver commits to every task's table and takes nothing, with so many files in each."""
        costs = self.costs
        own = costs.commit_s + 50 * costs.open_s_per_log_file + num_files * costs.commit_s_per_file
        return self.options.tasks * (own + self.cluster.commit_latency_s)

    def bottleneck(self) -> str:
        """The part that takes the fewest."""
        found = self.capacities()
        return min(found, key=lambda name: found[name])

    def progress(self) -> Iterator[tuple[float, float, int]]:
        """(hours, videos done, files in a table) after each commit of one of the runs, plans included."""
        options, costs = self.options, self.costs
        found = self.capacities()
        rate = min(value for name, value in found.items() if name != "driver") / options.runs
        wanted = options.videos / options.runs
        # Every run begins with a plan of the whole catalog and a due list of its own portion.
        at_s, done, files = 0.0, 0.0, 0
        while done < wanted:
            portion = min(options.optimize_every / options.runs, wanted - done)
            at_s += wanted * costs.plan_s + portion * costs.due_s
            at_s += math.ceil(portion / options.dataset_videos) * self.cluster.restart_s
            end = done + portion
            while done < end:
                rows = min(options.commit_rows, rate * options.commit_every_s, end - done)
                # The pipeline works on while the driver is busy, until the driver has no time left at all.
                at_s += max(rows / rate, rows * self.row_s() + self.commit_cycle_s(files))
                done, files = done + rows, files + 1
                yield at_s / HOUR_S, done * options.runs, files
            files = max(1, round(done * 760 / 100e6))  # compacted: files of about 100 MB

    def hours(self) -> float:
        """From the first plan to the last commit."""
        return list(self.progress())[-1][0]

    def figures(self) -> dict[str, float]:
        """What else comes of the run."""
        options, costs = self.options, self.costs
        blocks = min(options.dataset_videos, options.videos / options.runs) / options.rows_per_block
        steps = list(self.progress())
        rate = options.videos / (steps[-1][0] * HOUR_S)
        return {
            "hours": steps[-1][0],
            "most files in a table": max(files for _, _, files in steps),
            "blocks of a dataset": blocks,
            "GB of driver memory for them": blocks * costs.block_bytes / 1e9,
            "GET/s": rate * costs.video_requests,
            "GB/s read": rate * costs.video_read_bytes / 1e9,
            "GB/s of crops": rate * costs.crop_bytes / 1e9,
            "GPU busy": rate / self.capacities()["GPUs"],
            "CPU busy": rate / self.capacities()["CPUs: decode, faces"],
        }
