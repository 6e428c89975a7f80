"""From centimetres of water to grey values: attenuation, scatter, photon noise, detector, window, gamma."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxr_ray.data.phantoms.canvas import Array, Frame


@dataclass(frozen=True)
class Exposure:
    """One exposure and how it was shown. Drawn for each image, independently of what it shows."""

    attenuation: float
    """Of water, 1/cm: lower at higher tube voltage, which also flattens the picture."""
    scatter: float
    """Scattered over direct radiation behind the body."""
    photons: float
    """Detected per pixel without a patient."""
    electronic_noise: float
    """Standard deviation of the detector's own noise, in photons."""
    unsharp: float
    """Blur of focal spot and detector, cm."""
    enhance: float
    """How much of the local contrast is added again (the maker's edge enhancement)."""
    window: tuple[float, float]
    """Quantiles of the signal that become black and white."""
    headroom: float
    """How far white lies above the window's upper end, as a part of the window."""
    gamma: float
    curve: float
    """Steepness of the S-shaped display curve; 0: straight."""
    shading: tuple[float, float]
    """Slope of the exposure over the field (heel effect), right and down."""


def sample_exposure(rng: np.random.Generator, *, portable: bool) -> Exposure:
    """An exposure; ``portable`` (AP, at the bedside) scatters more and gets fewer photons."""
    return Exposure(
        attenuation=float(rng.uniform(0.14, 0.21)),
        scatter=float(rng.uniform(0.25, 0.6) + 0.25 * portable),
        photons=float(10 ** rng.uniform(4.1, 4.9) * (0.6 if portable else 1.0)),
        electronic_noise=float(rng.uniform(2, 8)),
        unsharp=float(rng.uniform(0.0, 0.09)),
        enhance=float(rng.choice([0.0, 0.0, 0.4, 0.9]) * rng.uniform(0.6, 1.3)),
        window=(float(rng.uniform(0.0, 0.03)), float(rng.uniform(0.96, 1.0))),
        headroom=float(rng.uniform(0.0, 0.2)),
        gamma=float(np.exp(rng.normal(0.15, 0.28))),
        curve=float(rng.uniform(0.0, 3.0)),
        shading=(float(rng.normal(0, 0.10)), float(rng.normal(0, 0.12))),
    )


def expose(water: Array, exposure: Exposure, frame: Frame, rng: np.random.Generator) -> Array:
    """Signal of the detector, as the negative logarithm of what it counted: dense is high.

    Args:
        water: (H, W) depth along the ray, cm of water.
        exposure: The setting.
        frame: Scale of the pixels.
        rng: Of the noise; the same state gives the same noise.
    """
    direct = np.exp(-np.float32(exposure.attenuation) * np.maximum(water, 0))
    rows, columns = np.linspace(-1, 1, water.shape[0]), np.linspace(-1, 1, water.shape[1])
    direct *= np.exp(exposure.shading[1] * rows[:, None] + exposure.shading[0] * columns[None, :]).astype(np.float32)
    scattered = exposure.scatter * frame.blur(np.minimum(direct, 0.25), 3.0)
    expected = frame.blur(direct + np.maximum(scattered, 0), exposure.unsharp) * np.float32(exposure.photons)
    # Hundreds of photons a pixel: the Poisson distribution is its normal limit, and both noises are one draw.
    deviation = np.sqrt(expected + np.float32(exposure.electronic_noise**2))
    counted = expected + deviation * rng.standard_normal(expected.shape, dtype=np.float32)
    signal = -np.log(np.maximum(counted, 1.0) / np.float32(exposure.photons))
    if exposure.enhance:
        signal = signal + np.float32(exposure.enhance) * (signal - frame.blur(signal, 2.5))
    return np.asarray(signal, np.float32)


def develop(signal: Array, exposure: Exposure) -> Array:
    """Signal -> grey values 0..1 by window, S-curve and gamma."""
    low, high = np.quantile(signal[::2, ::2], exposure.window)
    high += exposure.headroom * (high - low)
    grey = np.clip((signal - np.float32(low)) / np.float32(max(high - low, 1e-3)), 0, 1)
    if exposure.curve:
        edge = np.tanh(exposure.curve / 2)
        grey = (np.tanh(exposure.curve * (grey - 0.5)) / edge + 1) / 2
    return np.asarray(np.clip(grey, 0, 1) ** np.float32(exposure.gamma), np.float32)


def give_histogram(image: Array, other: Array) -> Array:
    """``image`` with exactly the grey values of ``other`` (same shape), its own order of pixels kept.

    Sound histogram specification by rank. It is what makes the histogram say nothing about a label here: ``other`` shows the
    same patient in the same exposure, but with findings drawn without regard to ``image``'s own.
    """
    low, high = float(image.min()), float(image.max())
    levels = ((image - np.float32(low)) * np.float32(65535 / max(high - low, 1e-6))).astype(np.uint16)
    order = np.argsort(levels, axis=None, kind="stable")  # on 16 bits: a radix sort, ten times as fast, ties always in the same order
    given = np.empty(image.size, np.float32)
    given[order] = np.sort(other, axis=None)
    return given.reshape(image.shape)
