"""Command-line options that several verbs share, and how they become values."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from infra.errors import UserError

if TYPE_CHECKING:
    from ray_jobs.planning import Portion

Catalog = Annotated[
    str, typer.Option(help="Table of videos (Parquet, CSV, JSONL; columns video_id, uri) or a storage prefix.")
]
Tables = Annotated[str, typer.Option(help="Root of the score and quarantine tables: a folder or s3://bucket/prefix.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", help="Task to score; repeat for several. Default: every task with a champion."),
]
Scorers = Annotated[
    list[str] | None,
    typer.Option(
        "--scorer",
        metavar="TASK=REF",
        help="Scorer of a task: an alias, models:/NAME/VERSION, or a directory. Default: the champion.",
    ),
]
Retry = Annotated[
    list[str] | None,
    typer.Option(help="Plan quarantined videos with this reason again; repeat, or 'retryable', or 'all'."),
]
OptOut = Annotated[
    str | None,
    typer.Option(help="Table with a column video_id or creator_id (or both): videos and creators to leave out."),
]
ContentBy = Annotated[
    str, typer.Option("--content", help="What tells a video's content: etag, or sha256 (a column of the catalog).")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Take at most so many of the due videos.")]
Priority = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Take the due videos with the catalog's largest values first.")
]
StaleOlderThan = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Score videos of other scorers or policies again only where the newest row is older: 12h, 30d, 8w.",
    ),
]
Within = Annotated[
    list[str] | None,
    typer.Option(metavar="PREFIX", help="Refuse a catalog with a video outside of this folder or prefix; repeat."),
]
Predictors = Annotated[
    int | None, typer.Option(min=1, help="Actors that hold the scorers. Default: by the cluster (--plan-resources).")
]
GpusPerPredictor = Annotated[
    float | None, typer.Option(min=0, help="GPUs of each predictor, also a part of one; 0: CPUs. Default: as above.")
]
PlanResources = Annotated[
    bool, typer.Option("--plan-resources", help="Show what would be asked of the cluster and why, and stop.")
]
NumCpus = Annotated[int | None, typer.Option(min=1, help="Logical CPUs of a local cluster. Default: all, at least 4.")]
Config = Annotated[str | None, typer.Option(help="Settings file (YAML). Default: facereel.yaml where it exists.")]


def scorer_references(tasks: list[str] | None, scorers: list[str] | None, known: tuple[str, ...]) -> dict[str, str]:
    """Task to scorer reference, from ``--task`` and ``--scorer TASK=REF``; empty where neither is given.

    Raises:
        UserError: An unknown task, or a ``--scorer`` that is no ``TASK=REF``.
    """
    given = {}
    for item in scorers or []:
        task, separator, reference = item.partition("=")
        if not separator or not reference:
            raise UserError(f"--scorer {item}: give TASK=REF, for example fs2k=champion or fs2k=path/to/scorer")
        given[task] = reference
    chosen = tasks or list(given)
    for task in [*chosen, *given]:
        if task not in known:
            raise UserError(f"unknown task {task!r}; known: {', '.join(known)}")
    return {task: given.get(task, "champion") for task in dict.fromkeys([*chosen, *given])}


def content_by(value: str) -> Literal["etag", "sha256"]:
    """The value of ``--content``.

    Raises:
        UserError: It is neither of the two.
    """
    if value == "etag":
        return "etag"
    if value == "sha256":
        return "sha256"
    raise UserError(f"--content {value}: give etag or sha256")


def seconds(option: str, text: str) -> float:
    """The seconds of ``90s``, ``15m``, ``12h``, ``30d`` or ``8w``.

    Raises:
        UserError: It is none of these.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    number, unit = text[:-1], text[-1:]
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError) as error:
        raise UserError(f"{option} {text}: give a number and s, m, h, d or w (12h, 30d)") from error
    if not 0 < value <= 100 * 365 * units["d"]:
        raise UserError(f"{option} {text}: give a time above zero and below a century")
    return value


def portion(limit: int | None, priority: str | None, stale_older_than: str | None) -> "Portion":
    """Which of the due videos to take.

    Raises:
        UserError: The time is none.
    """
    from ray_jobs.planning import Portion

    age = None if stale_older_than is None else seconds("--stale-older-than", stale_older_than)
    return Portion(limit, priority, age)


def cluster_section(num_cpus: int | None) -> dict[str, dict[str, int]]:
    """The settings that ``--num-cpus`` overrides."""
    return {} if num_cpus is None else {"cluster": {"num_cpus": num_cpus}}


def fields(items: list[str] | None) -> dict[str, Any]:
    """Fields of a recipe from ``--set FIELD=VALUE``; a dot reaches into a section (augmentation.flip=0).

    Raises:
        UserError: An item is no ``FIELD=VALUE``.
    """
    import yaml

    from ray_jobs.training.recipe import nested

    found: dict[str, Any] = {}
    for item in items or []:
        name, separator, text = item.partition("=")
        if not separator or not name:
            raise UserError(f"--set {item}: give FIELD=VALUE, for example ema=0.99")
        try:
            found[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {item}: the value is no YAML") from error
    return nested(found)


def workers(text: str) -> tuple[int | None, int]:
    """Least (None: the same) and most workers, of ``4`` or ``2:8``.

    Raises:
        UserError: It is neither.
    """
    least, separator, most = text.partition(":")
    if not (least.isdigit() and (most.isdigit() or not separator)) or int(least) < 1:
        raise UserError(f"--workers {text}: give a number, or LEAST:MOST (2:8)")
    if not separator:
        return None, int(least)
    if int(most) < int(least):
        raise UserError(f"--workers {text}: the least is more than the most")
    return int(least), int(most)
