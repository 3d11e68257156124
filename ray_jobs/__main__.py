"""The command line: ``python -m ray_jobs VERB``. A verb's module is imported only when the verb is called."""

import importlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

VERBS = {
    "ingest": "Fetch the videos of a label table or a list of addresses into storage.",
    "prepare": "Build a crops dataset from labelled videos or from FS2K's folder.",
    "review": "List the labels of a dataset that are most likely wrong, with pictures.",
    "train": "Train a scorer on a crops dataset and register it.",
    "tune": "Search a recipe's fields, by trials on the cluster.",
    "evaluate": "Measure a scorer on a split, with slices, calibration and cases.",
    "promote": "Make a version the champion, if it passes the gates.",
    "rollback": "Make the previous champion champion again.",
    "models": "List, show, compare, export and import registered scorers.",
    "plan": "Show what scoring a catalog would do, without doing it.",
    "score": "Score a catalog of videos into the score table.",
    "status": "Show the tables and the runs of a root, the one at work too.",
    "results": "Print or export each video's newest row.",
    "drift": "Compare recent rows with earlier ones; for a cron job.",
    "tables": "Compact the tables and remove files that nothing refers to.",
    "report": "Write an HTML page about the score tables.",
    "submit": "Run another verb as a job of a cluster.",
    "doctor": "Check this machine, the cluster and its stores, and say what to mend.",
    "demo": "Draw a catalog and run everything on it, end to end.",
}


class LazyVerbs(TyperGroup):
    """A command group that lists every verb with one line of help and loads a verb's module on use.

    So ``--help`` costs no import of torch, Ray or MLflow.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs in the order of the work."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb's command: the function of the same name in ``ray_jobs/<verb>.py``."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"ray_jobs.{cmd_name}")
        if hasattr(module, "app"):  # a verb with verbs of its own
            group = typer.main.get_command(module.app)
            group.name = cmd_name
            return group
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(name=cmd_name)(getattr(module, cmd_name))
        return typer.main.get_command(app)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Plain help, without loading the verbs' modules."""
        formatter.write_usage(ctx.command_path, "VERB [OPTIONS]")
        formatter.write_paragraph()
        formatter.write_text("facereel: score the faces in a video catalog, and train the models that do it.")
        with formatter.section("Verbs (each has its own --help)"):
            formatter.write_dl(list(VERBS.items()))


app = typer.Typer(cls=LazyVerbs, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The group itself has no options."""


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    from infra.errors import RunStopped, TypedError, UserError
    from ray_jobs.job_environment import check_references

    # The newer Parquet reader needs 15 s for a small file and ignores block sizes; Ray Data reads this on import.
    os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")
    try:
        check_references(os.environ)
        app(prog_name="python -m ray_jobs")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunStopped as error:
        sys.exit(error.exit_code)  # it has said why, as soon as it could
    except TypedError as error:
        print(f"error: {error} (reason: {error.reason})", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if "mlflow" in sys.modules:  # which takes seconds to import
            from infra.tracking import silence

            if (why := silence(error)) is not None:
                print(f"error: {why}", file=sys.stderr)
                sys.exit(2)
        raise


if __name__ == "__main__":
    main()
