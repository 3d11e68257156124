"""The verb ``evaluate``: its options, and one call."""

from typing import Annotated, Literal

import typer

from ray_jobs import options


def evaluate(
    task: Annotated[str, typer.Option(help="Task of the scorer: attractiveness, fs2k.")],
    dataset: Annotated[str, typer.Option(help="Crops dataset: the --out of prepare.")],
    out: Annotated[str, typer.Option(help="Folder for evaluation.html, evaluation.json and predictions.parquet.")],
    scorer: Annotated[
        str, typer.Option(help="An alias, a version, models:/NAME/VERSION, or a directory.")
    ] = "champion",
    against: Annotated[str | None, typer.Option(help="A second scorer, to stand beside the first.")] = None,
    split: Annotated[Literal["train", "val", "test", "all"], typer.Option(help="Which crops to measure on.")] = "val",
    slice_by: Annotated[
        list[str] | None, typer.Option("--slice", help="A further column of the dataset to slice by; repeat.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=2, help="Bootstrap resamples, of creators.")] = 200,
    gpu: Annotated[bool, typer.Option("--gpu", help="Predict on GPUs, one a task.")] = False,
    num_cpus: options.NumCpus = None,
    config: options.Config = None,
) -> None:
    """Measure a scorer on a split: figures with intervals, slices, calibration, best and worst cases, on one page."""
    from infra.settings import load_settings
    from ray_jobs.evaluating import EvaluateConfig, run_evaluate

    run_evaluate(
        EvaluateConfig(
            task=task,
            dataset=dataset,
            out=out,
            scorer=scorer,
            against=against,
            split=split,
            slices=tuple(slice_by or ()),
            num_resamples=resamples,
            use_gpu=gpu,
        ),
        load_settings(config, **options.cluster_section(num_cpus)),
    )
