"""The verb ``prepare``: its options, and one call."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ray_jobs import options


def prepare(
    out: Annotated[str, typer.Option(help="Where the crops dataset goes: a new folder or s3://bucket/prefix.")],
    labels: Annotated[
        str | None,
        typer.Option(help="Label table: CSV, TSV, Excel, Parquet or JSON lines, with headers in English or Chinese."),
    ] = None,
    videos: Annotated[
        str | None, typer.Option(help="The --into of an ingest: where the videos of web addresses lie.")
    ] = None,
    exclude: Annotated[
        str | None, typer.Option(help="The review.csv of a review, with verdicts: labels found wrong are left out.")
    ] = None,
    fs2k: Annotated[Path | None, typer.Option(help="FS2K's folder: anno_train.json, photo/, sketch/.")] = None,
    modality: Annotated[Literal["photo", "sketch", "both"], typer.Option(help="Which side of FS2K.")] = "photo",
    task: Annotated[list[str] | None, typer.Option(help="Keep this task's labels; repeat. Default: all found.")] = None,
    split: Annotated[
        Literal["creator", "video", "image"],
        typer.Option(help="What stands on one side of the split; image lets frames of one video part."),
    ] = "creator",
    policy: Annotated[
        Path | None,
        typer.Option(
            help="YAML with the sections frame, face, limits, labels, dataset. Default: every 50th frame, at most 10."
        ),
    ] = None,
    plan_resources: options.PlanResources = False,
    num_cpus: options.NumCpus = None,
    config: options.Config = None,
) -> None:
    """Build a crops dataset from labelled videos or from FS2K's folder, through the way that scoring takes."""
    from infra.settings import load_settings
    from ray_jobs.policy_file import read_policies
    from ray_jobs.preparing import PrepareConfig, print_manifest, run_prepare

    settings = load_settings(config, **options.cluster_section(num_cpus))
    if plan_resources:
        from ray_jobs.resource_plan import print_preparing

        print_preparing(settings)
        return
    policies = read_policies(policy)
    manifest = run_prepare(
        PrepareConfig(
            out=out,
            labels=labels,
            videos=videos,
            exclude=exclude,
            fs2k=fs2k,
            modality=modality,
            tasks=tuple(task or ()),
            split_by=split,
            frame_policy=policies.frame,
            face_policy=policies.face,
            limits=policies.limits,
            label_rules=policies.labels,
            rules=policies.dataset,
        ),
        settings,
    )
    print_manifest(manifest, out)
