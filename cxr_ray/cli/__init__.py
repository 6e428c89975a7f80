"""``cxr-ray``: one sub-command a stage. Parsing and printing only; the work is done in the layers below.

Exit codes: 0 done; 2 the user can mend it (one clear message); 1 our bug. Heavy libraries are imported inside the
commands, so that ``cxr-ray --help`` answers in under a second.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from cxr_ray.cli import console
from cxr_ray.cluster import prepare_environment
from cxr_ray.errors import CxrRayError

app = typer.Typer(
    name="cxr-ray",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="From a folder of chest X-rays to a served, audited CNN-RNN classifier, on a laptop or a Ray cluster.",
    epilog="The line: ingest, train, evaluate, export, serve. Start with: cxr-ray demo",
)


def _register() -> None:
    from cxr_ray.cli import (
        ask,
        audit,
        cluster,
        compare,
        data,
        demo,
        dicom,
        explain,
        inspect,
        keys,
        models,
        report,
        reproduce,
        rollout,
        select,
        service,
        synthesis,
        train,
        tune,
        verify,
    )

    stages = (
        demo,
        data,
        audit,
        synthesis,
        train,
        tune,
        select,
        models,
        compare,
        verify,
        report,
        explain,
        reproduce,
        service,
        rollout,
        ask,
        keys,
        dicom,
        cluster,
        inspect,
    )
    for module in stages:
        module.register(app)


_register()


def run_inside(arguments: Sequence[str]) -> dict[str, Any]:
    """Run a command within another one; its mistakes are raised, its result is returned instead of printed."""
    prepare_environment()
    with console.captured() as results:
        typer.main.get_command(app).main(args=list(arguments), prog_name="cxr-ray", standalone_mode=False)
    return results[-1] if results else {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run a command; every mistake becomes one message and an exit code.

    Args:
        arguments: What follows ``cxr-ray`` on the command line.

    Returns:
        0, 1 or 2 (module docstring), or 130 after Ctrl-C.
    """
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments  # what follows is another command's
    console.reset(json="--json" in own, debug="--debug" in own)
    prepare_environment()
    try:
        with console.stdout_for_result():
            typer.main.get_command(app).main(args=arguments, prog_name="cxr-ray")
    except SystemExit as end:  # Typer's own way to end: 0, 2 for a usage error, 130 after Ctrl-C
        return end.code if isinstance(end.code, int) else 0
    except CxrRayError as error:
        console.fail(error.message, error.hint)
        return 2
    except Exception as error:
        console.fail(
            f"a fault of cxr-ray itself: {type(error).__name__}: {error}", "the same command with --debug shows where; please report it"
        )
        return 1
    return 0
