from __future__ import annotations

from typing import Any

from cxr_ray.config import Claim
from cxr_ray.reproduction.plan import NotRun
from cxr_ray.reproduction.table import Row, html, markdown, sections


def figure(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "ci95": [low, high]}


def arm(accuracy: float, **changes: Any) -> dict[str, Any]:
    facts = {
        "dataset": {"name": "small", "fingerprint": "f", "policy": "grouped"},
        "image_size": [64, 64],
        "figures": {
            "accuracy": figure(accuracy, accuracy - 0.05, accuracy + 0.05),
            "macro_f1": figure(0.5, 0.4, 0.6),
            "macro_auroc": figure(None),
        },
        "key": "small",
        "n": 100,
        "patients": 90,
        "epochs": 8,
        "runs": 5,
        "best_loss_epoch": 3,
        "seconds_per_epoch": 12.34,
        "images_per_second": 56.7,
        "parameters": 1234567,
        "parameters_learning": 1000,
        "flops": 2_500_000_000,
    }
    return {**facts, **changes}


DIFFERENCE = {
    "figures": {"accuracy": {"a": figure(0.81), "b": figure(0.80), "difference": figure(0.01, -0.02, 0.04)}},
    "mcnemar": {"accuracy": {"only_a_right": 7, "only_b_right": 5, "p": 0.774}},
}
MADE = {"small": "cxr-ray ingest x"}
ROWS = [
    Row(
        "system",
        "001",
        Claim(data="4,575 images", figures={"accuracy": 0.994, "images_per_second": 24.9}, note="One note"),
        {"honest": arm(0.81), "released": arm(0.99)},
        failed={"published": "no | weights"},
        difference=DIFFERENCE,
        changes="64 pixels.",
    ),
    Row("bare", None, None, {"honest": arm(0.7, best_loss_epoch=None, runs=1)}),
]


def test_claims_stand_beside_what_was_measured() -> None:
    claims, rnn, cost, changes, not_run, data = sections(ROWS, [NotRun(systems="others", why="too slow")], MADE)
    assert claims.rows[0] == [
        "system",
        "small, 100 images, 90 patients",
        "accuracy 0.9940, images per second 24.9 (4,575 images). One note",
        "accuracy 0.9900 [0.9400, 1.0400]; macro F1 0.5000 [0.4000, 0.6000]",
        "–",
        "accuracy 0.8100 [0.7600, 0.8600]; macro F1 0.5000 [0.4000, 0.6000]",
    ]
    assert claims.rows[1][2] == "–"
    assert list(rnn.rows) == [["system", "accuracy", "0.8100", "0.8000", "+0.0100 [-0.0200, +0.0400]", "7 v. 5, p = 0.774"]]
    assert cost.rows[0] == ["system", "honest", "64×64", "1,234,567", "1,000", "2.50", "12.3", "57", "8 × 5", "3"]
    assert cost.rows[2][-2:] == ["8", "–"]
    assert list(changes.rows) == [["system", "64 pixels."]]
    assert list(data.rows) == [["small", "cxr-ray ingest x", "grouped", "f"]]
    assert list(not_run.rows) == [["others", "too slow"], ["system (published)", "no | weights"]]


def test_a_section_without_rows_is_left_out() -> None:
    assert [section.title for section in sections([ROWS[1]], [], MADE)] == ["Claimed and measured", "Cost", "Data"]


def test_pages_say_the_same() -> None:
    found = sections(ROWS, [], MADE)
    text, page = markdown("Title", ["A `<note>`."], found), html("Title", ["A `<note>`."], found)
    assert "| system (published) | no \\| weights |" in text
    assert "A <code>&lt;note&gt;</code>." in page
    for section in found:
        for row in section.rows:
            assert all(cell.replace("|", "\\|") in text for cell in row)
    assert "http" not in page
