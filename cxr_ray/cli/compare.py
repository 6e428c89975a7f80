"""``compare``: REPORTs of the same images in, their differences out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import ConfigError

NAMES = {"accuracy": "accuracy", "macro_f1": "macro F1", "macro_auroc": "macro AUROC"}


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(compare)


def compare(
    reports: Annotated[list[str], typer.Argument(help="REPORTs or cross-validation directories of the same images; two or more.")],
    out: Annotated[str | None, typer.Option(help="Of three or more: folder for comparison.json and comparison.html.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 1000,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say how far models are apart on the same images: differences with intervals, McNemar's and DeLong's test.

    Of two, the first minus the second; of more, each minus the first, with p values adjusted after Holm.

    Example: cxr-ray compare report-a report-b
    """
    if len(reports) < 2:
        raise ConfigError([f"one REPORT, {reports[0]}: two or more are compared"], where="compare")
    if len(reports) == 2 and out is not None:
        raise ConfigError(["a page is written for three REPORTs or more; of two there is --json"], where="--out")
    found = _two(reports[0], reports[1], seed, resamples) if len(reports) == 2 else _many(reports, out, seed, resamples)
    for warning in found["warnings"]:
        console.say(f"[bold yellow]note:[/] {warning}")
    console.result(found)


def _two(a: str, b: str, seed: int, resamples: int) -> dict[str, Any]:
    from cxr_ray.evaluation.comparison import told
    from cxr_ray.evaluation.paired import compare as run_compare

    found = run_compare(a, b, seed=seed, resamples=resamples)
    console.table(
        f"{found['n']} images of {found['patients']} patients; 95 % intervals by patient, the same patients drawn for both",
        ["figure", f"A {a}", f"B {b}", "A - B"],
        [[name, *(told(found["figures"][key][side]) for side in ("a", "b", "difference"))] for key, name in NAMES.items()],
    )
    areas = [[name, _difference(test), f"{test['p']:.4g}"] for name, test in found["delong"].items() if test is not None]
    console.table("DeLong's test of the areas under the ROC curves, by patient", ["label", "A - B", "p"], areas)
    console.table(
        "McNemar's exact test (images taken as independent)",
        ["right", "both", "A alone", "B alone", "neither", "p"],
        [
            [name, *(str(test[key]) for key in ("both_right", "only_a_right", "only_b_right", "both_wrong")), f"{test['p']:.4g}"]
            for name, test in found["mcnemar"].items()
        ],
    )
    return found


def _difference(test: dict[str, Any]) -> str:
    return f"{test['difference']:.4f} [{test['ci95'][0]:.4f}, {test['ci95'][1]:.4f}]"


def _many(reports: list[str], out: str | None, seed: int, resamples: int) -> dict[str, Any]:
    from cxr_ray import storage
    from cxr_ray.evaluation.comparison import PAGE, compare_many, told, write_comparison

    found = compare_many(reports, seed=seed, resamples=resamples)
    console.table(
        f"{found['n']} images of {found['patients']} patients; 95 % intervals by patient, the same patients drawn for all",
        ["model", *NAMES.values()],
        [[model["location"], *(told(model["figures"][key]) for key in NAMES)] for model in found["models"]],
    )
    console.table(
        f"minus {found['reference']}; p adjusted after Holm",
        ["model", *(column for name in NAMES.values() for column in (name, "p"))],
        [
            [model["location"], *(cell for key in NAMES for cell in (told(model["difference"][key]), _p(model["difference"][key])))]
            for model in found["models"][1:]
        ],
    )
    if out is not None:
        write_comparison(found, out)
        console.say(f"wrote {storage.join(out, PAGE)}")
    return found


def _p(difference: dict[str, Any]) -> str:
    return "" if difference["p_holm"] is None else f"{difference['p_holm']:.3g}"
