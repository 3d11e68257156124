"""The removal report: every row that does not train, with file, row, column and reason, and what each rule cost."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a row is left out: one of possibly several reasons."""

    row: int  # as a spreadsheet numbers them: the header is row 1
    column: str
    reason: str
    value: str


class Cost(BaseModel):
    """What one reason took away."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str = Field(description="Why the rows are left out.")
    num_rows: int = Field(description="Rows that this reason objects to.")
    num_only: int = Field(description="Rows that only this reason objects to: what would stay without it.")
    examples: tuple[str, ...] = Field(description="A few of them: row, column and value.")


@dataclass(slots=True)
class RemovalReport:
    """All objections to the rows of one table."""

    file: str
    num_rows: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)  # our column name -> the table's own header
    objections: list[Objection] = field(default_factory=list)

    def add(self, row: int, column: str, reason: str, value: object = "") -> Objection:
        """Object to a row, for what stands in one of our columns."""
        self.objections.append(Objection(row, self.headers.get(column, column), reason, str(value)))
        return self.objections[-1]

    @property
    def removed_rows(self) -> frozenset[int]:
        """The numbers of the rows with any objection."""
        return frozenset(objection.row for objection in self.objections)

    def costs(self) -> list[Cost]:
        """By reason, the most frequent first."""
        reasons_of: dict[int, set[str]] = defaultdict(set)
        examples: dict[str, list[str]] = defaultdict(list)
        for item in self.objections:
            if item.reason not in reasons_of[item.row] and len(examples[item.reason]) < NUM_EXAMPLES:
                examples[item.reason].append(f"row {item.row}, {item.column}: {item.value!r}")
            reasons_of[item.row].add(item.reason)
        rows = Counter(reason for reasons in reasons_of.values() for reason in reasons)
        only = Counter(next(iter(reasons)) for reasons in reasons_of.values() if len(reasons) == 1)
        return [
            Cost(reason=reason, num_rows=number, num_only=only[reason], examples=tuple(examples[reason]))
            for reason, number in sorted(rows.items(), key=lambda item: (-item[1], item[0]))
        ]
