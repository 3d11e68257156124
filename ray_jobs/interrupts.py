"""Ctrl-C and SIGTERM as a question that a loop can ask, so that a commit is finished and not cut."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Remembers the first SIGINT or SIGTERM while it is entered; a second one ends the process at once.

    Outside of the main thread, where Python lets no one handle signals, it never sees any.

    Args:
        then: what comes of the first signal, said when it comes.
    """

    def __init__(self, then: str = "stopping with the next commit") -> None:
        self.received: signal.Signals | None = None
        self._then = then
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
        os.write(2, f"{self.received.name}: {self._then}; once more ends at once\n".encode())


class Stoppable:
    """A call that handles SIGINT in its own way, as Ray Train's does: SIGTERM goes the same way, and both end alike.

    Ray Train ends its run gently and then the process, with exit code 0, and leaves its handler behind. Here either
    signal becomes a KeyboardInterrupt with ``exit_code``, and afterwards the handlers are those from before.
    """

    def __init__(self) -> None:
        self.exit_code = 128 + signal.SIGINT
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in SIGNALS}
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, SystemExit):
            raise KeyboardInterrupt from error

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        signal.raise_signal(signal.SIGINT)
