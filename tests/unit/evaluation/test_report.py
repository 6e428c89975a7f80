"""The report is one file that opens offline and shows what the metrics say."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from cxr_ray.evaluation.metrics import compute_metrics
from cxr_ray.evaluation.report import choose_samples, describe, render_report
from cxr_ray.labels import LabelSet

CASES = {
    "multiclass": LabelSet(("covid", "normal", "pneu<monia>"), "multiclass"),
    "multilabel": LabelSet(("effusion", "nodule", "hernia"), "multilabel"),
}


def page(labels: LabelSet, **changes: Any) -> tuple[str, dict[str, Any]]:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(3), 80)
    targets = generator.integers(0, 3, 80) if labels.task == "multiclass" else generator.integers(0, 2, (80, 3)).astype(float)
    if labels.task == "multilabel":
        targets[:, 2] = 0  # never occurs
        targets[3, 0] = np.nan
    metrics = compute_metrics(probabilities, targets, generator.integers(0, 30, 80).astype(str), labels, split="test", resamples=50)
    images = generator.integers(0, 256, (80, 40, 40), dtype=np.uint8)
    chosen = choose_samples(probabilities, targets, labels)
    samples = {kind: [describe(row, images[row], probabilities, targets, labels) for row in rows] for kind, rows in chosen.items()}
    history = [
        {"epoch": epoch, "train_loss": 1 / (epoch + 1), "val_loss": None if epoch == 1 else 0.5, "val_accuracy": 0.5} for epoch in range(3)
    ]
    arguments: dict[str, Any] = {
        "title": "a model",
        "metrics": metrics,
        "probabilities": probabilities,
        "targets": targets,
        "labels": labels,
        "samples": samples,
        "history": history,
        "best_epoch": 1,
        "provenance": {"Data": "phantoms"},
        "warnings": ["mind the gap"],
    }
    return render_report(**{**arguments, **changes}), metrics


class Checker(HTMLParser):
    """Collects addresses and open tags."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.alts: list[str | None] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.addresses += [value or "" for name, value in attributes if name in {"src", "href", "xlink:href"}]
        if tag == "img":
            self.alts.append(found.get("alt"))


@pytest.mark.parametrize("task", CASES)
def test_it_opens_offline_and_says_what_the_metrics_say(task: str) -> None:
    text, metrics = page(CASES[task])
    checker = Checker()
    checker.feed(text)
    assert all(address.startswith(("data:", "#")) for address in checker.addresses)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert f"{metrics['accuracy']['value']:.3f}" in text
    assert "mind the gap" in text
    assert "Not a medical device" in text
    assert checker.alts
    assert all(checker.alts)
    assert text.count("<svg") == 3  # ROC, precision and recall, learning curves: the other figures need more of metrics.json
    assert "In plain words" in text
    assert len(text) < 2_000_000


def test_labels_are_escaped() -> None:
    text, _ = page(CASES["multiclass"])
    assert "<monia>" not in text
    assert "pneu&lt;monia&gt;" in text


def test_without_history_there_are_no_learning_curves() -> None:
    text, _ = page(CASES["multiclass"], history=[], best_epoch=None)
    assert "Learning curves" not in text


def test_the_gallery_of_errors_holds_errors_the_surest_first() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.45, 0.55], [0.99, 0.01]])
    labels = LabelSet(("a", "b"), "multiclass")
    assert choose_samples(probabilities, np.array([1, 1, 0, 0]), labels)["errors"] == [0, 2]
