"""What the input gate of a BUNDLE lets through and what it stops: ``python benchmarks/gate.py BUNDLE --images DATASET --json``.

False alarms are counted on the test part, which the gate was not fitted on. From the same images come the copies that it must stop: turned
by 90, 180 and 270 degrees, inverted, inverted and turned. Photographs are random squares of the two pictures of
``sklearn.datasets.load_sample_images``, as grey; noise is uniform, blank is one grey an image. ``--dicom-other`` is a folder of
radiographs of other body parts, ``--chest`` one of chest X-rays from elsewhere, which ought to pass.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images

from cxr_ray.bundle import read_bundle
from cxr_ray.data.columns import pixels
from cxr_ray.data.shards import open_dataset
from cxr_ray.errors import ImageError
from cxr_ray.imaging.preprocess import PreprocessSpec, preprocess
from cxr_ray.models.gate import GateVerdict
from cxr_ray.models.record import GateRecord
from cxr_ray.serving.predictor import Predictor
from cxr_ray.training.run import hardware, versions

Images = NDArray[np.uint8]
PHOTOGRAPHS, NOISE = 200, 50


def photographs(spec: PreprocessSpec, generator: np.random.Generator) -> Images:
    """Random squares, 100 pixels to the whole height wide."""
    found = []
    for index in range(PHOTOGRAPHS):
        picture = cv2.cvtColor(load_sample_images().images[index % 2], cv2.COLOR_RGB2GRAY)
        side = int(generator.integers(100, picture.shape[0] + 1))
        top, left = (int(generator.integers(0, whole - side + 1)) for whole in picture.shape)
        found.append(preprocess(picture[top : top + side, left : left + side], spec))
    return np.stack(found)


def folder(predictor: Predictor, location: str) -> Images:
    """Every image below a folder that can be read."""
    found = []
    for path in sorted(Path(location).rglob("*")):
        if path.is_file():
            try:
                found.append(predictor.decode(path.read_bytes()))
            except ImageError:
                continue
    return np.stack(found)


def summary(verdicts: Sequence[GateVerdict | None]) -> dict[str, Any]:
    """Images, share refused, and how often each reason was given."""
    reasons = Counter(verdict.reason for verdict in verdicts if verdict is not None and verdict.reason is not None)
    return {"n": len(verdicts), "refused": round(reasons.total() / len(verdicts), 4), **dict(sorted(reasons.items()))}


def facts(record: GateRecord) -> dict[str, Any]:
    """What the gate was fitted on, date, hardware and versions."""
    fitted = {"fitted_on": record.fitted_on, "fitted_n": record.n, "held_out": record.held_out, "held_out_n": record.n_held_out}
    named = {f"{name}_version": version for name, version in versions().items()}
    return {**fitted, "date": time.strftime("%Y-%m-%d"), **hardware(), **named}


def main() -> None:
    """Print, for each kind of image, how many are refused and why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--images", required=True, help="DATASET whose test part gives the false alarms")
    parser.add_argument("--dicom-other", help="folder of other radiographs")
    parser.add_argument("--chest", help="folder of chest X-rays from elsewhere")
    parser.add_argument("--json", action="store_true", help="one flat object on stdout: shares refused")
    arguments = parser.parse_args()
    predictor = Predictor(read_bundle(arguments.bundle))
    if predictor.gate is None:
        parser.error(f"{arguments.bundle} has no gate")
    spec, generator = predictor.bundle.preprocess, np.random.default_rng(0)
    good = pixels(open_dataset(arguments.images).read("test", ["image"]), spec.height, spec.width)

    def turned(quarters: int) -> Images:
        return np.stack([preprocess(np.rot90(image, quarters), PreprocessSpec(height=spec.height, width=spec.width)) for image in good])

    kinds: dict[str, Images] = {
        "test": good,
        "turned_90": turned(1),
        "turned_180": turned(2),
        "turned_270": turned(3),
        "inverted": 255 - good,
        "inverted_and_turned": 255 - turned(2),
        "photographs": photographs(spec, generator),
        "noise": generator.integers(0, 256, (NOISE, spec.height, spec.width), dtype=np.uint8),
        "blank": np.stack([np.full((spec.height, spec.width), grey, dtype=np.uint8) for grey in range(0, 256, 15)]),
    }
    if arguments.dicom_other:
        kinds["dicom_other"] = folder(predictor, arguments.dicom_other)
    if arguments.chest:
        kinds["chest_elsewhere"] = folder(predictor, arguments.chest)
    found = {kind: summary(predictor.predict_checked(images)[1]) for kind, images in kinds.items()}
    if arguments.json:
        shares = {kind: row["refused"] for kind, row in found.items()} | {f"{kind}_n": row["n"] for kind, row in found.items()}
        print(json.dumps({**shares, **facts(predictor.gate.record)}))
    else:
        print("\n".join(f"{kind:20} {row['n']:5} {row['refused']:8.2%}  {row}" for kind, row in found.items()))


if __name__ == "__main__":
    main()
