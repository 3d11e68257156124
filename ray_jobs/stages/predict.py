"""Predict from crops with every due scorer. Runs as a pool of actors, on GPUs where there are any."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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

# Crops that go through a network at once. On one thread more of them are no faster, and take memory (benchmarks.pools).
CPU_BATCH, GPU_BATCH = 32, 256
SCORER_FILES = (WEIGHTS_FILE, MANIFEST_FILE, DIGEST_FILE)


@dataclass(frozen=True, slots=True)
class CarriedScorer:
    """A scorer's files in memory, for a run that writes nothing: they travel to the actors through Ray."""

    task: str
    digest: str
    files: dict[str, bytes] = field(repr=False)
    name: str  # of its column and of what is due: the task, or what tells two scorers of one task apart

    @classmethod
    def carry(cls, directory: Path, task: str, digest: str, *, name: str | None = None) -> "CarriedScorer":
        """Read a scorer directory."""
        return cls(task, digest, {file: (directory / file).read_bytes() for file in SCORER_FILES}, name or task)

    def load(self, device: str, storage: Storage) -> Predictor:
        """A predictor from the files; its digest is checked again."""
        return _load(self.files, self.digest, device)


@dataclass(frozen=True, slots=True)
class ShippedScorer:
    """A scorer's files beside the tables, by digest: actors on any node load what the driver checked."""

    task: str
    digest: str
    uri: str

    @property
    def name(self) -> str:
        """Of its column and of what is due: the task."""
        return self.task

    @classmethod
    def ship(cls, directory: Path, task: str, digest: str, tables: str, storage: Storage) -> "ShippedScorer":
        """Copy a scorer directory to ``<tables>/_scorers/<digest>/``, once for all runs.

        What made a row can so be looked up as long as the row exists, whatever becomes of the registry.
        """
        uri = scorer_uri(tables, digest)
        for path in sorted(path for path in directory.iterdir() if path.is_file()):
            if not storage.exists(join(uri, path.name)):
                storage.put(join(uri, path.name), path.read_bytes())
        return cls(task, digest, uri)

    def load(self, device: str, storage: Storage) -> Predictor:
        """A predictor from the copy; its digest is checked again."""
        return _load({name: storage.read_all(join(self.uri, name)) for name in SCORER_FILES}, self.digest, device)


def _load(files: dict[str, bytes], digest: str, device: str) -> Predictor:
    with TemporaryDirectory(prefix="facereel-") as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        scorer = load_scorer(Path(folder), expected_digest=digest)
        return Predictor(scorer, device=device, batch_size=CPU_BATCH if device == "cpu" else GPU_BATCH)


def face_schema(task: str) -> pa.Schema:
    """What is kept of a task's prediction for each face: its output columns that are single values."""
    return pa.schema([column for column in get_task(task).output_schema() if not pa.types.is_list(column.type)])


def faces_column(task: str) -> str:
    """The column of a batch that holds a task's predictions for each face."""
    return f"{task}_faces"


class PredictStage:
    """The Ray Data actor: replaces ``crops`` by two columns a scorer, null where a video is not due or has no face.

    ``NAME`` (the task) is a struct of the task's output columns, ``NAME_faces`` a list of structs, one a face
    (`face_schema`), and ``predict_s`` the seconds that a row took. The column ``due_tasks`` (list of such names) says
    what a row is due for.
    """

    def __init__(
        self, scorers: Sequence[ShippedScorer | CarriedScorer], storage: Storage, device: str = "auto"
    ) -> None:
        self._predictors = {scorer.name: scorer.load(device, storage) for scorer in scorers}
        for predictor in self._predictors.values():
            predictor.warm_up()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows with crops to rows with predictions, in the same order."""
        due = batch["due_tasks"].to_pylist()
        crops = batch["crops"].to_pylist()
        batch = batch.drop_columns(["crops"])
        start = time.perf_counter()
        for name, predictor in self._predictors.items():
            task = predictor.scorer.manifest.task
            rows = [row for row in range(len(due)) if name in due[row] and crops[row]]
            size = predictor.scorer.manifest.face_policy.crop_size
            predictions = predictor.predict([unpack_crops(crops[row], size) for row in rows])
            values: list[dict[str, Any] | None] = [None] * len(due)
            faces: list[list[dict[str, Any]] | None] = [None] * len(due)
            columns = face_schema(task)
            for row, prediction in zip(rows, predictions, strict=True):
                values[row] = prediction.columns
                by_face = zip(*(prediction.faces[column] for column in columns.names), strict=True)
                faces[row] = [dict(zip(columns.names, one, strict=True)) for one in by_face]
            batch = batch.append_column(name, pa.array(values, type=pa.struct(get_task(task).output_schema())))
            batch = batch.append_column(faces_column(name), pa.array(faces, type=pa.list_(pa.struct(columns))))
        batch = batch.append_column("predict_s", _shared_out(time.perf_counter() - start, crops))
        # Extraction gave one row at a time. Left in as many pieces, each row would cost the driver three times as much.
        return batch.combine_chunks()


def _shared_out(seconds: float, crops: list[bytes | None]) -> pa.Array:
    """A batch's seconds, shared out among its rows by the crops of each."""
    sizes = [len(data or b"") for data in crops]
    return pa.array([seconds * size / max(1, sum(sizes)) for size in sizes], type=pa.float32())
