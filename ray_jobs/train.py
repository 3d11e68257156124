"""The verb ``train``: its options, and one call."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from ray_jobs import options


def train(
    task: Annotated[str, typer.Option(help="Task to train: attractiveness, fs2k.")],
    dataset: Annotated[str, typer.Option(help="Crops dataset, as made by the verb prepare.")],
    storage: Annotated[
        str, typer.Option(help="Folder or s3:// prefix for checkpoints, seen by all workers.")
    ] = "runs/train",
    name: Annotated[
        str | None, typer.Option(help="Name of the run; the same name resumes. Default: task and time.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Named recipe, or a .yaml file of recipe fields (see docs/training.md). Default: plain."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Replace a field of the recipe; repeat. Value as in YAML."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="torchvision's name of the backbone.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Starting weights: none, imagenet, a .safetensors file, or a scorer (champion).")
    ] = None,
    input_size: Annotated[int | None, typer.Option(min=16, help="Side of the network input, pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training split.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Crops per step, over all workers.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    per_class: Annotated[
        int | None,
        typer.Option(min=1, help="Crops of each class in an epoch, repeated or left out. Default: all, as they are."),
    ] = None,
    balance_by: Annotated[str | None, typer.Option(help="With --per-class: the label whose classes are meant.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentation.")] = None,
    workers: Annotated[
        str, typer.Option(help="Training workers: a number, or LEAST:MOST as the cluster has them.")
    ] = "1",
    cpus_per_worker: Annotated[
        int, typer.Option(min=1, help="CPUs of each worker: without a GPU, the threads that compute.")
    ] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU per worker.")] = False,
    checkpoint_every_steps: Annotated[
        int, typer.Option(min=1, help="Steps after which a checkpoint is written within an epoch.")
    ] = 500,
    resident_bytes: Annotated[
        int, typer.Option(min=0, help="Decoded crops up to this size are kept in a worker's memory; else streamed.")
    ] = 4 << 30,
    plan_resources: options.PlanResources = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Make the new version the champion, where there is none yet.")
    ] = False,
    num_cpus: options.NumCpus = None,
    config: options.Config = None,
) -> None:
    """Train a scorer on a crops dataset, choose the best epoch on the validation split, and register it."""
    from infra.errors import UserError
    from infra.settings import load_settings
    from models import promotion, registry
    from models.tasks.base import get_task
    from ray_jobs.console import console
    from ray_jobs.preflight import answering_client
    from ray_jobs.training.config import TrainConfig
    from ray_jobs.training.recipe import resolve_recipe
    from ray_jobs.training.run import print_result, run_train

    settings = load_settings(config, **options.cluster_section(num_cpus))
    given = {
        "backbone": backbone,
        "weights": weights,
        "input_size": input_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "per_class": per_class,
        "balance_by": balance_by,
        "seed": seed,
    }
    overrides = options.fields(set_) | {field: value for field, value in given.items() if value is not None}
    least, most = options.workers(workers)
    run = TrainConfig(
        task=get_task(task).name,
        dataset=dataset,
        name=name or f"{task}-{datetime.now(UTC):%Y%m%dT%H%M%S}",
        storage=storage,
        recipe=resolve_recipe(recipe, overrides),
        num_workers=most,
        min_workers=least,
        cpus_per_worker=cpus_per_worker,
        use_gpu=gpu,
        checkpoint_every_steps=checkpoint_every_steps,
        resident_bytes=resident_bytes,
    )
    if plan_resources:
        from ray_jobs.resource_plan import print_training

        print_training(run, settings)
        return
    if promote:
        seen = promotion.look(answering_client(settings.tracking), run.task)
        if seen.champion is not None and name is None:  # a named run may be the champion's own, said again
            raise UserError(
                f"--promote: {registry.model_name(run.task)} has a champion already, version {seen.champion}: train "
                "without it, and let the gates decide (the verb promote)"
            )
    result = run_train(run, settings)
    print_result(result)
    if promote:
        client = answering_client(settings.tracking)
        if seen.champion == result.version:
            return
        if seen.champion is not None:
            raise UserError(
                f"{registry.model_name(run.task)} has a champion already, version {seen.champion}: version "
                f"{result.version} is registered, and the gates decide about it (the verb promote)"
            )
        promotion.promote(client, run.task, result.version, seen=seen, reason="the first champion, by train --promote")
        console.print(f"{registry.model_name(run.task)}: champion is version {result.version} now", highlight=False)
