"""The report's pictures: drawn once, shown as inline SVG, written as SVG, PNG and CSV.

All figures but the curves of ROC and precision come from ``metrics.json``; a picture whose key is not there is left out.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from cxr_ray.labels import LabelSet

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Okabe and Ito's palette: told apart with any colour vision; repeated with dashes after the seventh label."""
GREY: Final = "#777777"
Row = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Picture:
    """One figure with its numbers.

    Args:
        name: Of its files, without ending.
        title: A few words.
        caption: What it shows and how to read it; also said to who cannot see it.
        figure: Drawn.
        columns: Names of the numbers.
        rows: The numbers that are drawn.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    columns: tuple[str, ...]
    rows: Sequence[Row]

    @cached_property
    def svg(self) -> Markup:
        """The figure as an SVG element with real text, without date or address in it. Its ids are its own within a page."""
        stream = io.StringIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "cxr-ray"}):
            self.figure.savefig(
                stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
            )
        text = stream.getvalue()
        for mark in ('id="', "url(#", 'href="#'):
            text = text.replace(mark, f"{mark}{self.name}-")
        return Markup(text[text.index("<svg") :])

    def files(self) -> dict[str, bytes]:
        """File name -> bytes of the SVG, of a PNG of 300 dots an inch on white, and of the numbers."""
        stream, table = io.BytesIO(), io.StringIO(newline="")
        self.figure.savefig(stream, format="png", dpi=300, facecolor="white", metadata={"Software": None})
        writer = csv.writer(table, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        svg = '<?xml version="1.0" encoding="utf-8"?>\n' + str(self.svg)
        return {f"{self.name}.svg": svg.encode(), f"{self.name}.png": stream.getvalue(), f"{self.name}.csv": table.getvalue().encode()}


def pictures_of(
    metrics: Mapping[str, Any],
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    labels: LabelSet,
    history: Sequence[Mapping[str, Any]] = (),
    best_epoch: int | None = None,
) -> list[Picture]:
    """Every picture that an evaluation can draw.

    Args:
        metrics: ``metrics.json``.
        probabilities: (N, K), 0..1.
        targets: (N,) indices, or (N, K) of 1, 0 and NaN.
        labels: The K names.
        history: A record an epoch; empty where not at hand.
        best_epoch: The epoch kept, for the mark in the learning curves.
    """
    found = list(_curves(probabilities, targets, labels))
    if metrics.get("reliability"):
        found.append(_reliability(metrics["reliability"], labels))
    if metrics.get("decision_curve"):
        found.append(_decision_curve(metrics["decision_curve"], labels))
    if (metrics.get("subgroups") or {}).get("attributes"):
        found += _forest(metrics["subgroups"]["attributes"], metrics["macro_auroc"])
    if history:
        found.append(_learning(history, best_epoch))
    return found


def _curves(probabilities: NDArray[Any], targets: NDArray[Any], labels: LabelSet) -> Iterator[Picture]:
    """ROC and precision-recall; a label without both answers has no line."""
    roc, roc_axes = canvas("False positive rate (1 - specificity)", "True positive rate (sensitivity)")
    recall, recall_axes = canvas("Recall (sensitivity)", "Precision")
    roc_axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    roc_rows: list[Row] = []
    recall_rows: list[Row] = []
    for index, name in enumerate(labels.names):
        truth = (targets == index).astype(float) if labels.task == "multiclass" else targets[:, index]
        known = ~np.isnan(truth)
        truth, score = truth[known], probabilities[known, index]
        if len(np.unique(truth)) < 2:
            continue
        false_positive, true_positive, _ = roc_curve(truth, score)
        roc_axes.plot(false_positive, true_positive, **_style(index, name))
        roc_rows += [(name, round(float(x), 5), round(float(y), 5)) for x, y in zip(false_positive, true_positive, strict=True)]
        precision, sensitivity, _ = precision_recall_curve(truth, score)
        recall_axes.plot(sensitivity, precision, **_style(index, name))
        recall_rows += [(name, round(float(x), 5), round(float(y), 5)) for x, y in zip(sensitivity, precision, strict=True)]
    for axes in (roc_axes, recall_axes):
        _unit_square(axes)
    caption = "Receiver operating characteristic, each label against the rest: the nearer to the upper left corner, the better."
    yield Picture("roc", "ROC", caption, roc, ("label", "false_positive_rate", "true_positive_rate"), roc_rows)
    caption = "How many of the called cases are right, while more and more cases are found."
    yield Picture("precision-recall", "Precision and recall", caption, recall, ("label", "recall", "precision"), recall_rows)


def _reliability(found: Mapping[str, Any], labels: LabelSet) -> Picture:
    figure, axes = canvas("Probability said", "Share that is so")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    rows: list[Row] = []
    for index, name in enumerate(labels.names):
        bins = (found.get(name) or {}).get("bins") or []
        if not bins:
            continue
        said, so = [one["said"] for one in bins], [one["so"] for one in bins]
        low, high = (np.array([one["ci95"][side] for one in bins]) for side in (0, 1))
        style = _style(index, name)
        axes.errorbar(said, so, yerr=np.maximum(0, [so - low, high - so]), marker="o", markersize=3, elinewidth=0.8, capsize=2, **style)
        rows += [(name, one["said"], one["so"], *one["ci95"], one["n"], one["patients"]) for one in bins]
    _unit_square(axes)
    caption = "On the dotted line a probability means what it says; bars are 95 % intervals."
    return Picture("reliability", "Reliability", caption, figure, ("label", "said", "so", "low", "high", "images", "patients"), rows)


def _decision_curve(found: Mapping[str, Any], labels: LabelSet) -> Picture:
    figure, axes = canvas("Probability from which one acts", "Net benefit")
    thresholds, rows, top = found["thresholds"], [], 0.05
    for index, name in enumerate(labels.names):
        curve = found["per_label"].get(name)
        if curve is None:
            continue
        axes.plot(thresholds, curve["model"], **_style(index, name))
        axes.fill_between(thresholds, curve["low"], curve["high"], color=COLOURS[index % len(COLOURS)], alpha=0.12, linewidth=0)
        axes.plot(thresholds, curve["all"], color=COLOURS[index % len(COLOURS)], linewidth=0.8, linestyle=":")
        top = max(top, *curve["model"], *curve["high"])
        columns = (curve[key] for key in ("model", "low", "high", "all"))
        rows += [(name, *values) for values in zip(thresholds, *columns, strict=True)]
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_ylim(-0.1 * top, 1.1 * top)
    _legend(axes)
    caption = "The model is of use where its line is above both acting on everybody (dotted) and acting on nobody (0)."
    return Picture("decision-curve", "Decision curve", caption, figure, ("label", "threshold", "model", "low", "high", "all"), rows)


def _forest(attributes: Mapping[str, Any], whole: Mapping[str, Any]) -> list[Picture]:
    """Macro AUROC of every group that is large enough, beside that of all images."""
    rows: list[Row] = [("all", "all images", whole["value"], *(whole["ci95"] or (None, None)), None)]
    for attribute, groups in attributes.items():
        for one in groups:
            auroc = (one["figures"] or {}).get("macro_auroc")
            if auroc is not None and auroc["value"] is not None:
                rows.append((attribute, one["group"], auroc["value"], *(auroc["ci95"] or (None, None)), one["n"]))
    if len(rows) < 2 or whole["value"] is None:
        return []
    figure = Figure(figsize=(6.4, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, _, value, low, high, _) in enumerate(rows):
        axes.plot(value, place, "s" if place == 0 else "o", color=COLOURS[0], markersize=5)
        if low is not None:
            axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=1.2)
    axes.axvline(whole["value"], color=GREY, linewidth=0.8, linestyle=":")
    told = [f"{group} ({attribute}, {n})" if n is not None else group for attribute, group, *_, n in rows]
    axes.set_yticks(range(len(rows)), told)
    axes.invert_yaxis()
    axes.set_xlabel("Macro AUROC", fontsize=8)
    plain(axes)
    caption = "AUROC with its 95 % interval, in brackets the attribute and the images; dotted: all images together."
    return [
        Picture("subgroups", "Groups of patients", caption, figure, ("attribute", "group", "macro_auroc", "low", "high", "images"), rows)
    ]


def _learning(history: Sequence[Mapping[str, Any]], best_epoch: int | None) -> Picture:
    """Loss of both parts, and validation accuracy and macro F1, over epochs; the kept epoch is marked."""
    figure = Figure(figsize=(7.6, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [record["epoch"] + 1 for record in history]
    series = (
        (left, "train_loss", "training"),
        (left, "val_loss", "validation"),
        (right, "val_accuracy", "accuracy"),
        (right, "val_macro_f1", "macro F1"),
        (right, "val_macro_auroc", "macro AUROC"),
    )
    for place, (axes, key, name) in enumerate(series):
        values = [record.get(key) for record in history]
        if any(value is not None for value in values):
            points = [float("nan") if value is None else value for value in values]
            axes.plot(epochs, points, label=name, color=COLOURS[place], linewidth=1.6, marker="." if len(epochs) < 20 else None)
    for axes, title in ((left, "Loss"), (right, "Validation")):
        if best_epoch is not None:
            axes.axvline(best_epoch + 1, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_xlabel("Epoch", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(title, fontsize=9)
        plain(axes)
        _legend(axes)
    keys = tuple(key for _, key, _ in series)
    rows = [(epoch, *(record.get(key) for key in keys)) for epoch, record in zip(epochs, history, strict=True)]
    kept = f" The dotted line marks the epoch that was kept ({best_epoch + 1})." if best_epoch is not None else ""
    return Picture("learning", "Learning curves", f"Loss and validation figures over epochs.{kept}", figure, ("epoch", *keys), rows)


def _style(index: int, name: str) -> dict[str, Any]:
    dashed = index >= len(COLOURS)
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": "--" if dashed else "-", "label": name, "linewidth": 1.6}


def canvas(across: str, up: str, *, width: float = 3.6, height: float = 3.3) -> tuple[Figure, Axes]:
    """A figure of so many inches with plain axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """No box, small numbers, a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    _legend(axes)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7, loc="best")


def to_png_uri(pixels: NDArray[np.uint8], side: int = 160) -> str:
    """An image (H, W) or (H, W, 3) uint8 as a ``data:`` address, at most ``side`` pixels wide and high."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
