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
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    config: options.Config = None,
) -> None:
    """Show what scoring a catalog would do, without doing it: new, stale, done, quarantined, excluded."""
    import json

    from infra.settings import load_settings
    from models.tasks.base import task_names
    from ray_jobs.console import print_plan
    from ray_jobs.scoring import ScoreConfig, plan_run, resolve_scorers

    settings = load_settings(config)
    run = ScoreConfig(
        catalog=catalog,
        tables=tables,
        scorers=options.scorer_references(task, scorer, task_names()),
        retry=frozenset(retry or ()),
    )
    found = plan_run(run, resolve_scorers(run.scorers, settings), settings)
    if as_json:
        print(
            json.dumps(
                {
                    "catalog": found.catalog,
                    "num_videos": found.num_videos,
                    "num_due": found.num_due,
                    "tasks": found.counts,
                }
            )
        )
    else:
        print_plan(found)
