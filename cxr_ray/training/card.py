"""The model card: Markdown that travels with a BUNDLE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cxr_ray.models.calibration import Calibration
from cxr_ray.models.record import GateRecord, ThresholdOrigin
from cxr_ray.training.run import Run


def model_card(
    name: str,
    runs: Sequence[Run],
    weights: Sequence[float],
    *,
    left_out: Sequence[Run] = (),
    unsound: str | None = None,
    metrics: dict[str, Any] | None = None,
    thresholds: Sequence[float | None] | None = None,
    origin: ThresholdOrigin | None = None,
    calibration: Calibration | str,
    gate: GateRecord | str,
) -> str:
    """What it is, what it was trained on, how good it is; what software cannot know is left visibly blank.

    Args:
        name: Of the bundle.
        runs: Its members.
        weights: Their say.
        left_out: Runs that were named but have weight 0.
        unsound: Why it must not be used; stands at the top.
        metrics: ``metrics.json`` of its evaluation; None: the card says that it was not evaluated.
        thresholds: One a label, or of a multiclass model one for one label; None: 0.5 each.
        origin: How they were chosen; None: multiclass, and the most probable label is called.
        calibration: Of the probabilities, or why there is none.
        gate: Its input gate, or why it has none.
    """
    data = runs[0].manifest.dataset
    lines = [f"# {name}", ""]
    if unsound is not None:
        lines += [f"**This model must not be used:** {unsound}", ""]
    lines += ["For research. Not a medical device; not for diagnosis.", "", "| | |", "|---|---|"]
    lines += [f"| Task | {data.task}: {', '.join(data.labels)} |"]
    if len(runs) == 1:
        lines += [f"| Network | {_network(runs[0])} |"]
    lines += [f"| Input | grey, {data.height}×{data.width}, preprocessing {data.preprocess.fingerprint[:12]} |"]
    for told in dict.fromkeys(f"{run.manifest.dataset.name}, fingerprint {run.manifest.dataset.fingerprint}" for run in runs):
        lines += [f"| Trained on | {told} |"]
    if len(runs) == 1:
        lines += [f"| Recipe, seed, epoch | {_recipe(runs[0])} |"]
    else:
        lines += ["", *_members(runs, weights)]
    if left_out:
        folds = ", ".join(_of(run) for run in left_out)
        lines += ["", f"Left out, with a weight of 0: {folds}."]
    if origin is not None:
        lines += ["", *_thresholds(data.labels, thresholds, origin)]
    lines += [
        "",
        "## How good it is",
        "",
        *_figures(metrics, calibrated=not isinstance(calibration, str)),
        "",
        "## Calibration",
        "",
        *_calibration(calibration),
        "",
        "## Audit of the training data",
        "",
        *_audit(runs),
        "",
        "## Input gate",
        "",
        *_gate(gate),
        "",
        "## To be filled in by a person",
        "",
        "- Intended use and users:",
        "- Patients, hospitals and devices the images come from:",
        "- Who labelled the images, and how:",
        "- Known failures and groups not represented:",
        "- Contact:",
        "",
        "`cxr-ray report` fills the checklists CLAIM 2024 and TRIPOD+AI as far as the artefacts know, and leaves the rest blank.",
    ]
    return "\n".join(lines) + "\n"


def _network(run: Run) -> str:
    model = run.recipe.model
    return f"{model.backbone.name} → {model.sequence.order} sequence → {model.rnn.kind} → head"


def _recipe(run: Run) -> str:
    return f"{run.recipe.name}, {run.manifest.seed}, {run.best().epoch + 1} of {run.manifest.epochs}"


def _of(run: Run) -> str:
    """A run in a few words: its fold where it has one."""
    fold = run.manifest.dataset.fold
    return f"fold {fold}" if fold is not None else f"{run.recipe.name}, seed {run.manifest.seed}"


def _members(runs: Sequence[Run], weights: Sequence[float]) -> list[str]:
    lines = [
        f"An ensemble of {len(runs)} models: its answer is the weighted mean of their probabilities.",
        "The members share nothing; memory and time are the sum of theirs.",
        "",
        "| member | network | recipe, seed, epoch | held out | weight |",
        "|---|---|---|---|---|",
    ]
    for index, (run, weight) in enumerate(zip(runs, weights, strict=True)):
        validation = ", ".join(run.manifest.dataset.validation) or "nothing"
        lines.append(f"| {index} | {_network(run)} | {_recipe(run)} | {validation} | {weight:g} |")
    return lines


def _thresholds(labels: Sequence[str], thresholds: Sequence[float | None] | None, origin: ThresholdOrigin) -> list[str]:
    cuts = thresholds if thresholds is not None else [0.5] * len(labels)
    rule = "A label is called present at or above its threshold."
    if origin.positive is not None:
        rule = f"{origin.positive} is called at or above its threshold, else the most probable of the other labels."
    lines = [rule, "", "| label | threshold |", "|---|---|"]
    lines += [f"| {label} | {cut:.4f} |" for label, cut in zip(labels, cuts, strict=True) if cut is not None]
    return [*lines, "", f"Thresholds: {origin.told()}."]


def _calibration(calibration: Calibration | str) -> list[str]:
    if isinstance(calibration, str):
        return [f"None ({calibration}): a probability of 0.8 need not be right in 8 of 10 cases."]
    return [
        f"The probabilities are calibrated: {calibration.told()}.",
        "",
        "| on those images | as the model says it | calibrated, each image without its patient |",
        "|---|---|---|",
        *(
            f"| {name} | {getattr(calibration.before, key):.4f} | {getattr(calibration.after, key):.4f} |"
            for key, name in (("ece", "expected calibration error"), ("brier", "Brier score"), ("log_loss", "log-loss"))
        ),
    ]


def _figures(metrics: dict[str, Any] | None, *, calibrated: bool) -> list[str]:
    if metrics is None:
        return ["Not evaluated: exported without a report."]
    lines = [f"Part {metrics['split']} of {metrics['dataset']['name']}: {metrics['n']} images of {metrics['patients']} patients."]
    if "folds" in metrics:
        lines += ["Each image was scored by the one fold that held it out: these are figures of single folds, not of the ensemble."]
    if calibrated and metrics.get("calibration") is None:
        lines += ["They are of the probabilities as the model says them, before calibration: `evaluate` this bundle for those it answers."]
    lines += ["Intervals (95 %) come from a bootstrap over patients.", "", "| figure | value | 95 % |", "|---|---|---|"]
    for key in ("accuracy", "macro_f1", "macro_auroc", "ece"):
        figure = metrics[key]
        if figure["value"] is not None:
            lines.append(f"| {key} | {figure['value']:.4f} | {figure['ci95'][0]:.4f} to {figure['ci95'][1]:.4f} |")
    return [*lines, *(f"\nNote: {warning}" for warning in metrics.get("warnings", ()))]


def _audit(runs: Sequence[Run]) -> list[str]:
    notes = {run.manifest.dataset.fingerprint: (run.manifest.dataset.name, run.manifest.audit) for run in runs}
    lines = []
    for name, note in notes.values():
        if note is None:
            lines.append(f"- {name}: none was made.")
        elif note.verdict == "skipped":
            lines.append(f"- {name}: **skipped by the user.**")
        else:
            lines += [f"- {name}: **{note.verdict}**.", *(f"  - {finding}" for finding in note.findings)]
    return [*lines, "", "Made by `cxr-ray audit`: shortcuts, copies and patients across parts, doubtful labels."]


def _gate(gate: GateRecord | str) -> list[str]:
    if isinstance(gate, str):
        return [f"None ({gate}): the model answers whatever it is shown, a photograph too."]
    return [
        "Refuses images that are not like those of the training, inverted or turned. "
        f"Fitted on {gate.n} images ({gate.fitted_on}); thresholds from {gate.n_held_out} held-out ones ({gate.held_out}).",
        "",
        "| check | threshold | refused of the held-out images |",
        "|---|---|---|",
        *(f"| {name} | {cut:.4g} | {gate.false_alarms[name]:.2%} |" for name, cut in gate.thresholds.items()),
        f"| any of them | | {gate.false_alarms['any']:.2%} |",
        "",
        f"Of copies of the held-out images: turned by 90, 180 or 270 degrees, {gate.turned_found:.1%} found; "
        f"inverted, {gate.inverted_found:.1%} found.",
    ]
