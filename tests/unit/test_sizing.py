"""How a cluster is shared out: nobody starves, spot nodes decode only, GPUs hold whole predictors."""

import math
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.cluster import look
from ray_jobs.pools import pipeline_pools, preparing_pools, spoken, training_pools
from ray_jobs.sizing import (
    DECODE_CPUS,
    DECODE_MEMORY_BYTES,
    GIB,
    PREDICT_CPUS,
    PREDICT_MEMORY_BYTES,
    SPARE_CPUS,
    TRAIN_DECODER_BYTES,
    TRAIN_MEMORY_BYTES,
    TRAIN_WINDOWS_BYTES,
    Cluster,
    Node,
    Resources,
    Training,
    Wanted,
    check_decoding,
    check_pipeline,
    check_tasks,
    check_training,
    num_decoders,
    predictors_on_gpus,
    size_pipeline,
)
from ray_jobs.tuning import trials_at_once

CPU_NODE = Node(16, memory_bytes=64 * GIB)
GPU_NODE = Node(16, num_gpus=4, memory_bytes=128 * GIB)
SPOT_NODE = Node(16, memory_bytes=64 * GIB, is_spot=True)


def test_what_is_given_stays_as_it_is() -> None:
    wanted = Wanted(num_predictors=3, gpus_per_predictor=0.25, rows_per_block=7)
    resources = size_pipeline(wanted, Cluster((GPU_NODE,)))
    assert (resources.num_predictors, resources.gpus_per_predictor, resources.rows_per_block) == (3, 0.25, 7)


def test_gpus_are_used_where_there_are_any() -> None:
    resources = size_pipeline(Wanted(), Cluster((GPU_NODE, CPU_NODE, CPU_NODE)))
    assert (resources.num_predictors, resources.gpus_per_predictor) == (8, 0.5)
    assert size_pipeline(Wanted(gpus_per_predictor=0), Cluster((GPU_NODE,))).gpus_per_predictor == 0
    assert size_pipeline(Wanted(), Cluster((CPU_NODE,))).gpus_per_predictor == 0


def test_few_cpus_leave_gpus_idle_rather_than_decoders() -> None:
    resources = size_pipeline(Wanted(), Cluster((Node(4, num_gpus=8, memory_bytes=64 * GIB),)))
    assert resources.num_predictors <= 2


@pytest.mark.parametrize(
    ("gpus", "share", "number"),
    [
        (1, 0.5, 2),
        (1, 0.4, 2),
        (1, 0.25, 4),
        (1, 1 / 3, 3),
        (2, 0.3, 6),
        (3, 2, 1),
        (4, 1, 4),
        (0, 0.5, 0),
        (1, 0.6, 1),
    ],
)
def test_a_part_of_a_gpu_does_not_reach_over_two(gpus: int, share: float, number: int) -> None:
    assert predictors_on_gpus(Cluster((Node(16, num_gpus=gpus),)), share) == number


def test_gpus_of_spot_nodes_hold_no_predictors() -> None:
    spot = Node(16, num_gpus=4, memory_bytes=64 * GIB, is_spot=True)
    resources = size_pipeline(Wanted(), Cluster((CPU_NODE, spot)))
    assert resources.gpus_per_predictor == 0
    assert check_pipeline(resources, Cluster((CPU_NODE, spot))) is None
    refusal = check_pipeline(Resources(num_predictors=1, gpus_per_predictor=0.5), Cluster((CPU_NODE, spot)))
    assert refusal is not None
    assert "spot nodes do not count" in refusal


def test_a_cluster_without_gpus_refuses_a_gpu_recipe() -> None:
    refusal = check_pipeline(Resources(num_predictors=2, gpus_per_predictor=1), Cluster((CPU_NODE,)))
    assert refusal is not None
    assert "--gpus-per-predictor" in refusal


def test_an_autoscaler_may_bring_what_is_not_there() -> None:
    waiting = Cluster((Node(4, memory_bytes=8 * GIB),), {"CPU": 260, "GPU": 8, "memory": 1e12})
    resources = size_pipeline(Wanted(), waiting)
    assert (resources.num_predictors, resources.gpus_per_predictor) == (16, 0.5)
    assert check_pipeline(resources, waiting) is None
    training = Training(most=8, least=8, cpus_per_worker=4, use_gpu=True)
    assert check_training(training, waiting) is None
    assert check_training(training, Cluster(waiting.nodes)) is not None


def test_predictors_without_memory_are_refused() -> None:
    small = Cluster((Node(16, memory_bytes=PREDICT_MEMORY_BYTES - 1),))
    refusal = check_pipeline(Resources(), small)
    assert refusal is not None
    assert "GiB" in refusal
    both = Cluster((Node(16, memory_bytes=PREDICT_MEMORY_BYTES + DECODE_MEMORY_BYTES),))
    assert check_pipeline(Resources(), both) is None


def test_what_leaves_no_room_for_a_decoder_is_refused() -> None:
    full = Cluster((Node(16, memory_bytes=PREDICT_MEMORY_BYTES + DECODE_MEMORY_BYTES - 1),))
    refusal = check_pipeline(Resources(), full)
    assert refusal is not None
    assert "a decoder needs 0.9 CPU and 1 GiB" in refusal
    assert "--predictors" in refusal
    assert check_decoding(Resources(), full) is None  # without a predictor beside it
    assert check_pipeline(Resources(), Cluster(full.nodes, {"CPU": 32})) is None
    named = Resources(num_predictors=1, decode_resource="decode")
    nodes = (CPU_NODE, Node(1, memory_bytes=PREDICT_MEMORY_BYTES, custom={"decode": 4}))
    assert check_pipeline(named, Cluster(nodes)) is None
    refusal = check_pipeline(named, Cluster((CPU_NODE, Node(0.5, memory_bytes=GIB, custom={"decode": 4}))))
    assert refusal is not None
    assert "a node with the resource decode" in refusal


@pytest.mark.parametrize("nodes", [(), (Node(0, memory_bytes=8 * GIB),), (Node(4, memory_bytes=GIB - 1),)])
def test_preparing_without_room_is_refused_rather_than_waiting_for_ever(nodes: tuple[Node, ...]) -> None:
    refusal = check_decoding(Resources(), Cluster(nodes))
    assert refusal is not None
    assert "--predictors" not in refusal


def test_a_cluster_without_nodes_is_refused_or_waits_for_its_autoscaler() -> None:
    assert check_pipeline(size_pipeline(Wanted(), Cluster(())), Cluster(())) is not None
    waiting = Cluster((), {"CPU": 64, "GPU": 0})
    assert check_pipeline(size_pipeline(Wanted(), waiting), waiting) is None


def test_tasks_that_would_wait_for_ever_are_refused() -> None:
    assert check_tasks(Cluster((CPU_NODE,)), use_gpu=False) is None
    assert check_tasks(Cluster((GPU_NODE,)), use_gpu=True) is None
    assert check_tasks(Cluster((), {"CPU": 8, "GPU": 1}), use_gpu=True) is None
    assert "--gpu: " in str(check_tasks(Cluster((CPU_NODE,)), use_gpu=True))
    assert "ray start --num-cpus" in str(check_tasks(Cluster((Node(0),)), use_gpu=False))


def test_an_autoscaler_without_bounds_does_not_make_pools_without_bounds() -> None:
    cluster = Cluster((CPU_NODE,), {"CPU": math.inf, "memory": math.inf})
    resources = size_pipeline(Wanted(), cluster)
    assert resources.num_predictors == 8
    assert check_pipeline(resources, cluster) is None


@pytest.mark.parametrize(
    ("nodes", "number"),
    [
        ((Node(16, memory_bytes=10 * GIB),), 3),  # 16 CPUs, and memory for three pairs of predictor and decoder
        ((Node(4, memory_bytes=32 * GIB), SPOT_NODE, SPOT_NODE), 4),  # all that the one steady node holds
        ((Node(32, memory_bytes=256 * GIB, num_gpus=4), CPU_NODE), 8),
        ((Node(1, memory_bytes=5 * GIB), Node(5, memory_bytes=4 * GIB)), 2),  # memory in the one, CPUs in the other
    ],
)
def test_by_default_no_more_predictors_than_start(nodes: tuple[Node, ...], number: int) -> None:
    cluster = Cluster(nodes)
    resources = size_pipeline(Wanted(), cluster)
    assert resources.num_predictors == number
    assert check_pipeline(resources, cluster) is None


def test_decoders_take_what_predictors_leave() -> None:
    # 16 CPUs - 2 predictors = 14; 14 / 0.9 = 15.
    assert num_decoders(Resources(num_predictors=2), Cluster((CPU_NODE,))) == 15
    # Memory is the narrower one: 4 GiB beside the predictor.
    narrow = Node(16, memory_bytes=PREDICT_MEMORY_BYTES + 3.5 * DECODE_MEMORY_BYTES)
    assert num_decoders(Resources(), Cluster((narrow,))) == 3
    # Predictors with GPUs leave the other nodes alone; spot nodes decode.
    mixed = Cluster((SPOT_NODE, GPU_NODE))
    assert num_decoders(Resources(num_predictors=8, gpus_per_predictor=0.5), mixed) == 17 + 8


def test_nodes_that_offer_the_resource_decode_and_no_others() -> None:
    named = Node(16, memory_bytes=64 * GIB, custom={"decode": 6})
    cluster = Cluster((CPU_NODE, named))
    resources = size_pipeline(Wanted(num_predictors=1), cluster)
    assert resources.decode_resource == "decode"
    assert num_decoders(resources, cluster) == 6
    assert size_pipeline(Wanted(), Cluster((CPU_NODE,))).decode_resource is None


NODES = st.builds(
    Node,
    num_cpus=st.integers(1, 64).map(float),
    num_gpus=st.integers(0, 8).map(float),
    memory_bytes=st.integers(4, 512).map(lambda gib: float(gib * GIB)),
    is_spot=st.booleans(),
)


@given(st.lists(NODES, min_size=1, max_size=12))
def test_what_is_sized_by_the_cluster_starts_or_is_refused_and_starves_nobody(nodes: list[Node]) -> None:
    cluster = Cluster(tuple(nodes))
    resources = size_pipeline(Wanted(), cluster)
    assert resources.num_predictors >= 1
    one = resources.model_copy(update={"num_predictors": 1})
    assert (check_pipeline(resources, cluster) is None) == (check_pipeline(one, cluster) is None)
    if check_pipeline(resources, cluster) is None:
        decoders = num_decoders(resources, cluster)
        assert decoders >= 1
        assert resources.num_predictors * PREDICT_CPUS + SPARE_CPUS <= cluster.num_cpus
        used = decoders * DECODE_CPUS + resources.num_predictors * PREDICT_CPUS
        assert used <= cluster.num_cpus
        assert resources.num_predictors * resources.gpus_per_predictor <= cluster.num_gpus + 1e-6


@given(st.lists(NODES, min_size=1, max_size=12), st.data())
def test_what_others_hold_is_left_to_them(nodes: list[Node], data: st.DataObject) -> None:
    free = tuple(replace(node, num_cpus=float(data.draw(st.integers(0, int(node.num_cpus))))) for node in nodes)
    cluster = Cluster(tuple(nodes), free=free)
    resources, alone = size_pipeline(Wanted(), cluster), size_pipeline(Wanted(), Cluster(tuple(nodes)))
    assert 1 <= resources.num_predictors <= alone.num_predictors
    assert resources.gpus_per_predictor == alone.gpus_per_predictor
    if resources.num_predictors > 1:
        assert num_decoders(resources, cluster.unused) >= 1
    assert (check_pipeline(resources, cluster) is None) >= (check_pipeline(alone, cluster) is None)


def test_a_run_beside_a_service_takes_what_is_free() -> None:
    small = Node(2, memory_bytes=16 * GIB)
    nodes = (small, small)
    beside = Cluster(nodes, free=(Node(1, memory_bytes=15 * GIB),) * 2)
    assert size_pipeline(Wanted(), Cluster(nodes)).num_predictors == 2
    resources = size_pipeline(Wanted(), beside)
    assert resources.num_predictors == 1
    assert check_pipeline(resources, beside) is None
    assert spoken(resources, beside).splitlines()[1:] == ["  others hold 2 of 4 CPUs"]
    full = Cluster(nodes, free=(Node(0, memory_bytes=15 * GIB),) * 2)
    resources = size_pipeline(Wanted(), full)
    assert resources.num_predictors == 1
    assert check_pipeline(resources, full) is None  # others may end
    assert "no decoder has room beside the predictors: it waits" in spoken(resources, full)


def test_a_second_run_on_gpus_takes_those_that_are_free() -> None:
    node = Node(32, num_gpus=4, memory_bytes=256 * GIB)
    cluster = Cluster((node,), free=(Node(16, num_gpus=1, memory_bytes=200 * GIB),))
    assert size_pipeline(Wanted(), Cluster((node,))).num_predictors == 8
    resources = size_pipeline(Wanted(), cluster)
    assert (resources.num_predictors, resources.gpus_per_predictor) == (2, 0.5)
    assert "others hold 16 of 32 CPUs and 3 of 4 GPUs" in spoken(resources, cluster)


def test_an_autoscaler_brings_what_others_leave_of_its_limits() -> None:
    node = Node(16, memory_bytes=64 * GIB)
    busy = Cluster((node,), {"CPU": 64, "memory": 256 * GIB}, (replace(node, num_cpus=4.0),))
    assert busy.unused.limits == {"CPU": 52, "memory": 256 * GIB}
    assert size_pipeline(Wanted(), busy).num_predictors == 26


def test_small_clusters_keep_one_predictor() -> None:
    assert size_pipeline(Wanted(), Cluster((Node(4, memory_bytes=16 * GIB),))).num_predictors <= 2
    refusal = check_pipeline(Resources(num_predictors=3), Cluster((Node(4, memory_bytes=16 * GIB),)))
    assert refusal == (
        "--predictors 3 needs 5 logical CPUs, the cluster has 4: lower it, or add nodes (locally: --num-cpus)"
    )


def test_training_counts_cpus_gpus_and_memory() -> None:
    one = Training(most=1, least=1, cpus_per_worker=3, use_gpu=False)
    assert check_training(one, Cluster((Node(3, memory_bytes=16 * GIB),))) is None  # the controller takes none
    assert check_training(one, Cluster((Node(2, memory_bytes=16 * GIB),))) is not None
    on_gpu = Training(most=2, least=2, cpus_per_worker=1, use_gpu=True)
    refusal = check_training(on_gpu, Cluster((CPU_NODE,)))
    assert refusal is not None
    assert "without --gpu" in refusal
    assert check_training(on_gpu, Cluster((GPU_NODE,))) is None
    assert check_training(on_gpu, Cluster((Node(16, num_gpus=4, memory_bytes=64 * GIB, is_spot=True),))) is not None


def test_trials_at_once_are_those_whose_workers_find_room() -> None:
    two = Training(most=2, least=2, cpus_per_worker=2, use_gpu=False)
    assert trials_at_once(two, Cluster((Node(8, memory_bytes=64 * GIB),))) == 2  # a trial takes no CPU of its own
    assert trials_at_once(two, Cluster((Node(8, memory_bytes=2.5 * GIB),))) == 1
    assert trials_at_once(two, Cluster((CPU_NODE, SPOT_NODE))) == 4
    assert trials_at_once(two, Cluster((), {"CPU": 64})) == 1
    on_gpu = Training(most=2, least=1, cpus_per_worker=1, use_gpu=True)
    assert trials_at_once(on_gpu, Cluster((GPU_NODE,))) == 2


def test_training_keeps_crops_where_they_fit() -> None:
    kept = Training(1, 1, 1, False, crops_bytes=3 * GIB, resident_bytes=4 * GIB)
    streamed = Training(1, 1, 1, False, crops_bytes=5 * GIB, resident_bytes=4 * GIB)
    assert kept.memory_bytes == TRAIN_MEMORY_BYTES + 3 * GIB
    assert streamed.memory_bytes == TRAIN_MEMORY_BYTES + TRAIN_DECODER_BYTES + TRAIN_WINDOWS_BYTES
    shared = Training(2, 2, 1, False, crops_bytes=GIB, resident_bytes=GIB, validation_bytes=3)
    assert shared.memory_bytes == TRAIN_MEMORY_BYTES + GIB + 2  # each worker keeps its part of the validation crops
    assert check_training(kept, Cluster((Node(8, memory_bytes=4 * GIB),))) is not None
    assert check_training(streamed, Cluster((Node(8, memory_bytes=4 * GIB),))) is None
    assert "streamed" in training_pools(streamed, Cluster((CPU_NODE,)))[-1].why
    assert "3.00 GiB" in training_pools(kept, Cluster((CPU_NODE,)))[-1].why


def test_preparing_has_no_predictors_beside_it() -> None:
    pools = preparing_pools(Resources(), Cluster((CPU_NODE,)))
    assert [pool.name for pool in pools] == ["driver", "decoders", "encoders"]
    assert pools[1].size.startswith("17 now")  # 16 CPUs / 0.9


def test_every_pool_says_why() -> None:
    cluster = Cluster((GPU_NODE, CPU_NODE, SPOT_NODE))
    pools = pipeline_pools(size_pipeline(Wanted(), cluster), cluster, Wanted())
    assert [pool.name for pool in pools] == ["driver", "decoders", "predictors"]
    assert all(pool.why and pool.where for pool in pools)
    assert "4 free GPUs × 2" in pools[-1].why
    given_by_user = pipeline_pools(Resources(num_predictors=2), cluster, Wanted(num_predictors=2))
    assert given_by_user[-1].why == "--predictors"


def test_nodes_and_limits_are_read_from_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = {"CPU": 4.0, "memory": 8.0 * GIB, "object_store_memory": 1.0, "node:10.0.0.1": 1.0, "decode": 2.0}
    nodes = [
        {"Alive": True, "NodeID": "a", "Resources": offered, "Labels": {"ray.io/market-type": "spot"}},
        {"Alive": True, "NodeID": "b", "Resources": {"GPU": 1.0, "node:__internal_head__": 1.0}, "Labels": {}},
        {"Alive": False, "NodeID": "c", "Resources": offered, "Labels": {}},
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    limits = {"CPU": sys.maxsize, "GPU": 8, "decode": 0}  # as Ray says of a group without a maximum
    monkeypatch.setattr("ray._private.state.state.get_max_resources_from_cluster_config", lambda: limits)
    free = {"a": {"CPU": 1.0, "memory": 2.0 * GIB, "decode": 1.0, "node:10.0.0.1": 1.0}}
    monkeypatch.setattr("ray._private.state.state.available_resources_per_node", lambda: free)
    assert look() == Cluster(
        (Node(4, memory_bytes=8 * GIB, custom={"decode": 2}, is_spot=True), Node(0, num_gpus=1, memory_bytes=0)),
        {"CPU": math.inf, "GPU": 8, "decode": 0},
        (Node(1, memory_bytes=2 * GIB, custom={"decode": 1}, is_spot=True), Node(0, memory_bytes=0)),
    )
    monkeypatch.setattr("ray._private.state.state.get_max_resources_from_cluster_config", lambda: None)
    assert not look().grows
