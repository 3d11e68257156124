"""How a training step computes: its type, and crops mixed with others."""

import re
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError

from models.network import build_network
from models.tasks.base import get_task
from ray_jobs.training import loop
from ray_jobs.training.learning import make_average, mix, resolve_precision
from ray_jobs.training.loop import is_out_of_memory
from ray_jobs.training.recipe import Recipe
from ray_jobs.training.run import stopped_for_memory

CPU = torch.device("cpu")


def test_the_average_is_a_plain_mean_until_it_is_long_enough_to_be_an_exponential_one():
    """Of weights that were 1, 2, 3, …: the first ones, which are random, do not weigh more than others."""
    network = build_network("shufflenet_v2_x0_5", get_task("attractiveness").heads)
    steps = 0
    average = make_average(network, Recipe(ema=0.75), lambda: steps)
    weight, kept = network.classifier.weight, []
    for steps in range(1, 8):
        with torch.no_grad():
            weight.fill_(steps)
        average.update_parameters(network)
        kept.append(average.module.classifier.weight.mean().item())
    assert kept[:4] == pytest.approx([1, 1.5, 2, 2.5])
    assert kept[4:] == pytest.approx([2.5 * 0.75 + 5 * 0.25, 3.125 * 0.75 + 6 * 0.25, 3.84375 * 0.75 + 7 * 0.25])
    assert make_average(network, Recipe(), lambda: 1) is None


class Worker(loop._Training):
    """One of several, in its check of the losses; what the others add to a sum is given."""

    def __init__(self, rank: int, others: list[float]) -> None:
        self._rank, self._others, self._epoch, self._precision, self._world = rank, others, 1, torch.float32, 2
        self._reader = SimpleNamespace(names=lambda rows: [f"video-{row}" for row in rows])

    def _sum(self, value: float) -> float:
        return value + self._others.pop(0)


@pytest.mark.parametrize(
    ("rank", "loss", "others", "words"),
    [
        (0, 1.0, [1, 1], None),  # another worker has the batch, and says so
        (1, float("nan"), [1, 0], "step 7 .videos video-3"),
        (0, 1.0, [1, 0], "step 7 .videos video-3"),  # a gradient that is nobody's loss
        (1, 1.0, [1, 0], None),
    ],
)
def test_of_several_workers_the_one_with_the_broken_batch_names_it(rank, loss, others, words):
    """After it all losses are broken, everybody's."""
    batches = [SimpleNamespace(step=step, rows=[row]) for step, row in ((6, 2), (7, 3), (8, 4))]
    nan = torch.tensor(float("nan"))
    losses = [torch.tensor(1.0), torch.tensor(loss), nan]
    norms = [torch.tensor(1.0), nan, nan]
    steps = [loop._Step(*item) for item in zip(batches, losses, norms, strict=True)]
    with pytest.raises(loop.CannotGoOn) as stopped:
        Worker(rank, list(others))._checked_mean(steps)
    assert re.search(words, str(stopped.value)) if words else not str(stopped.value)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({"avx2": True, "avx512_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({"architecture": "riscv64"}, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_has_its_instructions(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize("native", [True, False])
def test_auto_does_not_take_an_emulated_bfloat16_of_a_gpu(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert resolve_precision("auto", torch.device("cuda")) == (torch.bfloat16 if native else torch.float32)


def test_a_named_precision_is_kept_whatever_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert resolve_precision("bfloat16", CPU) == torch.bfloat16
    assert resolve_precision("float32", CPU) == torch.float32


def levels(num: int, side: int = 20) -> torch.Tensor:
    """Images of one value each: 0, 1, 2, …"""
    return torch.arange(num, dtype=torch.float32).view(-1, 1, 1, 1).expand(num, 3, side, side)


def test_without_mixing_nothing_is_drawn():
    images, generator = levels(4), torch.Generator().manual_seed(1)
    before = generator.get_state()
    same, mixed = mix(images, Recipe(), generator)
    assert same is images
    assert mixed is None
    assert torch.equal(generator.get_state(), before)


def test_mixup_blends_by_the_share_of_the_labels():
    images, mixed = mix(levels(8), Recipe(mixup=0.4), torch.Generator().manual_seed(3))
    assert mixed is not None
    assert 0 < mixed.share < 1
    own = torch.arange(8.0)
    expected = mixed.share * own + (1 - mixed.share) * own[mixed.order]
    assert torch.allclose(images.mean((1, 2, 3)), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_as_much_as_the_labels_say(seed):
    images, mixed = mix(levels(8), Recipe(cutmix=1.0), torch.Generator().manual_seed(seed))
    assert mixed is not None
    for number, image in enumerate(images):
        other = int(mixed.order[number])
        assert set(image.unique().tolist()) <= {float(number), float(other)}
        if other != number:
            assert (image[0] == number).double().mean().item() == pytest.approx(mixed.share)


def test_with_both_each_step_takes_one_by_its_draw():
    recipe = Recipe(mixup=0.4, cutmix=1.0)
    shares = []
    for seed in range(30):
        images, mixed = mix(levels(6), recipe, torch.Generator().manual_seed(seed))
        again, repeated = mix(levels(6), recipe, torch.Generator().manual_seed(seed))
        assert torch.equal(images, again)
        assert mixed is not None
        assert repeated is not None
        assert mixed.share == repeated.share
        shares.append(bool((images == images[:, :1, :1, :1]).all()))
    assert 5 < sum(shares) < 25  # blended images stay of one value


def test_memory_that_is_not_there_is_known_by_the_words_of_the_allocator():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 44)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_a_worker_that_ray_stopped_for_its_node_is_told_from_other_failures() -> None:
    killed = WorkerGroupError("training failed", {0: RuntimeError("gone"), 1: OutOfMemoryError("node is low")})
    assert stopped_for_memory(killed)
    assert not stopped_for_memory(WorkerGroupError("training failed", {0: RuntimeError("gone")}))
    assert stopped_for_memory(ControllerError(OutOfMemoryError("node is low")))  # its small actors went first
    assert not stopped_for_memory(ControllerError(RuntimeError("gone")))
