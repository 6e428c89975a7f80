"""The report's pictures as inline SVG: ROC, precision-recall, reliability, learning curves; and thumbnails as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve

from cxr_ray.labels import LabelSet

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Okabe and Ito's palette: told apart with any colour vision; repeated with dashes after the seventh label."""


def label_curves(probabilities: NDArray[Any], targets: NDArray[Any], labels: LabelSet) -> dict[str, str]:
    """ROC, precision-recall and reliability of every label.

    Args:
        probabilities: (N, K), 0..1.
        targets: (N,) indices, or (N, K) of 1, 0 and NaN.
        labels: The K names.

    Returns:
        ``{"roc": svg, "precision_recall": svg, "reliability": svg}``; a label without both answers has no line.
    """
    roc, roc_axes = _canvas("False positive rate", "True positive rate (sensitivity)")
    recall, recall_axes = _canvas("Recall (sensitivity)", "Precision")
    reliability, reliability_axes = _canvas("Probability said", "Share that is so")
    roc_axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
    reliability_axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
    for index, name in enumerate(labels.names):
        truth = (targets == index).astype(float) if labels.task == "multiclass" else targets[:, index]
        known = ~np.isnan(truth)
        truth, score = truth[known], probabilities[known, index]
        if len(np.unique(truth)) < 2:
            continue
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": "-" if index < len(COLOURS) else "--",
            "label": name,
            "linewidth": 1.6,
        }
        false_positive, true_positive, _ = roc_curve(truth, score)
        roc_axes.plot(false_positive, true_positive, **style)
        precision, sensitivity, _ = precision_recall_curve(truth, score)
        recall_axes.plot(sensitivity, precision, **style)
        share, said = calibration_curve(truth, score, n_bins=10, strategy="quantile")
        reliability_axes.plot(said, share, marker="o", markersize=3, **style)
    for axes in (roc_axes, recall_axes, reliability_axes):
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        if axes.lines[0].get_label() in labels.names or len(axes.lines) > 1:
            axes.legend(frameon=False, fontsize=7, loc="best")
    return {"roc": to_svg(roc), "precision_recall": to_svg(recall), "reliability": to_svg(reliability)}


def learning_curves(history: Sequence[Mapping[str, Any]], best_epoch: int | None) -> str:
    """Loss of both parts, and validation accuracy and macro F1, over epochs; the kept epoch is marked."""
    with rc_context({"svg.fonttype": "none"}):
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
            axes.axvline(best_epoch + 1, color="#999999", linewidth=0.8, linestyle=":")
        axes.set_xlabel("Epoch", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(title, fontsize=9)
        _plain(axes)
        if axes.lines:
            axes.legend(frameon=False, fontsize=7)
    return to_svg(figure)


def _canvas(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.15, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)


def to_svg(figure: Figure) -> str:
    """The figure as an SVG element with real text, without date or address in it."""
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "cxr-ray"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def to_png_uri(pixels: NDArray[np.uint8], side: int = 160) -> str:
    """A grey image (H, W) uint8 as a ``data:`` address, at most ``side`` pixels wide and high."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
