"""A check's finding: ok, warn or fail, what was found, and what mends it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from infra.tracking import without_credentials

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    name: str
    level: Level
    message: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert (self.level == "ok") == (not self.fix), self  # what is not well says how to mend it


def ok(name: str, message: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", message)


def warn(name: str, message: str, fix: str) -> Finding:
    """It works, with a drawback."""
    return Finding(name, "warn", message, fix)


def fail(name: str, message: str, fix: str) -> Finding:
    """Jobs would fail of it."""
    return Finding(name, "fail", message, fix)


def guarded(name: str, fix: str, check: Callable[[], Finding | Iterable[Finding]]) -> list[Finding]:
    """What a check finds; one that breaks off has found a failure, in its error's words."""
    try:
        found = check()
        return [found] if isinstance(found, Finding) else list(found)
    except Exception as error:  # whatever is broken out there, the other checks are wanted too
        words = without_credentials(" ".join(str(error).split()))[:400]
        return [fail(name, words or type(error).__name__, fix)]


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if any failed, else 0; 2 stays for mistakes at the command line."""
    return int(any(finding.level == "fail" for finding in findings))
