"""Which engine a replica serves with: the fastest of those that are installed, if it answers as torch does.

Candidates are timed by turns on the bundled samples, and compared on them. A candidate that cannot be had, fails or disagrees costs a
warning, never the service: torch then serves.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray.cpu import in_background
from cxr_ray.errors import CxrRayError, ModelError
from cxr_ray.models.forward import CompiledForward, EngineName, Forward, Scores, warm
from cxr_ray.serving.graphs import graph_of
from cxr_ray.serving.predictor import Predictor
from cxr_ray.serving.schema import EngineChoice, EngineInfo

logger = logging.getLogger(__name__)

TOLERANCE: Final = 1e-4
"""Largest difference of a probability from torch's."""
_POOLED_TOLERANCE: Final = 1e-3
"""Of the pooled feature map, which the input gate reads, as a share of its largest value."""
_ROUNDS, _SECONDS = 7, 2.0
"""Of timing, for each batch size; at least two rounds."""


def select_engine(predictor: Predictor, wanted: EngineChoice, *, batch_size: int, threads: int) -> EngineInfo:
    """Give a predictor its engine, warmed up for batches of 1 and of ``batch_size``, and say which it is and why.

    Args:
        predictor: With the torch engine that it is made with.
        wanted: An engine; or ``auto``: ONNX Runtime where it is installed and faster, else torch. ``auto`` does not compile: that takes
            a minute at every start.
        batch_size: Largest batch that will be asked for.
        threads: Cores the engine may use.
    """
    torch_forward, sizes = predictor.forward, tuple(sorted({1, batch_size}))
    height, width = predictor.bundle.preprocess.height, predictor.bundle.preprocess.width
    warm(torch_forward, height, width, batch_size)
    other: EngineName = "onnx" if wanted == "auto" else wanted
    reason = "asked for"
    if wanted == "auto" and (predictor.device != "cpu" or find_spec("onnxruntime") is None):
        other, reason = "torch", "on a GPU" if predictor.device != "cpu" else "onnxruntime is not installed"
    if other == "torch":
        return _told(EngineInfo(name="torch", reason=reason))
    pictures = _pictures(predictor)
    try:
        candidate = _build(predictor, other, threads)
        warm(candidate, height, width, batch_size)
        batches = (pictures, pictures[:1])  # one image alone may take another way
        apart = max(difference(torch_forward(batch), candidate(batch)) for batch in batches)
    except CxrRayError as error:
        logger.warning("engine %s cannot be had: %s", other, error)
        return _told(EngineInfo(name="torch", reason=f"{other} cannot be had: {error.message}"))
    except Exception as error:  # whatever a compiler or a runtime raises, torch still serves
        logger.warning("engine %s failed", other, exc_info=True)
        return _told(EngineInfo(name="torch", reason=f"{other} failed: {type(error).__name__}"))
    times = _times({"torch": torch_forward, other: candidate}, pictures, sizes)
    if wanted != "auto" or _cost(times[other]) < _cost(times["torch"]):
        predictor.forward = candidate
    why = f"{'the faster' if wanted == 'auto' else reason}; probabilities differ by {apart:.1e} at most"
    return _told(EngineInfo(name=predictor.forward.name, reason=why, milliseconds=times))


def difference(ours: Scores, theirs: Scores) -> float:
    """The largest difference of two engines' probabilities.

    Raises:
        ModelError: They, or the pooled features, do not agree.
    """
    (probabilities, pooled), (others, other_pooled) = ours, theirs
    apart = float(np.abs(probabilities - others).max())
    share = float(np.abs(pooled - other_pooled).max()) / max(float(np.abs(pooled).max()), 1e-6)
    if not (apart <= TOLERANCE and share <= _POOLED_TOLERANCE):  # so put, what is no number disagrees
        raise ModelError(f"its probabilities are {apart:.1e} from torch's, its features {share:.1e}")
    return apart


def _told(info: EngineInfo) -> EngineInfo:
    logger.info("engine %s: %s; milliseconds by batch size: %s", info.name, info.reason, info.milliseconds or "not measured")
    return info


def _build(predictor: Predictor, name: EngineName, threads: int) -> Forward:
    task = predictor.bundle.labels.task
    if name == "compile":
        return CompiledForward(predictor.model, task, predictor.device)
    if predictor.device != "cpu":
        raise ModelError("ONNX Runtime serves from the CPU alone")
    from cxr_ray.models.onnx_graph import OnnxForward, to_onnx

    graph = in_background(lambda: graph_of(predictor.bundle, lambda: to_onnx(predictor.model, task)))
    return OnnxForward(graph, threads=threads)


def _pictures(predictor: Predictor) -> NDArray[np.uint8]:
    """The bundled samples, preprocessed: as they are, mirrored, with less contrast, and with noise."""
    samples = [entry.read_bytes() for entry in sorted((files("cxr_ray.serving.web") / "samples").iterdir(), key=lambda entry: entry.name)]
    plain = np.stack([predictor.decode(data) for data in samples])
    noise = np.random.default_rng(0).normal(0.0, 8.0, plain.shape)
    noisy = (plain + noise).clip(0, 255).astype(np.uint8)
    return np.concatenate([plain, plain[:, :, ::-1], 64 + plain // 2, noisy])


def _times(forwards: Mapping[EngineName, Forward], pictures: NDArray[np.uint8], sizes: tuple[int, ...]) -> dict[str, dict[int, float]]:
    """Median milliseconds of a pass, by engine and batch size, the engines by turns."""
    found: dict[str, dict[int, float]] = {name: {} for name in forwards}
    for size in sizes:
        batch = np.resize(pictures, (size, *pictures.shape[1:]))
        taken: dict[EngineName, list[float]] = {name: [] for name in forwards}
        end = time.perf_counter() + _SECONDS
        for done in range(_ROUNDS):
            if done >= 2 and time.perf_counter() > end:
                break
            for name, forward in forwards.items():
                start = time.perf_counter()
                forward(batch)
                taken[name].append(1000 * (time.perf_counter() - start))
        for name, values in taken.items():
            found[name][size] = round(statistics.median(values), 2)
    return found


def _cost(milliseconds: Mapping[int, float]) -> float:
    """What an image costs, alone and in a full batch."""
    return sum(value / size for size, value in milliseconds.items())
