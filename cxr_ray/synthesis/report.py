"""What a GAN made, for people: pictures, ``report.html`` (opens without a network) and ``report.json``.

The pictures hold real training images: keep the report where the data may be kept.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from cxr_ray import storage
from cxr_ray.page import template
from cxr_ray.synthesis.gan import GanRecord
from cxr_ray.synthesis.memorisation import Memorisation, Nearness
from cxr_ray.synthesis.rare import Images, tile
from cxr_ray.synthesis.state import to_png

PAGE, FACTS, SAMPLES, REAL, CLOSEST, DRAWN = "report.html", "report.json", "samples.png", "real.png", "closest.png", "drawn.png"
SHOWN, SHEET_COLUMNS, SHEET_IMAGES = 8, 8, 32
"""Rows of made images with their nearest real ones; columns and images of a plain sheet."""
_COLOURS = ("#0072B2", "#D55E00")  # Okabe and Ito's, as in the report of an evaluation


def write_report(
    location: str,
    *,
    title: str,
    facts: Mapping[str, Any],
    made: Images,
    real: Images,
    memorisation: Memorisation,
    history: Sequence[GanRecord],
) -> None:
    """Write pictures, page and facts below ``location``; the facts come last.

    Args:
        location: A folder, a local path or a URI.
        title: Heading.
        facts: ``report.json``: the record of :func:`cxr_ray.synthesis.synthesize.synthesize`.
        made: (N, H, W) uint8, the images that were added.
        real: (M, H, W) uint8, the training images.
        memorisation: Of both.
        history: A record an epoch.

    Raises:
        StorageError: Something cannot be written.
    """
    by_closeness = np.argsort(memorisation.pixels.made_N, kind="stable")[:SHOWN]
    at_random = np.random.default_rng(0).permutation(len(made))[:SHOWN]
    pictures = {
        SAMPLES: tile(made[:SHEET_IMAGES], SHEET_COLUMNS),
        REAL: tile(real[:SHEET_IMAGES], SHEET_COLUMNS),
        CLOSEST: beside_nearest(made, real, memorisation.pixels, by_closeness.tolist()),
        DRAWN: beside_nearest(made, real, memorisation.pixels, at_random.tolist()),
    }
    data = {name: to_png(picture) for name, picture in pictures.items()}
    for name, content in data.items():
        storage.write_bytes(storage.join(location, name), content)
    page = _render(title, facts, {name.removesuffix(".png"): _uri(content) for name, content in data.items()}, history)
    storage.write_bytes(storage.join(location, PAGE), page.encode())
    storage.write_json(storage.join(location, FACTS), facts)


def beside_nearest(made: Images, real: Images, nearness: Nearness, rows: Sequence[int]) -> Images:
    """A row an image: the made one, a white gap, and its nearest real ones."""
    white = np.full((made.shape[1], max(2, made.shape[2] // 8)), 255, np.uint8)
    lines = [np.hstack([made[row], white, *(real[near] for near in nearness.nearest_NK[row])]) for row in rows]
    return tile(lines, 1)


def _render(title: str, facts: Mapping[str, Any], pictures: Mapping[str, str], history: Sequence[GanRecord]) -> str:
    return template(__file__, "report.html").render(title=title, facts=facts, pictures=pictures, losses=Markup(_losses(history)))


def _losses(history: Sequence[GanRecord]) -> str:
    """Losses and scores over epochs, as SVG."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "cxr-ray"}):
        figure = Figure(figsize=(7.6, 2.9), layout="constrained")
        losses, scores = figure.subplots(1, 2)
        epochs = [record.epoch + 1 for record in history]
        losses.plot(epochs, [record.generator_loss for record in history], color=_COLOURS[0], label="generator", linewidth=1.2)
        losses.plot(epochs, [record.discriminator_loss for record in history], color=_COLOURS[1], label="discriminator", linewidth=1.2)
        scores.plot(epochs, [record.real_score for record in history], color=_COLOURS[0], label="real images", linewidth=1.2)
        scores.plot(epochs, [record.fake_score for record in history], color=_COLOURS[1], label="made images", linewidth=1.2)
        scores.set_ylim(0, 1)
        for axes, name in ((losses, "Loss"), (scores, "Called real by the discriminator")):
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("Epoch", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25, linewidth=0.5)
            axes.legend(frameon=False, fontsize=7)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
