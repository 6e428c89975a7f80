"""What a network costs, known before it is trained: parameters, operations, time for one image."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from cxr_ray.config import Recipe
from cxr_ray.models.classifier import Classifier
from cxr_ray.models.inference import evaluating
from cxr_ray.models.parameters import count_flops, count_parameters
from cxr_ray.training.run import DataRecord
from cxr_ray.training.worker import build_model

REPEATS = 30


def costs(recipe: Recipe, data: DataRecord, names: Sequence[str]) -> dict[str, float]:
    """The costs called ``names`` (of :data:`cxr_ray.tuning.sweep.COSTS`) of a recipe's network at the DATASET's image size.

    ``parameters``: all of them. ``flops``: floating-point operations for one image. ``latency_ms``: milliseconds for one image on one core
    of this machine, the fastest of :data:`REPEATS`; other work on the machine makes single ones slower, never faster.
    """
    if not names:
        return {}
    model = build_model(recipe, data, load_weights=False)
    found: dict[str, float] = {}
    if "parameters" in names:
        found["parameters"] = float(count_parameters(model)["total"])
    if "flops" in names:
        found["flops"] = float(count_flops(model))
    if "latency_ms" in names:
        found["latency_ms"] = _latency(model, data.height, data.width)
    return found


def _latency(model: Classifier, height: int, width: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    image = torch.zeros(1, 1, height, width, dtype=torch.uint8)
    times = []
    try:
        with evaluating(model):
            for _ in range(REPEATS):
                start = time.perf_counter()
                model(image)
                times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return min(times) * 1000
