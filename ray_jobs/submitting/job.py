"""One job through Ray's job API: handed in, followed by its log, stopped, and what its end means as an exit code."""

import asyncio
import contextlib
import signal
import sys
from typing import Any

from infra.errors import UserError

SUBMIT_TIMEOUT_S = 120
RECONNECT_S = 2.0
MAX_SILENT_RECONNECTS = 30
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def connect_to_jobs(address: str | None) -> Any:
    """A client of the cluster's job API; ``address`` is the dashboard's, unset: ``RAY_API_SERVER_ADDRESS``, else 8265.

    Raises:
        UserError: Nobody answers there, or the token is missing or wrong.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (RayError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"--address {address or '(unset)'}: {' '.join(str(error).split())}{_way_out(error)}") from error


def _way_out(error: Exception) -> str:
    text = str(error).lower()
    if "authentication" in text or "token" in text:
        return "; the cluster's token goes into RAY_AUTH_TOKEN or a file named by RAY_AUTH_TOKEN_PATH"
    return "; give the address of the cluster's dashboard, as http://HOST:8265 (docs/cluster.md)"


def check_version(client: Any, own: str) -> str | None:
    """Refuse a cluster with another Ray than this code is locked to; a word where only the patch differs.

    Raises:
        UserError: Another major or minor version.
    """
    theirs = getattr(client, "_server_ray_version", None)  # read by the client when it connects; nothing public has it
    return version_difference(own, theirs)


def version_difference(own: str, theirs: str | None) -> str | None:
    """See `check_version`."""
    if theirs is None or theirs == own:
        return None
    if theirs.split(".")[:2] != own.split(".")[:2]:
        raise UserError(
            f"the cluster runs Ray {theirs}, requirements.lock and this machine have {own}: start the cluster from the "
            "image of this lock, or check out the code that the cluster's image was built from"
        )
    return f"the cluster runs Ray {theirs}, this machine has {own}"


def exit_code_of(status: str, driver_exit_code: int | None, *, stopped_by: int = signal.SIGTERM) -> int:
    """What the verb's own process ended with, as a shell says it: 128 + n for signal n; 1 where it never ran."""
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return 128 + stopped_by
    if driver_exit_code is None:
        return 1
    return driver_exit_code if driver_exit_code >= 0 else 128 - driver_exit_code


class Follower:
    """Prints a job's log as it grows until the job has ended; Ctrl-C stops the job, a second one leaves it.

    Args:
        client: of the cluster's job API.
        submission_id: the job's.
        stop: stop it first, as a Ctrl-C from before would have it.
        reconnect_s: seconds between looks once a connection has ended.
    """

    def __init__(
        self, client: Any, submission_id: str, *, stop: bool = False, reconnect_s: float = RECONNECT_S
    ) -> None:
        self._client = client
        self._id = submission_id
        self._stop_first = stop
        self._reconnect_s = reconnect_s
        self._num_printed = 0  # characters: a new connection begins again with the first
        self._interrupted = False

    def follow(self) -> int:
        """The job's exit code (`exit_code_of`).

        Raises:
            UserError: The connection is lost for good, or a second Ctrl-C came; the job goes on.
        """
        try:
            return asyncio.run(self._follow())
        except KeyboardInterrupt:
            raise UserError(f"no longer followed; the job is still stopping: ray job status {self._id}") from None

    async def _follow(self) -> int:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        if self._stop_first:
            self._interrupt()
        try:
            info = await self._until_ended()
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        status = str(info.status.value)
        if status == "FAILED" and info.driver_exit_code is None:  # else the log has said it
            print(f"job {self._id} did not run: {info.message}", file=sys.stderr)
        print(f"job {self._id}: {status.lower()}", file=sys.stderr)
        return exit_code_of(
            status, info.driver_exit_code, stopped_by=signal.SIGINT if self._interrupted else signal.SIGTERM
        )

    async def _until_ended(self) -> Any:
        import aiohttp

        num_silent = 0
        while True:
            printed_before = self._num_printed
            lost: Exception | None = None
            try:
                await self._print_log()
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                lost = error
            try:
                info = await asyncio.to_thread(self._client.get_job_info, self._id)
            except (RuntimeError, OSError) as error:
                lost, info = error, None
            if info is not None and info.status.value in ENDED:
                with contextlib.suppress(RuntimeError, OSError, aiohttp.ClientError):
                    await self._print_log()  # what came after the connection ended
                return info
            num_silent = 0 if self._num_printed > printed_before else num_silent + (lost is not None)
            if num_silent > MAX_SILENT_RECONNECTS:
                raise UserError(
                    f"the log cannot be followed any longer ({lost}); the job goes on: ray job logs {self._id}"
                )
            await asyncio.sleep(self._reconnect_s)

    async def _print_log(self) -> None:
        num_seen = 0
        async for text in self._client.tail_job_logs(self._id):
            fresh = text[max(0, self._num_printed - num_seen) :]
            num_seen += len(text)
            if fresh:
                self._num_printed = num_seen
                sys.stdout.write(fresh)
                sys.stdout.flush()

    def _interrupt(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        print(f"stopping job {self._id}; once more leaves it to itself", file=sys.stderr)
        self._stopping = asyncio.get_running_loop().create_task(self._stop())

    async def _stop(self) -> None:
        try:
            await asyncio.to_thread(self._client.stop_job, self._id)
        except (RuntimeError, OSError) as error:
            self._interrupted = False
            print(f"job {self._id} was not told to stop ({error}); Ctrl-C tries again", file=sys.stderr)
