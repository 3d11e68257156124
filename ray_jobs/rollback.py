"""The verb ``rollback``: its options, and one call."""

from typing import Annotated

import typer

from ray_jobs import options


def rollback(
    task: Annotated[str, typer.Option(help="The task whose champion goes back.")],
    reason: Annotated[str, typer.Option(help="Why; it stands in the log of changes.")],
    config: options.Config = None,
) -> None:
    """Make the previous champion champion again, at once; repeat to go further back."""
    from infra.errors import UserError
    from infra.settings import load_settings
    from models import promotion
    from models.registry import model_name
    from models.tasks.base import get_task
    from ray_jobs.console import console
    from ray_jobs.preflight import answering_client

    if not reason.strip():
        raise UserError("--reason is empty: say why, it stands in the log of changes")
    name = get_task(task).name
    change = promotion.rollback(answering_client(load_settings(config).tracking), name, reason=reason)
    console.print(
        f"{model_name(name)}: champion is version {change.version} again "
        f"(change {change.number}; withdrawn: version {change.before})",
        highlight=False,
    )
