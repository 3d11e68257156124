"""The verb ``score``: its options, and one call."""

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs import options


def score(
    catalog: options.Catalog,
    tables: options.Tables,
    task: options.Tasks = None,
    scorer: options.Scorers = None,
    retry: options.Retry = None,
    opt_out: options.OptOut = None,
    content: options.ContentBy = "etag",
    limit: options.Limit = None,
    priority: options.Priority = None,
    stale_older_than: options.StaleOlderThan = None,
    within: options.Within = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop; writes nothing.")] = False,
    plan_resources: options.PlanResources = False,
    predictors: options.Predictors = None,
    gpus_per_predictor: options.GpusPerPredictor = None,
    rows_per_block: Annotated[int, typer.Option(min=1, help="Videos per block of work, at most.")] = 32,
    commit_every: Annotated[float, typer.Option(min=0.1, help="Seconds between commits.")] = 30.0,
    commit_rows: Annotated[int, typer.Option(min=1, help="Rows after which to commit earlier.")] = 10_000,
    max_failure_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Stop when more than this share of videos fails; 1 never stops.")
    ] = 0.5,
    min_failure_videos: Annotated[int, typer.Option(min=1, help="Videos after which that share counts.")] = 200,
    fail_first: Annotated[
        int, typer.Option(min=0, help="Stop when so many first videos all fail for one reason; 0 never stops.")
    ] = 50,
    tries: Annotated[int, typer.Option(min=1, help="Tries of a video whose failure may pass, in this run.")] = 3,
    faces: Annotated[
        bool, typer.Option("--faces/--no-faces", help="Keep each face's frame, box, quality and prediction.")
    ] = True,
    limits: Annotated[
        Path | None, typer.Option(help="YAML with the section limits; frames and faces are the scorer's own.")
    ] = None,
    num_cpus: options.NumCpus = None,
    config: options.Config = None,
) -> None:
    """Score a catalog of videos into the score table; what is done already is not done again."""
    import shlex
    import sys

    from infra.leases import refuse_if_held
    from infra.settings import load_settings
    from infra.storage import Storage
    from ray_jobs.sizing import Wanted

    settings = load_settings(config, **options.cluster_section(num_cpus))
    wanted = Wanted(num_predictors=predictors, gpus_per_predictor=gpus_per_predictor, rows_per_block=rows_per_block)
    if plan_resources:
        from ray_jobs.resource_plan import print_pipeline

        print_pipeline(wanted, settings)
        return
    if not dry_run:
        refuse_if_held(Storage(settings.storage), tables)  # before the imports below, which take seconds

    from models.tasks.base import task_names
    from ray_jobs.console import print_plan
    from ray_jobs.failure_guard import FailureLimits
    from ray_jobs.policy_file import read_policies
    from ray_jobs.score_config import ScoreConfig, plan_run, resolve_scorers
    from ray_jobs.scoring import print_result, run_score

    run = ScoreConfig(
        catalog=catalog,
        tables=tables,
        scorers=options.scorer_references(task, scorer, task_names()),
        retry=frozenset(retry or ()),
        opt_out=opt_out,
        content=options.content_by(content),
        portion=options.portion(limit, priority, stale_older_than),
        within=tuple(within or ()),
        failures=FailureLimits(max_rate=max_failure_rate, min_videos=min_failure_videos, first=fail_first),
        max_tries=tries,
        with_faces=faces,
        command=f"python -m ray_jobs {shlex.join(sys.argv[1:])}",
        resources=wanted,
        limits=read_policies(limits, sections=("limits",)).limits,
        commit_every_s=commit_every,
        commit_every_rows=commit_rows,
    )
    if dry_run:
        with plan_run(run, resolve_scorers(run.scorers, settings), settings) as plan:
            print_plan(plan)
        return
    print_result(run_score(run, settings))
