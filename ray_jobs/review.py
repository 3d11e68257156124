"""The verb ``review``: its options, and one call."""

from typing import Annotated

import typer

from ray_jobs import options


def review(
    dataset: Annotated[str, typer.Option(help="Crops dataset: the --out of prepare.")],
    out: Annotated[str, typer.Option(help="Folder for review.html and review.csv.")],
    label: Annotated[
        list[str] | None, typer.Option(help="Review this label; repeat. Default: every label of the dataset.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="List at most so many of each label, the most doubtful.")] = 100,
    crops_per_video: Annotated[int, typer.Option(min=1, help="Look at no more crops of a video than this.")] = 3,
    num_cpus: options.NumCpus = None,
    config: options.Config = None,
) -> None:
    """Cross-validate every label by people, and list those that the others contradict, for you to judge."""
    from infra.settings import load_settings
    from ray_jobs.reviewing import ReviewConfig, run_review

    run_review(
        ReviewConfig(dataset=dataset, out=out, labels=tuple(label or ()), limit=limit, crops_per_video=crops_per_video),
        load_settings(config, **options.cluster_section(num_cpus)),
    )
