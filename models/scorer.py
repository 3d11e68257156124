"""The scorer on disk: weights, manifest, card and digest in one directory; saved whole or not at all, loaded checked.

``weights.safetensors``  every tensor of the network's state dict, by name
``scorer.json``          the manifest: everything else that is needed from a video's frames to a prediction
``MODEL_CARD.md``        for people; no part of the digest
``DIGEST``               what ``sha256sum weights.safetensors scorer.json`` prints; ``sha256sum -c DIGEST`` checks it

The scorer's digest is the SHA-256 (hex) of the text in ``DIGEST``. Loading executes nothing from the directory.
"""

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from infra.errors import UserError
from models.calibration import Calibration
from models.faces.policy import FacePolicy
from models.model_card import model_card
from models.network import Network, empty_network
from models.tasks.base import Head, Task, get_task
from models.transforms import InputConfig
from models.video.sampling import FramePolicy

WEIGHTS_FILE = "weights.safetensors"
MANIFEST_FILE = "scorer.json"
CARD_FILE = "MODEL_CARD.md"
DIGEST_FILE = "DIGEST"


class ScorerError(UserError):
    """A scorer directory that cannot be used; the message names the file and what is wrong with it."""


class TrainingSummary(BaseModel):
    """How the weights came about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_epochs: int = Field(ge=0, description="Epochs that were run.")
    best_epoch: int = Field(ge=0, description="Epoch whose weights these are, from 0.")
    num_train_rows: int = Field(ge=0, description="Crops that were trained on.")
    num_val_rows: int = Field(ge=0, description="Crops that the metrics were measured on.")
    recipe: dict[str, str | bool | int | FiniteFloat | None] = Field(
        default_factory=dict, description="The options of the training run, by name."
    )
    curves: dict[str, tuple[FiniteFloat, ...]] = Field(
        default_factory=dict, description="Training loss and the validation metric that chose the epoch, by epoch."
    )


class ScorerManifest(BaseModel):
    """``scorer.json``: everything but the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = Field(default=1, description="Version of this layout.")
    task: str = Field(description="Name of the task.")
    heads: tuple[Head, ...] = Field(description="The task's heads with their classes, in the order of the logits.")
    backbone: str = Field(description="torchvision's name of the backbone.")
    ordinal: bool = Field(
        default=False, description="The last layer answers class by class whether the truth lies above (CORN)."
    )
    dtype: Literal["float32"] = Field(default="float32", description="Type of all floating-point weights.")
    input: InputConfig = Field(description="How a crop becomes the network's input.")
    frame_policy: FramePolicy = Field(description="Which frames the crops were taken from.")
    face_policy: FacePolicy = Field(description="Which faces, and how they were cropped.")
    calibration: Calibration = Field(default=Calibration(), description="Temperatures and intervals.")
    metrics: dict[str, FiniteFloat] = Field(description="The task's metrics on validation rows.")
    baseline_metrics: dict[str, FiniteFloat] = Field(
        description="The same metrics of the trivial answer: class frequencies of the training rows."
    )
    dataset_fingerprint: str = Field(description="Fingerprint of the crops dataset.")
    code_version: str = Field(description="Version of the code that trained it.")
    training: TrainingSummary = Field(description="How the weights came about.")

    @model_validator(mode="after")
    def _check_calibration(self) -> Self:
        unknown = self.calibration.temperatures.keys() - {head.name for head in self.heads}
        if unknown:
            raise ValueError(f"calibration: temperature of {', '.join(map(repr, sorted(unknown)))}, which is no head")
        return self


@dataclass(frozen=True, slots=True)
class Scorer:
    """A loaded scorer: its manifest, its network in evaluation mode on the CPU, and its digest."""

    manifest: ScorerManifest
    network: Network
    digest: str

    @property
    def task(self) -> Task:
        """The task that the scorer answers."""
        return get_task(self.manifest.task)


def save_scorer(directory: Path, network: Network, manifest: ScorerManifest) -> str:
    """Write a scorer directory, whole or not at all, and return its digest.

    Args:
        directory: Must not exist; its parents are made.
        network: As built by ``build_network``: not compiled, not wrapped for several workers.
        manifest: Must be about this network.

    Raises:
        UserError: The directory exists, a weight is not finite, or the manifest's heads are not the task's.
    """
    assert network.backbone_name == manifest.backbone, (network.backbone_name, manifest.backbone)
    assert (network.heads, network.ordinal) == (manifest.heads, manifest.ordinal), "built for other heads"
    _check_heads(manifest, directory / MANIFEST_FILE)
    if directory.exists():
        raise UserError(f"{directory} exists: a scorer is never overwritten, choose another directory")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    _check_tensors(state, manifest, directory / WEIGHTS_FILE)
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"weight {name!r} is not finite: the training diverged; lower the learning rate")

    contents = {
        WEIGHTS_FILE: save_tensors(state),
        MANIFEST_FILE: (json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n").encode(),
    }
    sums = _sums(contents)
    digest = hashlib.sha256(sums).hexdigest()
    contents[DIGEST_FILE] = sums
    contents[CARD_FILE] = model_card(manifest, digest).encode()
    _write_directory(directory, contents)
    return digest


def load_scorer(directory: Path, expected_digest: str | None = None) -> Scorer:
    """Read a scorer directory, refusing whatever is not exactly as it was saved.

    Args:
        directory: As written by ``save_scorer``.
        expected_digest: The digest recorded elsewhere (registry, score table), if known.

    Raises:
        ScorerError: A file is absent or changed, or says what this code does not understand.
    """
    contents = {name: _read(directory / name) for name in (WEIGHTS_FILE, MANIFEST_FILE, DIGEST_FILE)}
    sums = contents.pop(DIGEST_FILE)
    _check_sums(directory, contents, sums)
    digest = hashlib.sha256(sums).hexdigest()
    if expected_digest not in (None, digest):
        raise ScorerError(f"{directory} is another scorer: its digest is {digest}, expected was {expected_digest}")
    manifest = _parse_manifest(contents[MANIFEST_FILE], directory / MANIFEST_FILE)
    _check_heads(manifest, directory / MANIFEST_FILE)
    try:
        state = load_tensors(contents[WEIGHTS_FILE])
    except SafetensorError as error:
        raise ScorerError(f"{directory / WEIGHTS_FILE} is not a readable .safetensors file ({error})") from error
    _check_tensors(state, manifest, directory / WEIGHTS_FILE)
    network = empty_network(manifest.backbone, manifest.heads, ordinal=manifest.ordinal)
    network.load_state_dict(state, assign=True)
    assert not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    return Scorer(manifest=manifest, network=network.eval().requires_grad_(False), digest=digest)


def read_digest(directory: Path) -> str:
    """The digest of a scorer directory by its ``DIGEST`` file alone, without reading weights.

    Raises:
        ScorerError: There is no such file.
    """
    return hashlib.sha256(_read(directory / DIGEST_FILE)).hexdigest()


def _sums(contents: dict[str, bytes]) -> bytes:
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in contents.items())
    return "".join(lines).encode()


def _check_sums(directory: Path, contents: dict[str, bytes], sums: bytes) -> None:
    if sums == _sums(contents):
        return
    for name, data in contents.items():
        if _sums({name: data}) not in sums:
            raise ScorerError(
                f"{directory / name} is not the file that was saved: its SHA-256 is not the one in {DIGEST_FILE}"
            )
    raise ScorerError(f"{directory / DIGEST_FILE} is not what sha256sum {WEIGHTS_FILE} {MANIFEST_FILE} prints")


def _parse_manifest(data: bytes, path: Path) -> ScorerManifest:
    try:
        return ScorerManifest.model_validate_json(data)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors()[:3]
        )
        raise ScorerError(f"{path} cannot be understood by this version: {wrong}") from error


def _check_heads(manifest: ScorerManifest, path: Path) -> None:
    try:
        task = get_task(manifest.task)
    except UserError as error:
        raise ScorerError(f"{path}: {error}") from error
    if manifest.heads != task.heads:
        theirs, ours = ([(head.name, *head.classes) for head in heads] for heads in (manifest.heads, task.heads))
        differing = [head[0] for head in theirs if head not in ours] or [head[0] for head in ours if head not in theirs]
        raise ScorerError(
            f"{path}: its heads are not those of task {task.name!r} "
            f"({'differing: ' + ', '.join(map(str, differing)) if differing else 'other order'}); train it anew"
        )


def _check_tensors(state: dict[str, torch.Tensor], manifest: ScorerManifest, path: Path) -> None:
    try:
        expected = empty_network(manifest.backbone, manifest.heads, ordinal=manifest.ordinal).state_dict()
    except UserError as error:
        raise ScorerError(f"{path.with_name(MANIFEST_FILE)}: {error}") from error
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is not a tensor of {manifest.backbone}" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        for what in ("shape", "dtype"):
            found, wanted = getattr(state[name], what), getattr(expected[name], what)
            if found != wanted:
                problems.append(f"{name} has {what} {_plain(found)} instead of {_plain(wanted)}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ScorerError(f"{path} does not fit the manifest: {'; '.join(sorted(problems)[:3])}{more}")


def _plain(value: object) -> str:
    return str(list(value)) if isinstance(value, torch.Size) else str(value).removeprefix("torch.")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ScorerError(f"{path.parent} is not a scorer directory: there is no file {path.name}") from error


def _write_directory(directory: Path, contents: dict[str, bytes]) -> None:
    """Beside the target first, then renamed: readers see all files or none."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")
    unfinished.mkdir()
    try:
        for name, data in contents.items():
            with (unfinished / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        unfinished.rename(directory)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
