"""Which rows of a label table train: rules of the policy file, with defaults that keep what can be trusted."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ray_jobs.labels.cells import REMARKS

# Written out in the rules, or minors are removed: no flag and no typing error can switch the removal off.
KEEP_MINORS = "keep minors in this training set"


class LabelRules(BaseModel):
    """What removes a row, and what becomes of several rows about one video."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: dict[str, str] = Field(
        default_factory=dict, description="Our column name to the table's header, where it is not a usual one."
    )
    remove_remarks: tuple[str, ...] = Field(
        ("deleted", "face_cut_off", "no_face_shown", "several_people"),
        description="Remarks that remove a row; the others stay on it as tags.",
    )
    unknown_remarks: Literal["tag", "remove"] = Field(
        "tag", description="What becomes of rows whose remark is none of the known ones."
    )
    conflicts: Literal["drop", "mean", "latest"] = Field(
        "drop",
        description="The same video with different labels: drop it, take the mean of numbers, or the latest row "
        "(by the column labelled_at, else by the order of the table).",
    )
    minors: str = Field(
        "remove",
        description=f"What becomes of children and of people under 18: remove, or, word by word, {KEEP_MINORS!r}.",
    )

    @field_validator("remove_remarks")
    @classmethod
    def _known_remarks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(names) - set(REMARKS)):
            raise ValueError(f"no such remark: {unknown[0]!r}; known are {', '.join(REMARKS)}")
        return tuple(sorted(set(names)))

    @field_validator("minors")
    @classmethod
    def _meant_minors(cls, value: str) -> str:
        if value not in ("remove", KEEP_MINORS):
            raise ValueError(f"{value!r} is neither 'remove' nor, word by word, {KEEP_MINORS!r}")
        return value

    @property
    def removes_minors(self) -> bool:
        """Whether children and people under 18 are removed."""
        return self.minors != KEEP_MINORS
