"""The verb ``prepare``: its options, and one call."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ray_jobs import options


def prepare(
    out: Annotated[str, typer.Option(help="Where the crops dataset goes: a new folder or s3://bucket/prefix.")],
    labels: Annotated[
        str | None,
        typer.Option(help="Table of labelled videos (video_id, uri, label columns, optional creator_id, age)."),
    ] = None,
    fs2k: Annotated[Path | None, typer.Option(help="FS2K's folder: anno_train.json, photo/, sketch/.")] = None,
    modality: Annotated[Literal["photo", "sketch"], typer.Option(help="Which side of FS2K.")] = "photo",
    task: Annotated[list[str] | None, typer.Option(help="Keep this task's labels; repeat. Default: all found.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Look at every n-th frame.")] = 50,
    limit: Annotated[int, typer.Option(min=1, help="Frames per video at most.")] = 10,
    crop_size: Annotated[int, typer.Option(min=32, help="Side of a crop in pixels.")] = 256,
    num_cpus: options.NumCpus = None,
    config: options.Config = None,
) -> None:
    """Build a crops dataset from labelled videos or from FS2K's folder, through the way that scoring takes."""
    from infra.settings import load_settings
    from models.faces.policy import FacePolicy
    from models.video.sampling import FramePolicy
    from ray_jobs.preparing import PrepareConfig, print_manifest, run_prepare

    manifest = run_prepare(
        PrepareConfig(
            out=out,
            labels=labels,
            fs2k=fs2k,
            modality=modality,
            tasks=tuple(task or ()),
            frame_policy=FramePolicy(every=every, limit=limit),
            face_policy=FacePolicy(crop_size=crop_size),
        ),
        load_settings(config, **options.cluster_section(num_cpus)),
    )
    print_manifest(manifest, out)
