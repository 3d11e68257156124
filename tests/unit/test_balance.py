"""Balanced epochs: each class exactly as often as wanted, over all workers, reproducibly, and fairly over epochs."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from infra.storage import Storage
from models.tasks.base import get_task
from ray_jobs.crops.dataset import encode_crop
from ray_jobs.training.balance import Balance
from ray_jobs.training.reader import BalancedReader
from tests.unit.test_crops_dataset import picture

COUNTS = {"60": 1, "70": 7, "80": 40}


@given(num_crops=st.integers(1, 200), per_class=st.integers(1, 500), epoch=st.integers(0, 50))
def test_a_class_comes_exactly_as_often_as_wanted(num_crops: int, per_class: int, epoch: int) -> None:
    balance = Balance("score", per_class, {"60": num_crops})
    copies = [balance.copies(60, rank, epoch) for rank in range(num_crops)]
    assert sum(copies) == per_class
    assert max(copies) - min(copies) <= 1


def test_over_epochs_all_crops_of_a_class_are_seen_alike() -> None:
    balance = Balance("score", 3, {"60": 7})
    seen = [sum(balance.copies(60, rank, epoch) for epoch in range(7)) for rank in range(7)]
    assert seen == [3] * 7


def test_missing_labels_are_left_out() -> None:
    assert Balance("score", 3, {"60": 7}).copies(None, None, 0) == 0


@pytest.fixture
def part(tmp_path: Path) -> str:
    rows = [
        {"crop": encode_crop(picture(0)), "score": int(score), "rank_score": rank}
        for score, number in COUNTS.items()
        for rank in range(number)
    ]
    rows.append({"crop": encode_crop(picture(0)), "score": None, "rank_score": None})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000.parquet")
    return str(tmp_path / "train-00000.parquet")


def readers(part: str, per_class: int, *, batch_size: int = 8) -> list[BalancedReader]:
    task, balance = get_task("attractiveness"), Balance("score", per_class, COUNTS)
    return [
        BalancedReader([part], Storage(), task, balance, batch_size=batch_size, rank=rank, world=3, seed=rank)
        for rank in range(3)
    ]


@pytest.mark.parametrize("per_class", [10, 16, 100])
def test_three_workers_together_give_each_class_its_number(part: str, per_class: int) -> None:
    for epoch in (0, 1, 5):
        epochs = [list(reader.epoch(epoch)) for reader in readers(part, per_class)]
        classes = Counter(60 + int(target) for batches in epochs for _, targets in batches for target in targets[:, 0])
        assert classes == {60: per_class, 70: per_class, 80: per_class}
        (steps,) = {len(batches) for batches in epochs}
        assert steps == 3 * per_class // 24
        assert all(len(crops) == len(targets) > 0 for batches in epochs for crops, targets in batches)


def test_an_epoch_is_the_same_each_time_and_another_one_is_not(part: str) -> None:
    def order(epoch: int) -> list[list[int]]:
        return [targets[:, 0].tolist() for _, targets in readers(part, 100)[0].epoch(epoch)]

    assert order(1) == order(1) != order(2)


def test_too_few_crops_for_the_steps_are_refused(part: str) -> None:
    reader = readers(part, 1, batch_size=1)[0]
    reader.steps_per_epoch = 30
    with pytest.raises(UserError, match="fewer workers, or a larger batch"):
        list(reader.epoch(0))
