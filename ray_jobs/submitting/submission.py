"""A submission from the command line to the exit code: checks first, then ``ray job submit``, then the log."""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from infra.errors import RunStopped, UserError
from infra.settings import DEFAULT_CONFIG
from infra.storage import OTHER_SCHEME, is_s3
from infra.tracking import CODE_VERSION, code_version
from ray_jobs.interrupts import Interrupts
from ray_jobs.submitting.environment import read_runtime_env, with_variables
from ray_jobs.submitting.job import SUBMIT_TIMEOUT_S, Follower, check_version, connect_to_jobs
from ray_jobs.submitting.upload import check_no_secrets, check_upload, measure_upload

DEFAULT_RUNTIME_ENV = Path("infra/runtime_env.yaml")
# Options that name what a verb writes and somebody wants to have afterwards.
WRITTEN = ("tables", "out", "into", "storage", "folder")
NOT_SUBMITTED = ("submit", "demo")


@dataclass(frozen=True, slots=True)
class Submission:
    """What to submit, where, and how."""

    verb: tuple[str, ...]  # with its options
    address: str | None = None
    working_dir: Path = Path()
    runtime_env: Path | None = None
    env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    submission_id: str | None = None
    max_upload_bytes: int = 20 << 20
    wait: bool = True
    dry_run: bool = False


def run_submission(submission: Submission) -> None:
    """Check, submit, follow.

    Raises:
        UserError: Something is wrong that would show on the cluster only minutes later; nothing was submitted.
        RunStopped: The job ended with another exit code than 0, which is this one's too.
    """
    config = check_verb(submission.verb)
    upload = measure_upload(submission.working_dir)
    print(f"upload: {upload}", file=sys.stderr)
    check_upload(upload, submission.max_upload_bytes)
    for name in dict.fromkeys((str(DEFAULT_CONFIG), *([config] if config else []))):
        check_no_secrets(submission.working_dir, upload, name)
    command = submit_command(submission, f"{submission.verb[0]}-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    if submission.dry_run:
        print(shlex.join(command))
        return
    client = connect_to_jobs(submission.address)
    note = check_version(client, version("ray"))
    if note is not None:
        print(f"note: {note}", file=sys.stderr)
    print(shlex.join(command), file=sys.stderr)
    submission_id = command[command.index("--submission-id") + 1]
    with Interrupts("stopping the job as soon as it is handed in") as interrupts:
        _hand_in(command, submission_id)
    print(f"ray job logs --follow {submission_id}", file=sys.stderr)
    if not submission.wait and interrupts.received is None:
        return
    code = Follower(client, submission_id, stop=interrupts.received is not None).follow()
    if code:
        raise RunStopped(f"job {submission_id} ended with exit code {code}", code)


def submit_command(submission: Submission, submission_id: str) -> list[str]:
    """The ``ray job submit`` that stands for the submission.

    Raises:
        UserError: The runtime environment is not usable.
    """
    path = submission.runtime_env or submission.working_dir / DEFAULT_RUNTIME_ENV
    code = code_version(submission.working_dir)  # the upload has no history that could tell it
    plain = [*submission.env, *([] if code == "unknown" else [f"{CODE_VERSION}={code}"])]
    environment, changed = with_variables(read_runtime_env(path), plain, submission.secrets)
    command = ["ray", "job", "submit", "--no-wait"]
    if submission.address is not None:
        command += ["--address", submission.address]
    command += ["--submission-id", submission.submission_id or submission_id]
    command += ["--working-dir", str(submission.working_dir)]
    # Ray takes the one or the other.
    command += ["--runtime-env-json", json.dumps(environment)] if changed else ["--runtime-env", str(path)]
    return [*command, "--", "python", "-m", "ray_jobs", *submission.verb]


def check_verb(arguments: tuple[str, ...]) -> str | None:
    """Parse the verb's options here, where a mistake costs nothing; the settings file that they name, if any.

    Raises:
        UserError: No such verb, one that is not for clusters, or a relative path for what is to be kept.
        SystemExit: The verb does not take these options; typer says why.
    """
    from ray_jobs.__main__ import VERBS, LazyVerbs

    verb = arguments[0]
    if verb not in VERBS:
        raise UserError(f"submit {verb}: no such verb; there are {', '.join(VERBS)}")
    if verb in NOT_SUBMITTED:
        raise UserError(f"submit {verb}: it runs on this machine only")
    command: Any = LazyVerbs().get_command(None, verb)
    context = command.make_context(verb, list(arguments[1:]))
    while isinstance(command, TyperGroup):  # a verb with verbs of its own
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    for name in WRITTEN:
        value = context.params.get(name)
        if isinstance(value, str | Path) and is_relative(str(value)):
            raise UserError(
                f"--{name} {value}: relative to the job's copy of this folder, which goes away with the job: give "
                "s3://bucket/prefix, or an absolute path that all nodes share"
            )
    config: str | None = context.params.get("config")
    return config


def is_relative(uri: str) -> bool:
    """Whether a path means another place in every working directory."""
    return not is_s3(uri) and OTHER_SCHEME.match(uri) is None and not uri.startswith(("file://", "/"))


def _hand_in(command: list[str], submission_id: str) -> None:
    """Run the command; its output is shown where it fails.

    Raises:
        UserError: It failed, or took too long.
    """
    own = [sys.executable, "-m", "ray.scripts.scripts", *command[1:]]
    try:
        # A session of its own: a Ctrl-C must not end it between upload and answer.
        done = subprocess.run(
            own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SUBMIT_TIMEOUT_S,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"ray job submit did not come back within {SUBMIT_TIMEOUT_S} s; whether the job is there all the same "
            f"says: ray job status {submission_id}"
        ) from error
    if done.returncode:
        tail = " ".join(done.stdout.strip().splitlines()[-3:])
        raise UserError(f"ray job submit failed: {tail[-1000:]}")
