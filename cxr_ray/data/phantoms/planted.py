"""What is wrong with the data on purpose: copies of images, some under another patient, and files that cannot be read.

A near copy is the other image saved again as JPEG after a small cut, a change of brightness, or a change of size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_ray.data.phantoms.encode import encode_jpeg
from cxr_ray.data.phantoms.plan import file_name, stream

FAULTS = ("truncated-jpeg", "empty", "text-as-png", "truncated-png")
"""Kinds of unreadable files, planted in turn."""


@dataclass(frozen=True)
class Copy:
    """A planted copy."""

    name: str
    original: int
    """Number of the image it shows."""
    kind: Literal["near", "exact"]
    edits: tuple[str, ...]
    patient_id: str | None
    """Its own patient; None: that of the original."""


def plan_copies(task: str, seed: int, count: int, *, near: int, exact: int) -> list[Copy]:
    """Copies of different images: ``near`` near ones, then ``exact`` ones; every second under a patient of its own."""
    rng = stream(task, seed, "copies")
    originals = rng.choice(count, size=near + exact, replace=False)
    copies = []
    for number, original in enumerate(originals):
        kind: Literal["near", "exact"] = "near" if number < near else "exact"
        others = [str(edit) for edit in rng.permutation(("crop", "brightness", "resize"))]
        edits = ("jpeg", *sorted(others[: int(rng.integers(1, 4))])) if kind == "near" else ()
        alias = f"P{900001 + number}" if number % 2 else None
        copies.append(Copy(file_name(task, seed, "copy", number), int(original), kind, edits, alias))
    return copies


def near_copy(image: NDArray[np.uint8], edits: tuple[str, ...], rng: np.random.Generator) -> bytes:
    """JPEG bytes of ``image`` after ``edits``.

    ``crop``: up to 2.5 % a side; ``brightness``: gain 0.75 to 0.95 and an offset; ``resize``: 0.75 to 1.2 times.
    """
    copy = image
    height, width = image.shape
    if "crop" in edits:
        top, bottom, left, right = (
            round(part * side) for part, side in zip(rng.uniform(0.005, 0.025, 4), (height, height, width, width), strict=True)
        )
        copy = copy[top : height - bottom, left : width - right]
    if "brightness" in edits:
        gain = rng.uniform(0.75, 0.95)  # below 1: nothing is cut off at black or white
        copy = np.rint(copy.astype(np.float32) * gain + rng.uniform(0, 255 * (1 - gain))).astype(np.uint8)
    if "resize" in edits:
        scale = rng.uniform(0.75, 1.2)
        size = (round(copy.shape[1] * scale), round(copy.shape[0] * scale))
        copy = np.asarray(cv2.resize(copy, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR), np.uint8)
    return encode_jpeg(np.ascontiguousarray(copy), int(rng.integers(70, 92)))


def corrupt_file(fault: str, png: bytes, jpeg: bytes) -> tuple[str, bytes]:
    """File suffix and bytes of one unreadable file, made from a good PNG and a good JPEG."""
    if fault == "truncated-jpeg":
        return ".jpg", jpeg[: len(jpeg) * 2 // 5]
    if fault == "truncated-png":
        return ".png", png[: len(png) // 2]
    if fault == "empty":
        return ".png", b""
    return ".png", b"This is a text file that somebody named .png.\n"
