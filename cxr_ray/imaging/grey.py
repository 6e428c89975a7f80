"""DICOM's grey-scale pipeline as one table: stored value -> modality -> VOI -> polarity -> 8 bits.

A stored value has at most 16 bits, so the whole pipeline (PS3.3 C.11.1, C.11.2 and C.7.6.3.1.2, in that order) is computed
once for each of at most 65,536 values in double precision, and rounded to 8 bits once, at the end. A picture of any size
then costs one look-up a pixel and no floating-point copy of itself.

Where we differ from the standard, or choose where it leaves a choice:

- Neither VOI LUT nor a usable window: the full range of the bit depth after the modality step. Not the brightest value found,
  so that two pictures of one machine stay comparable.
- **A window that does not belong to the pixels** (seen: a window of 0-5,400 over values from 32,744 up, all white) or a bit
  depth that the pixels hardly use (12 bit data declared as 16) would leave a flat picture. If fewer than 16 grey levels
  remain between the 1st and 99th percentile of a picture that has at least 64 stored levels there, the range between those
  percentiles is used instead, and the picture carries the remark ``own-range``.
- Of several windows or LUTs the first is used. An unknown VOI LUT Function is taken as LINEAR, a window narrower than the
  standard allows as absent.
- Polarity follows Photometric Interpretation alone. Of the two files at hand in which Pixel Intensity Relationship Sign
  contradicts it, one is right and one is wrong; what a picture *looks* like is for the audit to judge, not for the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cxr_ray.imaging.picture import PixelsHW

Values = NDArray[np.float64]
PatternsHW = NDArray[np.uint8] | NDArray[np.uint16]

_LEAST_SHOWN = 16
_LEAST_STORED = 64
_SAMPLE_PIXELS = 1_000_000
_CHUNK_PIXELS = 1_000_000


@dataclass(frozen=True, slots=True)
class LookUpTable:
    """A Modality or VOI LUT: ``data[value - first]``, held at both ends.

    Args:
        first: The input value of the first entry.
        data: The entries.
        bits: Their depth; the output range is 0 .. 2^bits - 1.
    """

    first: int
    data: Values
    bits: int

    def apply(self, values: Values) -> Values:
        """``values`` through the table."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.data) - 1)
        result: Values = self.data[index.astype(np.int64)]
        return result


@dataclass(frozen=True, slots=True)
class Window:
    """A VOI window in modality units (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

    center: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"

    @property
    def usable(self) -> bool:
        """Whether the standard allows this width."""
        return bool(np.isfinite(self.center) and np.isfinite(self.width)) and (
            self.width >= 1 if self.function == "LINEAR" else self.width > 0
        )

    def apply(self, values: Values) -> Values:
        """``values`` as 0 (black) .. 1 (white)."""
        if self.function == "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * (values - self.center) / self.width, -700, 700)))
        center, width = (self.center - 0.5, self.width - 1) if self.function == "LINEAR" else (self.center, self.width)
        if width == 0:
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0, 1)


@dataclass(frozen=True, slots=True)
class GreyScale:
    """Everything in a header that decides how a stored value is shown.

    Args:
        bits_stored: 1-16; the depth on which signs, ranges and polarity are taken.
        signed: Pixel Representation 1.
        inverted: Photometric Interpretation MONOCHROME1.
        slope: Rescale Slope; not used beside a modality LUT.
        intercept: Rescale Intercept.
        modality_lut: Takes the place of slope and intercept.
        voi_lut: Goes before the window.
        window: The first one.
    """

    bits_stored: int
    signed: bool = False
    inverted: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    modality_lut: LookUpTable | None = None
    voi_lut: LookUpTable | None = None
    window: Window | None = None


def render(patterns: PatternsHW, depth: int, scale: GreyScale, *, shift: int = 0) -> tuple[PixelsHW, tuple[str, ...]]:
    """Show stored values as grey.

    Args:
        patterns: (H, W) bit patterns; signed values in two's complement of ``depth`` bits. Bits above are ignored.
        depth: Bits of a pattern: Bits Stored of native data, the precision of the compressed stream of others.
        scale: The header's rules.
        shift: Bits below the stored ones (High Bit + 1 - Bits Stored).

    Returns:
        (H, W) uint8 pixels and remarks.
    """
    stored = stored_values(depth, scale)
    modality, low, high = modality_values(stored, scale)
    display = _voi(modality, low, high, scale)
    table = to_uint8(display, inverted=scale.inverted)
    step = max(1, int(np.ceil(np.sqrt(patterns.size / _SAMPLE_PIXELS))))
    sample = (patterns[::step, ::step] >> shift) & (len(stored) - 1)
    shown = np.percentile(table[sample], (1, 99))
    if shown[1] - shown[0] < _LEAST_SHOWN:
        low, high = (float(value) for value in np.percentile(modality[sample], (1, 99)))
        spread = np.percentile(stored[sample], (1, 99))
        if spread[1] - spread[0] >= _LEAST_STORED and high > low:
            table = to_uint8(np.clip((modality - low) / (high - low), 0, 1), inverted=scale.inverted)
            return map_pixels(table, patterns, shift=shift), ("own-range",)
    return map_pixels(table, patterns, shift=shift), ()


def stored_values(depth: int, scale: GreyScale) -> Values:
    """The stored value of each bit pattern 0 .. 2^depth - 1, held to the range of Bits Stored."""
    values = np.arange(2**depth, dtype=np.float64)
    if scale.signed:
        values[2 ** (depth - 1) :] -= 2**depth
    low, high = _stored_range(scale)
    return np.clip(values, low, high)


def modality_values(stored: Values, scale: GreyScale) -> tuple[Values, float, float]:
    """Modality LUT or rescale (PS3.3 C.11.1), and the lowest and highest value it can give."""
    if scale.modality_lut is not None:
        return scale.modality_lut.apply(stored), 0.0, 2.0**scale.modality_lut.bits - 1
    ends = sorted(value * scale.slope + scale.intercept for value in _stored_range(scale))
    return stored * scale.slope + scale.intercept, ends[0], ends[1]


def to_uint8(display: Values, *, inverted: bool) -> PixelsHW:
    """0 .. 1 -> 0 .. 255, MONOCHROME1 inverted; halves are rounded up in both polarities alike."""
    levels = (1 - display if inverted else display) * 255
    # Without the first rounding, the last bits of a double would decide the halves differently in the two polarities.
    return np.floor(np.round(levels, 6) + 0.5).astype(np.uint8)


def map_pixels(table: PixelsHW, patterns: NDArray[Any], *, shift: int = 0) -> PixelsHW:
    """``table[(patterns >> shift) % len(table)]``, a few rows at a time (NumPy would make 64 bit indices of all of them)."""
    result = np.empty(patterns.shape, dtype=np.uint8)
    rows = max(1, _CHUNK_PIXELS // max(1, patterns.shape[1]))
    for row in range(0, len(patterns), rows):
        chunk = patterns[row : row + rows]
        result[row : row + rows] = table[(chunk >> shift) & (len(table) - 1)]
    return result


def _stored_range(scale: GreyScale) -> tuple[int, int]:
    if scale.signed:
        return -(2 ** (scale.bits_stored - 1)), 2 ** (scale.bits_stored - 1) - 1
    return 0, 2**scale.bits_stored - 1


def _voi(values: Values, low: float, high: float, scale: GreyScale) -> Values:
    """VOI LUT, else window, else full range, as 0 .. 1."""
    if scale.voi_lut is not None:
        return np.clip(scale.voi_lut.apply(values) / (2.0**scale.voi_lut.bits - 1), 0, 1)
    if scale.window is not None and scale.window.usable:
        return scale.window.apply(values)
    return np.clip((values - low) / (high - low), 0, 1)
