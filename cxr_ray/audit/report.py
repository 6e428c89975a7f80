"""``audit.json`` and ``audit.html``: one page that opens without a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_ray import storage
from cxr_ray.audit.dataset import DatasetAudit
from cxr_ray.audit.record import AuditRecord, Check, Verdict
from cxr_ray.page import template

RECORD: Final = "audit.json"
PAGE: Final = "audit.html"
WORDS: Final[dict[Verdict, str]] = {"ok": "ok", "warn": "look", "fail": "fail"}
READINGS: Final[dict[Verdict, str]] = {
    "ok": "Nothing was found that a model could be right by for the wrong reasons.",
    "warn": "Something other than disease goes with the label. Read what is marked below before you trust a figure.",
    "fail": "A model can score here without looking at disease. Figures from these data say little until what is marked below is mended.",
}


@dataclass(frozen=True)
class Picture:
    """An image of the gallery."""

    pixels: NDArray[np.uint8]
    """(H, W)."""
    caption: str


def write_audit(audit: DatasetAudit, out: str) -> None:
    """Write the page and then the record below ``out``, a local path or a URI.

    Raises:
        StorageError: It cannot be written.
    """
    gallery = [
        Picture(audit.sample.images[doubt.row], f"{doubt.given}; the others say {doubt.suggested} ({doubt.probability:.2f})")
        for doubt in audit.doubts
    ]
    write_record(audit.record, out, gallery=gallery)


def write_record(record: AuditRecord, out: str, *, gallery: Sequence[Picture] = ()) -> None:
    """The same for any record."""
    storage.write_bytes(storage.join(out, PAGE), render(record, gallery=gallery).encode())
    storage.write_json(storage.join(out, RECORD), record.model_dump(mode="json", by_alias=True))


def render(record: AuditRecord, *, gallery: Sequence[Picture] = ()) -> str:
    """HTML without any external reference."""
    page = template(__file__, "audit.html", figure=figure, png=_uri, place=_place)
    return page.render(record=record, words=WORDS, reading=READINGS[record.verdict], gallery=gallery)


def figure(check: Check) -> str:
    """``0.912 [0.870, 0.948]``; a count as it is; ``–`` where there is nothing to tell."""
    if check.value is None:
        return "–"
    if check.ci95 is None:
        return f"{check.value:,.0f}" if check.value == int(check.value) else f"{check.value:.3f}"
    return f"{check.value:.3f} [{check.ci95[0]:.3f}, {check.ci95[1]:.3f}]"


def _place(value: float) -> float:
    """Where a value of 0..1 lies on a bar of 200 pixels."""
    return round(200 * min(max(float(value), 0.0), 1.0), 1)


def _uri(pixels_HW: NDArray[np.uint8]) -> str:
    return "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", pixels_HW)[1].tobytes()).decode()
