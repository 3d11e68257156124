"""The verb ``promote``: its options, and one call."""

from typing import Annotated, Literal

import typer

from ray_jobs import options


def promote(
    task: Annotated[str, typer.Option(help="The task whose champion changes.")],
    version: Annotated[str, typer.Option(help="The challenger: a version's number, or an alias.")] = "challenger",
    dataset: Annotated[
        str | None, typer.Option(help="Evaluation set: a crops dataset of people whom the challenger never saw.")
    ] = None,
    split: Annotated[
        Literal["test", "val", "train", "all"] | None,
        typer.Option(help="Its split to measure on. Default: test where it has one, else all."),
    ] = None,
    catalog: Annotated[
        str | None, typer.Option(help="Catalog whose sample both scorers answer: a table of videos, or a prefix.")
    ] = None,
    sample: Annotated[int, typer.Option(min=20, help="Videos of that sample.")] = 500,
    slice_by: Annotated[
        list[str] | None, typer.Option("--slice", help="A further column of the evaluation set to slice by; repeat.")
    ] = None,
    catalog_slice: Annotated[
        list[str] | None, typer.Option(help="A column of the catalog to look at by part; repeat.")
    ] = None,
    opt_out: options.OptOut = None,
    gates: Annotated[str | None, typer.Option(help="YAML with the gates' limits (docs/promotion.md).")] = None,
    reason: Annotated[str, typer.Option(help="Why; it stands in the record and in the log of changes.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Promote against the gates; needs --reason.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure and judge; change and log nothing.")] = False,
    out: Annotated[str | None, typer.Option(help="Folder for decision.html and decision.json, beside MLflow.")] = None,
    alias: Annotated[
        str | None, typer.Option(help="Only point another alias (challenger, say) at the version; asks no gate.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples, of creators.")] = 200,
    predictors: Annotated[int, typer.Option(min=1, help="Actors that hold a scorer.")] = 1,
    gpus_per_predictor: Annotated[float, typer.Option(min=0, help="GPUs of each predictor; 0: CPU.")] = 0.0,
    num_cpus: options.NumCpus = None,
    config: options.Config = None,
) -> None:
    """Make a version the champion if it passes the gates; the record of the decision lies in its MLflow run."""
    from infra.errors import UserError
    from infra.settings import load_settings
    from models import registry
    from models.tasks.base import get_task
    from ray_jobs.console import console
    from ray_jobs.preflight import answering_client
    from ray_jobs.promoting.deciding import PromoteConfig, run_promote
    from ray_jobs.promoting.gates import read_gates
    from ray_jobs.sizing import Resources

    settings = load_settings(config, **options.cluster_section(num_cpus))
    name = get_task(task).name
    if alias is not None:
        if alias in (registry.CHAMPION, registry.PREVIOUS):
            raise UserError(f"--alias {alias} is moved by promote and rollback alone: leave --alias out")
        client = answering_client(settings.tracking)
        number = registry.registered(client, version, task=name).version.rpartition("/")[2]
        before = registry.set_alias(client, name, number, alias)
        console.print(
            f"{registry.model_name(name)}: {alias} is version {number} now (before: {before or 'none'})",
            highlight=False,
        )
        return
    run_promote(
        PromoteConfig(
            task=name,
            version=version,
            gates=read_gates(gates),
            dataset=dataset,
            split=split,
            catalog=catalog,
            sample=sample,
            slices=tuple(slice_by or ()),
            catalog_slices=tuple(catalog_slice or ()),
            opt_out=opt_out,
            num_resamples=resamples,
            resources=Resources(num_predictors=predictors, gpus_per_predictor=gpus_per_predictor),
            reason=reason,
            force=force,
            dry_run=dry_run,
            out=out,
        ),
        settings,
    )
