"""The kinds of error that users meet: a mistake of theirs, a failure with a typed reason, a run that ended early."""

from typing import ClassVar


class UserError(ValueError):
    """A mistake in what the user gave: the message names the value, the rule and the way out.

    Commands print it as one line and exit with code 2.
    """


class TypedError(Exception):
    """A failure that is counted by its reason instead of ending the run.

    ``reason`` is what stands in the quarantine table; ``retryable`` says whether the same bytes may succeed later.
    """

    reason: ClassVar[str]
    retryable: ClassVar[bool] = False


class RunStopped(Exception):
    """A run that ended before its work was done, by a rule or a signal: nothing is broken, the rest is still due.

    Whoever raises it has printed the message: what comes after may not have the time. Commands exit with
    ``exit_code``: 3 for a rule, 128 + n for signal n.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
