"""From crops to predictions: the one path that bulk scoring, evaluation and online answers share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from infra.errors import UserError
from models.network import answer
from models.scorer import Scorer
from models.transforms import as_tensor, to_input

Crops = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class VideoPrediction:
    """What one scorer says of one video.

    Attributes:
        columns: Output column -> value for the whole video, as plain Python values: the task's columns of the mean
            of its faces' probabilities. None for a video without faces.
        faces: Output column -> one value per face, in the order of the crops.
    """

    columns: dict[str, Any] | None
    faces: dict[str, list[Any]]


class Predictor:
    """A scorer on a device. Takes over the scorer's network.

    The same crop gives the same numbers up to float rounding (below 1e-5 in float32 on one device), whatever else
    stands in its batch.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        device: str = "auto",
        batch_size: int = 256,
        precision: Literal["float32", "bfloat16"] = "float32",
    ):
        """Put the scorer on ``device``.

        Args:
            scorer: The scorer.
            device: ``auto`` (a GPU if there is one), or torch's name of a device.
            batch_size: Largest number of crops that go through the network at once.
            precision: ``bfloat16`` runs the network under autocast: faster, and coarser.

        Raises:
            UserError: An unusable device, precision or batch size.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: give 1 or more")
        if precision not in ("float32", "bfloat16"):
            raise UserError(f"precision {precision!r} is neither 'float32' nor 'bfloat16'")
        self.scorer = scorer
        self.task = scorer.task
        self.device = _device(device)
        self._batch_size = batch_size
        self._autocast = precision == "bfloat16"
        self._network = scorer.network.to(self.device).to(memory_format=torch.channels_last)

    def probabilities(self, crops: Crops) -> dict[str, npt.NDArray[np.float32]]:
        """Calibrated probabilities of crops uint8[n, S, S, 3]: head name -> float32[n, C]; n may be 0.

        Raises:
            UserError: The crops are not of the scorer's crop size or not uint8.
        """
        self._check(crops)
        if not len(crops):
            return {head.name: np.empty((0, len(head.classes)), dtype=np.float32) for head in self.task.heads}
        starts = range(0, len(crops), self._batch_size)
        batches = [self._logits(crops[start : start + self._batch_size]) for start in starts]
        # Fetched once at the end, so that the device never waits for the host between batches.
        logits = {head.name: torch.cat([batch[head.name] for batch in batches]) for head in self.task.heads}
        return self.scorer.manifest.calibration.probabilities(logits)

    def predict(self, crops_per_video: Sequence[Crops]) -> list[VideoPrediction]:
        """One prediction per video, in order, of each video's crops uint8[n_i, S, S, 3]; n_i may be 0.

        The faces of all videos go through the network together, in full batches.

        Raises:
            UserError: As ``probabilities``.
        """
        for crops in crops_per_video:
            self._check(crops)
        ends = np.cumsum([len(crops) for crops in crops_per_video])
        per_face = self.probabilities(np.concatenate(crops_per_video) if len(ends) and ends[-1] else self._no_crops())
        with_faces = [index for index, crops in enumerate(crops_per_video) if len(crops)]
        starts = [int(ends[index]) - len(crops_per_video[index]) for index in with_faces]
        per_video = {name: _segment_means(p, starts) for name, p in per_face.items()}

        face_columns, video_columns = self._columns(per_face), self._columns(per_video)
        videos = {
            index: {name: values[place] for name, values in video_columns.items()}
            for place, index in enumerate(with_faces)
        }
        return [
            VideoPrediction(
                columns=videos.get(index),
                faces={name: values[end - len(crops) : end] for name, values in face_columns.items()},
            )
            for index, (crops, end) in enumerate(zip(crops_per_video, ends.tolist(), strict=True))
        ]

    def warm_up(self) -> None:
        """Predict a black crop, so that the first real ones do not wait for the device's libraries."""
        size = self.scorer.manifest.face_policy.crop_size
        self.predict([np.zeros((1, size, size, 3), dtype=np.uint8)])

    def _check(self, crops: Crops) -> None:
        size = self.scorer.manifest.face_policy.crop_size
        if crops.dtype != np.uint8 or crops.shape[1:] != (size, size, 3):
            raise UserError(
                f"crops are {crops.dtype}{list(crops.shape)}, this scorer takes uint8[n, {size}, {size}, 3]: "
                "make them with its own face policy"
            )

    def _no_crops(self) -> Crops:
        size = self.scorer.manifest.face_policy.crop_size
        return np.empty((0, size, size, 3), dtype=np.uint8)

    @torch.inference_mode()
    def _logits(self, crops: Crops) -> dict[str, torch.Tensor]:
        batch = as_tensor(crops)
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        images = to_input(batch, self.scorer.manifest.input)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            return answer(self._network, images, mirror=self.scorer.manifest.input.mirror)

    def _columns(self, probabilities: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, list[Any]]:
        columns = self.task.columns(probabilities, self.scorer.manifest.calibration.half_widths)
        return {name: _plain(values) for name, values in columns.items()}


def _segment_means(probabilities: npt.NDArray[np.float32], starts: list[int]) -> npt.NDArray[np.float32]:
    """Means float32[m, C] over the rows from each start to the next; every segment has a row or more."""
    if not starts:
        return probabilities[:0]
    lengths = np.diff([*starts, len(probabilities)])
    sums = np.add.reduceat(probabilities.astype(np.float64), starts, axis=0)
    return np.asarray(sums / lengths[:, None], dtype=np.float32)


def _plain(values: npt.NDArray[Any] | list[Any]) -> list[Any]:
    if isinstance(values, np.ndarray):
        listed: list[Any] = values.tolist()
        return listed
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try 'auto'") from error
    return device
