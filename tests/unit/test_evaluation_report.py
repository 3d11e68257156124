"""What a reader of an evaluation is told besides figures: suspicions, parts of the rows, and who was seen before."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.settings import TrackingSettings
from infra.storage import Storage
from infra.tracking import experiment_id, tracking_client
from models.registry import ResolvedScorer
from models.tasks.base import get_task
from ray_jobs.crops.dataset import PEOPLE, digest_of
from ray_jobs.crops.jpeg import encode_crop
from ray_jobs.evaluating import num_known, slice_columns
from ray_jobs.reports.cases import find_cases
from tests.unit.scorers import small_scorer


def rows(num: int) -> pa.Table:
    facts = {
        "video_id": [f"photo/photo{1 + number % 2}/{number}" for number in range(num)],
        "creator_id": [f"person-{number}" for number in range(num)],
        "source": [f"{'a' if number % 3 else 'b'}.csv:{number}" for number in range(num)],
        "yaw_deg": [0.0] * num,
        "sharpness": [float(number) for number in range(num)],
        "size_px": [100.0 + number for number in range(num)],
        "confidence": [0.99] * num,
        "remarks": [[]] * num,
    }
    return pa.table(facts)


def test_an_answer_that_is_right_is_no_suspicion(tmp_path: Path) -> None:
    task = get_task("fs2k")
    targets = np.zeros((6, len(task.heads)), dtype=np.int64)
    targets[5, 0] = 1  # answered otherwise, and surely
    answer = {
        head.name: np.tile(np.eye(len(head.classes), dtype=np.float32)[0] * 0.9 + 0.05, (6, 1)) for head in task.heads
    }
    table = rows(6)
    crop = encode_crop(np.zeros((64, 64, 3), dtype=np.uint8))
    pq.write_table(table.append_column("crop", pa.array([crop] * 6)), tmp_path / "part.parquet")
    scorer = small_scorer(tmp_path / "scorer", "fs2k")
    groups = find_cases(task, scorer, answer, targets, table, [str(tmp_path / "part.parquet")], Storage())
    suspected = groups["sure of another answer: perhaps a wrong label"]
    assert [case.video_id for case in suspected] == ["photo/photo2/5"]
    assert [line[0] for line in suspected[0].lines] == [task.heads[0].name]
    assert len(groups["no suspicion"]) >= 3


def test_columns_that_are_another_one_in_every_row_are_told_apart_by_their_place() -> None:
    found = slice_columns(rows(8), get_task("fs2k"), ["source", "video_id", "confidence", "yaw_deg"])
    assert found["source"] == ["b.csv", "a.csv", "a.csv", "b.csv", "a.csv", "a.csv", "b.csv", "a.csv"]
    assert found["video_id"] == ["photo/photo1", "photo/photo2"] * 4
    assert set(found["confidence"]) == {"quarter 1 of 4"}
    assert found["sharpness"] == [f"quarter {1 + number // 2} of 4" for number in range(8)]
    assert found["yaw_deg"] == ["under 15"] * 8  # its bands stand already


def test_people_of_a_training_are_known_again_in_another_dataset(tmp_path: Path) -> None:
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    client = tracking_client(settings)
    run_id = client.create_run(experiment_id(client, settings)).info.run_id
    small = small_scorer(tmp_path / "scorer", "fs2k")
    scorer = ResolvedScorer("1", "models:/facereel-fs2k/1", run_id, tmp_path / "scorer", small)
    assert num_known(client, scorer, rows(4)) == 0  # a run that does not say
    client.log_text(run_id, "\n".join(map(digest_of, ("person-1", "person-3", "person-9"))), f"dataset/{PEOPLE}")
    assert num_known(client, scorer, rows(4)) == 2
