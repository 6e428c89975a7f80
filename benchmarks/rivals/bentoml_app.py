"""The bundle behind BentoML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

from cxr_ray.bundle import read_bundle
from cxr_ray.cpu import use_cores
from cxr_ray.serving.predictor import Predictor

BATCH = int(os.environ["BATCH"])


@bentoml.service(workers=int(os.environ["WORKERS"]), threads=int(os.environ["POOL"]), traffic={"timeout": 60})
class Rival:
    """Decodes and scores in its worker; batches adaptively where ``BATCH`` is above 1."""

    def __init__(self) -> None:
        use_cores(int(os.environ["THREADS"]))
        self.predictor = Predictor(read_bundle(os.environ["BUNDLE"]))

    def _answers(self, images: list[Path]) -> list[dict[str, Any]]:
        pixels = np.stack([self.predictor.decode(image.read_bytes()) for image in images])
        answers = [self.predictor.call(row) for row in self.predictor.predict_arrays(pixels)]
        return [{"labels": answer.labels, "probabilities": answer.probabilities} for answer in answers]

    if BATCH > 1:

        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=1000)
        def predict(self, image: list[Path]) -> list[dict[str, Any]]:
            """X-rays of several requests."""
            return self._answers(image)

    else:

        @bentoml.api
        def predict(self, image: Path) -> dict[str, Any]:
            """One X-ray."""
            return self._answers([image])[0]
