"""Balanced epochs: each class exactly as often as wanted, over all workers, reproducibly, and fairly over epochs."""

import gc
import multiprocessing
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import UnidentifiedImageError

from infra.storage import Storage
from models.tasks.base import get_task
from ray_jobs.crops.jpeg import encode_crop
from ray_jobs.training.balance import Balance
from ray_jobs.training.order import EpochOrder
from ray_jobs.training.reader import CropReader
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
    for number, row in enumerate(rows):
        row["crop"] = encode_crop(picture(number))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000.parquet", row_group_size=7)
    return str(tmp_path / "train-00000.parquet")


def readers(
    part: str, per_class: int | None, *, resident: bool = True, world: int = 3, num_decoders: int = 0
) -> list[CropReader]:
    task = get_task("attractiveness")
    balance = None if per_class is None else Balance("score", per_class, COUNTS)
    return [
        CropReader(
            [part],
            Storage(),
            task,
            balance,
            batch_size=24,
            rank=rank,
            world=world,
            seed=0,
            resident=resident,
            num_decoders=num_decoders,
            window_rows=20,
        )
        for rank in range(world)
    ]


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("per_class", [10, 16, 100])
def test_three_workers_together_give_each_class_its_number(part: str, per_class: int, resident: bool) -> None:
    for epoch in (0, 1, 5):
        epochs = [list(reader.epoch(epoch)) for reader in readers(part, per_class, resident=resident)]
        classes = Counter(60 + int(target) for batches in epochs for batch in batches for target in batch.targets[:, 0])
        assert classes == {60: per_class, 70: per_class, 80: per_class}
        (steps,) = {len(batches) for batches in epochs}
        assert steps == readers(part, per_class)[0].steps_per_epoch == 3 * per_class // 24
        assert all(len(batch.crops) == len(batch.targets) > 0 for batches in epochs for batch in batches)
        for parts in zip(*epochs, strict=True):
            assert sum(len(batch.rows) for batch in parts) == parts[0].num_rows


@pytest.mark.parametrize("resident", [True, False])
def test_without_a_balance_every_crop_comes_once(part: str, resident: bool) -> None:
    rows = [row for reader in readers(part, None, resident=resident) for batch in reader.epoch(3) for row in batch.rows]
    assert sorted(rows) == list(range(sum(COUNTS.values()) + 1))


@pytest.mark.parametrize("resident", [True, False])
def test_an_epoch_is_the_same_each_time_and_another_one_is_not(part: str, resident: bool) -> None:
    def order(epoch: int, world: int = 1) -> list[list[int]]:
        found = [list(reader.epoch(epoch)) for reader in readers(part, 100, resident=resident, world=world)]
        return [sorted(row for batch in parts for row in batch.rows) for parts in zip(*found, strict=True)]

    assert order(1) == order(1) != order(2)
    assert order(1) == order(1, world=3)  # a step holds the same crops whatever the number of workers


@pytest.mark.parametrize("resident", [True, False])
def test_an_epoch_goes_on_from_any_step(part: str, resident: bool) -> None:
    (reader,) = readers(part, 100, resident=resident, world=1)
    whole = list(reader.epoch(2))
    for first in (1, 5, len(whole) - 1, len(whole)):
        rest = list(reader.epoch(2, first))
        assert [batch.step for batch in rest] == list(range(first, len(whole)))
        for batch, expected in zip(rest, whole[first:], strict=True):
            assert batch.rows.tolist() == expected.rows.tolist()
            assert torch.equal(batch.crops, expected.crops)


@pytest.mark.parametrize("num_decoders", [0, 2])
def test_streamed_crops_are_those_of_memory(part: str, num_decoders: int) -> None:
    (streamed,) = readers(part, None, resident=False, world=1, num_decoders=num_decoders)
    (resident,) = readers(part, None, world=1)
    crops = {row: crop for batch in resident.epoch(0) for row, crop in zip(batch.rows, batch.crops, strict=True)}
    state = torch.get_rng_state()
    num_rows = 0
    for epoch in (0, 1):
        next(streamed.epoch(epoch))  # left early: what was decoded ahead does not come again
        for batch in streamed.epoch(epoch):
            for row, crop in zip(batch.rows, batch.crops, strict=True):
                assert torch.equal(crop, crops[row])
                num_rows += 1
    assert num_rows == 2 * len(crops)
    assert torch.equal(torch.get_rng_state(), state), "a resumed run would draw other numbers"


def test_a_crop_that_cannot_be_decoded_ends_the_epoch_with_its_error(tmp_path: Path) -> None:
    rows = [{"crop": encode_crop(picture(number)), "score": 70} for number in range(20)]
    rows[13]["crop"] = b"no picture"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "part")
    (reader,) = readers(str(tmp_path / "part"), None, resident=False, world=1, num_decoders=1)
    with pytest.raises(UnidentifiedImageError):
        list(reader.epoch(0))


def test_decoders_end_with_the_reader(part: str) -> None:
    before = set(multiprocessing.active_children())
    (reader,) = readers(part, None, resident=False, world=1, num_decoders=2)
    next(reader.epoch(0))
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 2
    del reader
    gc.collect()
    for process in started:
        process.join(10)
        assert not process.is_alive()


def test_a_reader_that_is_left_early_lets_go(part: str) -> None:
    (reader,) = readers(part, 100, resident=False, world=1)
    before = threading.active_count()
    for _ in reader.epoch(0):
        break
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_missing_row_group_is_an_error_where_it_is_read(part: str) -> None:
    (reader,) = readers(part, None, resident=False, world=1)
    reader._files.encoded = lambda groups: (_ for _ in ()).throw(OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        list(reader.epoch(0))


@pytest.mark.parametrize("window_rows", [5, 20, 45])
def test_an_epoch_reads_every_row_group_once(window_rows: int) -> None:
    order = EpochOrder([7] * 9, batch_size=10, seed=0, window_rows=window_rows)
    for first_step in (0, 3):
        windows = order.windows(1, None, first_step)
        groups = [group for window in windows for group in window.groups]
        assert len(groups) == len(set(groups))
        assert first_step or sorted(groups) == list(range(9))
        held: set[int] = set()
        for window in windows:
            held |= {row for group in window.groups for row in range(7 * group, 7 * group + 7)}
            assert all(set(batch.tolist()) <= held for batch in window.batches)
            held = set(window.later.tolist())
        assert not held
