"""The YAML file of policies: which videos are fetched, labels, frames and faces used, and the limits of decoding."""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import UserError
from models.faces.policy import FacePolicy
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
from ray_jobs.crops.dataset import DatasetRules
from ray_jobs.ingesting.rules import IngestRules
from ray_jobs.labels.rules import LabelRules


class Policies(BaseModel):
    """The file's sections; each may be left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frame: FramePolicy = Field(FramePolicy(), description="Which frames are looked at.")
    face: FacePolicy = Field(FacePolicy(), description="Which faces count and how they are cropped.")
    limits: DecodeLimits = Field(DecodeLimits(), description="Beyond these a video is refused.")
    dataset: DatasetRules = Field(DatasetRules(), description="Which crops a dataset keeps.")
    labels: LabelRules = Field(LabelRules(), description="Which rows of a label table train.")
    ingest: IngestRules = Field(IngestRules(), description="How videos are fetched from the web.")


def read_policies(path: Path | None, *, sections: tuple[str, ...] = tuple(Policies.model_fields)) -> Policies:
    """The policies of a file; the defaults where there is none.

    Raises:
        UserError: The file cannot be read, or has an unknown key, a value against its rule, or a section that has no
            meaning here.
    """
    if path is None:
        return Policies()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: the policy file cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or set(values) - set(sections):
        raise UserError(f"{path}: a policy file has the sections {', '.join(sections)} here, and no others")
    try:
        return Policies.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
