"""Grey image -> network input: equalise -> blur -> resize, as one frozen, fingerprinted specification.

Ingest, prediction and service all go through :func:`load_image`, so a model is never served with other preprocessing than it
was trained with; a BUNDLE carries the fingerprint and is refused where it is not met.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cxr_ray.imaging.decode import decode
from cxr_ray.imaging.picture import DecodedImage, Limits, PixelsHW
from cxr_ray.settings import Settings

CLAHE_CLIP_LIMIT = 2.0
CLAHE_TILES = (8, 8)


class PreprocessSpec(Settings):
    """How a decoded image becomes (height, width) uint8 pixels. Any change of what a field does raises ``version``."""

    height: int = Field(default=224, ge=1, le=4096)
    """Pixels."""
    width: int = Field(default=224, ge=1, le=4096)
    """Pixels."""
    equalize: Literal["none", "hist", "clahe"] = "none"
    """``hist``: global histogram equalisation. ``clahe``: contrast-limited adaptive (clip limit 2, 8 x 8 tiles)."""
    blur: Literal[0, 3, 5] = 0
    """Side of the Gaussian kernel in pixels of the original; 0: off."""
    keep_aspect: bool = False
    """Scale to fit and pad with black, centred, instead of stretching."""
    version: Literal[1] = 1
    """Of the algorithm behind the fields."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of all fields: equal if and only if the preprocessing is."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_image(data: bytes, spec: PreprocessSpec, limits: Limits | None = None) -> tuple[PixelsHW, DecodedImage]:
    """File content -> network input: **the** path of ingest, prediction and service.

    Args:
        data: The whole file.
        spec: What the model was, or will be, trained with.
        limits: See :class:`Limits`; None: its defaults.

    Returns:
        (spec.height, spec.width) uint8 pixels, and the decoded image they were made from.

    Raises:
        ImageError: The file cannot be used.
    """
    image = decode(data, limits)
    return preprocess(image.pixels, spec), image


def preprocess(pixels: PixelsHW, spec: PreprocessSpec) -> PixelsHW:
    """Equalise, blur and resize, in this order (papers 000-003 equalise the original, then shrink it).

    The result depends on the arguments alone: not on OpenCV's number of threads, and not on other images.

    Args:
        pixels: (H, W) uint8 with dense tissue bright.
        spec: The specification.

    Returns:
        (spec.height, spec.width) uint8, C-contiguous, never a view of ``pixels``.
    """
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"expected (H, W) uint8 pixels, got shape {pixels.shape} of {pixels.dtype}")
    image: NDArray[Any] = np.ascontiguousarray(pixels)
    if spec.equalize == "hist":
        image = cv2.equalizeHist(image)
    elif spec.equalize == "clahe":
        image = cv2.createCLAHE(CLAHE_CLIP_LIMIT, CLAHE_TILES).apply(image)
    if spec.blur:
        image = cv2.GaussianBlur(image, (spec.blur, spec.blur), 0)
    if not spec.keep_aspect:
        return _resize(image, spec.height, spec.width)
    scale = min(spec.height / image.shape[0], spec.width / image.shape[1])
    height = min(spec.height, max(1, round(image.shape[0] * scale)))
    width = min(spec.width, max(1, round(image.shape[1] * scale)))
    canvas = np.zeros((spec.height, spec.width), dtype=np.uint8)
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    canvas[top : top + height, left : left + width] = _resize(image, height, width)
    return canvas


def _resize(image: NDArray[Any], height: int, width: int) -> PixelsHW:
    """Shrink by area averaging, enlarge bilinearly; each side by what it needs, so that neither aliases."""
    smaller = (min(width, image.shape[1]), min(height, image.shape[0]))
    shrunk = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    resized = cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.array(resized, dtype=np.uint8, order="C")
