"""The record of a decision about a promotion: what was measured, what was decided, by whom and why."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.evaluation import Evaluation, Figure
from ray_jobs.promoting.gates import Gates, Verdict
from ray_jobs.promoting.hardware import Cost
from ray_jobs.promoting.shadow import Shadow

Outcome = Literal["passed", "refused", "forced"]
PAGE, RECORD = "decision.html", "decision.json"


class Candidate(BaseModel):
    """A scorer of the decision."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = Field(description="Number of the registered version.")
    digest: str = Field(description="Of its files.")
    run_id: str | None = Field(description="MLflow run that it came from.")
    evaluation: Evaluation | None = Field(description="On the evaluation set; null where there is none.")
    cost: Cost | None = Field(description="On the machine that decided; null where it was not asked.")


class EvaluationSet(BaseModel):
    """What quality was measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(description="Crops dataset.")
    split: str = Field(description="Its split.")
    fingerprint: str = Field(description="Of its content: the same fingerprint is the same set.")


class Decision(BaseModel):
    """One decision; the registry's log of changes says whether the champion was moved by it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(description="The task whose champion is in question.")
    outcome: Outcome = Field(description="passed: every gate; forced: against a gate; refused.")
    at: datetime = Field(description="When, UTC.")
    by: str = Field(description="User and host.")
    reason: str = Field(description="In somebody's words; forced decisions have one.")
    code_version: str = Field(description="Version of the code that decided.")
    challenger: Candidate = Field(description="The scorer that may become champion.")
    champion: Candidate | None = Field(description="The one in use; null where there is none yet.")
    gates: Gates = Field(description="The limits.")
    verdicts: tuple[Verdict, ...] = Field(description="Each gate's answer.")
    evaluation_set: EvaluationSet | None = Field(description="What quality was measured on.")
    differences: dict[str, Figure] = Field(description="Metric -> challenger's less champion's, paired.")
    shadow: Shadow | None = Field(description="Both on a sample of the catalog.")
    notes: tuple[str, ...] = Field(description="What a reader has to know.")

    @property
    def folder(self) -> str:
        """Where the record lies among the artifacts of the challenger's run."""
        return f"decisions/{self.at:%Y%m%dT%H%M%S}-{self.outcome}"
