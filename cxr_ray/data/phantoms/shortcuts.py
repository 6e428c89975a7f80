"""Shortcuts planted on purpose: something that is no disease, and goes with the label as often as asked for.

Each image gets a *cue*, the number of a class: of its own with probability ``strength``, else of any class at random. So strength 0 shows
the same cues without meaning, and at 1 they tell everything.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_ray.data.phantoms.plan import CLASSES, SOURCE_FORMATS, SOURCE_SCALES, SOURCES, Shot

Kind = Literal["marker", "brightness", "hospital"]
KINDS: tuple[str, ...] = get_args(Kind)
_GREY_STEP = 24
_MARKER_SIDE = 0.05  # of the height


@dataclass(frozen=True)
class Plant:
    """A planted shortcut."""

    kind: Kind
    """``marker``: a bright square in a corner of its own a class. ``brightness``: grey levels added a class. ``hospital``: a class comes
    from one hospital, in its format, size, markers and borders."""
    strength: float
    """0..1."""

    def cue(self, shot: Shot) -> int:
        """The class that the image looks like it came with. Multilabel: 1 with any finding, else 0."""
        classes = CLASSES.get(shot.task)
        count, own = (len(classes), classes.index(shot.label)) if classes else (2, int(bool(shot.findings)))
        rng = shot.rng("plant")
        planted, other = rng.random() < self.strength, int(rng.integers(count))
        return own if planted else other

    def place(self, shot: Shot) -> Shot:
        """The image as another hospital takes it; the same for the other kinds."""
        if self.kind != "hospital":
            return shot
        source = SOURCES[self.cue(shot)]
        scale = SOURCE_SCALES[source] / SOURCE_SCALES[shot.source]
        png = shot.rng("plant format").random() < SOURCE_FORMATS[source][0]
        return dataclasses.replace(
            shot,
            source=source,
            format=shot.format if shot.format == "dicom" else "png" if png else "jpeg",
            height=round(shot.height * scale),
            width=round(shot.width * scale),
        )

    def draw(self, image: NDArray[np.uint8], shot: Shot) -> NDArray[np.uint8]:
        """The picture with its cue; ``image`` is left as it is."""
        cue = self.cue(shot)
        if self.kind == "brightness":
            return np.clip(image.astype(np.int16) + _GREY_STEP * cue, 0, 255).astype(np.uint8)
        if self.kind == "marker":
            return _marked(image, cue)
        return image


def _marked(image: NDArray[np.uint8], corner: int) -> NDArray[np.uint8]:
    """A bright square; corners are counted from the upper left by rows."""
    height, width = image.shape
    side = max(2, round(_MARKER_SIDE * height))
    left = width - 2 * side if corner % 2 else side
    top = height - 2 * side if corner // 2 else side
    marked = image.copy()
    cv2.rectangle(marked, (left, top), (left + side - 1, top + side - 1), 255, -1)
    return marked
