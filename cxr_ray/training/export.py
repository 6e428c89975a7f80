"""A finished RUN becomes a BUNDLE: the best epoch's weights, what serving must do to an image, and a model card."""

from __future__ import annotations

from typing import Any

from cxr_ray import __version__, storage
from cxr_ray.bundle import Bundle, Provenance, overwrite_guard, write_bundle
from cxr_ray.errors import RunError
from cxr_ray.training.run import Run, open_run


def export_run(location: str, out: str, *, report: str | None = None, name: str | None = None, overwrite: bool = False) -> Bundle:
    """Write the best epoch of a run as a bundle.

    Args:
        location: Finished RUN.
        out: BUNDLE to write.
        report: REPORT of the run; its metrics go into the bundle and the card. None: the card says "not evaluated".
        name: Of the model; None: the recipe's.
        overwrite: Replace a BUNDLE that stands at ``out``.

    Raises:
        RunError: The run is not finished, or the report is of other data.
        BundleError: ``out`` is not empty.
    """
    run = open_run(location)
    if run.manifest.status != "finished":
        raise RunError(f"{location} is not finished", hint="run the same `cxr-ray train` again; it goes on where it stopped")
    metrics = _metrics(run, report)
    overwrite_guard(out, overwrite=overwrite)
    data, best = run.manifest.dataset, run.best()
    provenance = Provenance(
        cxr_ray=__version__,
        recipe=run.recipe.name,
        seed=run.manifest.seed,
        epoch=best.epoch,
        dataset=data.name,
        dataset_fingerprint=data.fingerprint,
        run_fingerprint=run.manifest.fingerprint,
        versions=run.manifest.versions,
    )
    return write_bundle(
        out,
        model=run.load_model(),
        name=name or run.recipe.name,
        model_config=run.recipe.model,
        labels=run.labels,
        preprocess=data.preprocess,
        mean=data.mean,
        std=data.std,
        provenance=provenance,
        card=model_card(name or run.recipe.name, run, metrics),
        metrics=metrics,
    )


def _metrics(run: Run, report: str | None) -> dict[str, Any] | None:
    if report is None:
        return None
    metrics: dict[str, Any] = storage.read_json(storage.join(report, "metrics.json"))
    if metrics.get("labels") != list(run.labels.names):
        raise RunError(f"{report} is a report of other labels: {metrics.get('labels')}", hint="the REPORT of this RUN, or none")
    return metrics


def model_card(name: str, run: Run, metrics: dict[str, Any] | None) -> str:
    """Markdown: what it is, what it was trained on, how good it is; what software cannot know is left visibly blank."""
    data, recipe = run.manifest.dataset, run.recipe
    lines = [
        f"# {name}",
        "",
        "For research. Not a medical device; not for diagnosis.",
        "",
        "| | |",
        "|---|---|",
        f"| Task | {data.task}: {', '.join(data.labels)} |",
        f"| Network | {recipe.model.backbone.name} → {recipe.model.sequence.order} sequence → {recipe.model.rnn.kind} → head |",
        f"| Input | grey, {data.height}×{data.width}, preprocessing {data.preprocess.fingerprint[:12]} |",
        f"| Trained on | {data.name}, fingerprint {data.fingerprint} |",
        f"| Recipe, seed, epoch | {recipe.name}, {run.manifest.seed}, {run.best().epoch + 1} of {run.manifest.epochs} |",
        "",
        "## How good it is",
        "",
        *_figures(metrics),
        "",
        "## To be filled in by a person",
        "",
        "- Intended use and users:",
        "- Patients, hospitals and devices the images come from:",
        "- Who labelled the images, and how:",
        "- Known failures and groups not represented:",
        "- Contact:",
    ]
    return "\n".join(lines) + "\n"


def _figures(metrics: dict[str, Any] | None) -> list[str]:
    if metrics is None:
        return ["Not evaluated: exported without a report."]
    lines = [
        f"Part {metrics['split']} of {metrics['dataset']['name']}: {metrics['n']} images of {metrics['patients']} patients.",
        "Intervals (95 %) come from a bootstrap over patients.",
        "",
        "| figure | value | 95 % |",
        "|---|---|---|",
    ]
    for key in ("accuracy", "macro_f1", "macro_auroc", "ece"):
        figure = metrics[key]
        if figure["value"] is not None:
            lines.append(f"| {key} | {figure['value']:.4f} | {figure['ci95'][0]:.4f} to {figure['ci95'][1]:.4f} |")
    return [*lines, *(f"\nNote: {warning}" for warning in metrics.get("warnings", ()))]
