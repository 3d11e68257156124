"""The two kinds of error that users meet: a mistake of theirs, and a failure with a typed reason."""

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
