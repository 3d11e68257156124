"""The verb ``plan``: its options, and one call."""

from typing import Annotated

import typer

from ray_jobs import options


def plan(
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
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Score a few due videos without writing, and say what all would cost.")
    ] = False,
    pilot: Annotated[int, typer.Option(min=2, help="Videos of the pilot run for --estimate.")] = 50,
    predictors: options.Predictors = None,
    gpus_per_predictor: options.GpusPerPredictor = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    num_cpus: options.NumCpus = None,
    config: options.Config = None,
) -> None:
    """Show what scoring a catalog would do, without doing it: new, stale, done, quarantined, excluded."""
    import json

    from infra.settings import load_settings
    from models.tasks.base import task_names
    from ray_jobs.console import print_plan
    from ray_jobs.score_config import ScoreConfig, plan_run, resolve_scorers
    from ray_jobs.sizing import Wanted

    settings = load_settings(config, **options.cluster_section(num_cpus))
    run = ScoreConfig(
        catalog=catalog,
        tables=tables,
        scorers=options.scorer_references(task, scorer, task_names()),
        retry=frozenset(retry or ()),
        opt_out=opt_out,
        content=options.content_by(content),
        portion=options.portion(limit, priority, stale_older_than),
        within=tuple(within or ()),
        resources=Wanted(num_predictors=predictors, gpus_per_predictor=gpus_per_predictor),
    )
    resolved = resolve_scorers(run.scorers, settings)
    with plan_run(run, resolved, settings) as found:
        if not as_json:
            print_plan(found)
        cost = None
        if estimate:
            from ray_jobs.estimating import estimate_cost

            cost = estimate_cost(found, run, resolved, settings, num_videos=pilot, quiet=as_json)
        if as_json:
            print(
                json.dumps(
                    {
                        "catalog": found.catalog,
                        "num_videos": found.num_videos,
                        "num_due": found.num_due,
                        "num_later": found.num_later,
                        "tasks": found.counts,
                        "examples": found.examples,
                        "failed": found.reasons,
                        **({"estimate": cost.model_dump()} if cost else {}),
                    }
                )
            )
