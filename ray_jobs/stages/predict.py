"""Predict from crops with every due scorer. Runs as a pool of actors, on GPUs where there are any."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from infra.storage import Storage, join
from models.predictor import Predictor
from models.scorer import DIGEST_FILE, MANIFEST_FILE, WEIGHTS_FILE, load_scorer
from models.tasks.base import get_task
from ray_jobs.score_table import scorer_uri
from ray_jobs.stages.extract import unpack_crops

SCORER_FILES = (WEIGHTS_FILE, MANIFEST_FILE, DIGEST_FILE)


@dataclass(frozen=True, slots=True)
class ShippedScorer:
    """A scorer's files beside the tables, by digest: actors on any node load what the driver checked."""

    task: str
    digest: str
    uri: str

    @classmethod
    def ship(cls, directory: Path, task: str, digest: str, tables: str, storage: Storage) -> "ShippedScorer":
        """Copy a scorer directory to ``<tables>/_scorers/<digest>/``, once for all runs.

        What made a row can so be looked up as long as the row exists, whatever becomes of the registry.
        """
        uri = scorer_uri(tables, digest)
        for path in sorted(directory.iterdir()):
            if not storage.exists(join(uri, path.name)):
                storage.put(join(uri, path.name), path.read_bytes())
        return cls(task, digest, uri)

    def load(self, device: str, storage: Storage) -> Predictor:
        """A predictor from the copy; its digest is checked again."""
        with TemporaryDirectory(prefix="facereel-") as folder:
            for name in SCORER_FILES:
                (Path(folder) / name).write_bytes(storage.read_all(join(self.uri, name)))
            return Predictor(load_scorer(Path(folder), expected_digest=self.digest), device=device)


class PredictStage:
    """The Ray Data actor: replaces ``crops`` by one struct column a task, null where a video is not due or has no face.

    The column ``due_tasks`` (list of task names) says which tasks a row is due for.
    """

    def __init__(self, scorers: list[ShippedScorer], storage: Storage, device: str = "auto") -> None:
        self._predictors = {scorer.task: scorer.load(device, storage) for scorer in scorers}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows with crops to rows with predictions, in the same order."""
        due = batch["due_tasks"].to_pylist()
        crops = batch["crops"].to_pylist()
        batch = batch.drop_columns(["crops"])
        for task, predictor in self._predictors.items():
            rows = [row for row in range(len(due)) if task in due[row] and crops[row]]
            size = predictor.scorer.manifest.face_policy.crop_size
            predictions = predictor.predict([unpack_crops(crops[row], size) for row in rows])
            values: list[dict[str, Any] | None] = [None] * len(due)
            for row, prediction in zip(rows, predictions, strict=True):
                values[row] = prediction.columns
            batch = batch.append_column(task, pa.array(values, type=pa.struct(get_task(task).output_schema())))
        return batch
