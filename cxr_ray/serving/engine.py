"""What a replica does with an image, behind the HTTP face and without Ray: decode in guarded processes, score, judge, explain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from cxr_ray.serving.batcher import Batcher
from cxr_ray.serving.decoding import DecodePool
from cxr_ray.serving.metrics import Metrics
from cxr_ray.serving.predictor import Prediction, Predictor

if TYPE_CHECKING:
    from cxr_ray.models.gate import GateVerdict

METHOD = "gradcam"
Row = tuple[NDArray[np.float32], "GateVerdict | None"]


@dataclass(frozen=True, slots=True)
class Scored:
    """What is known of one image.

    Args:
        prediction: Labels and probabilities.
        verdict: Of the input gate; None: the bundle has none.
        pixels: (H, W) uint8, as the model saw it.
    """

    prediction: Prediction
    verdict: GateVerdict | None
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Explained:
    """Where the model looked.

    Args:
        scored: What it answered.
        label: The label that is explained.
        method: Of the ``grad-cam`` package.
        overlay: PNG: the heat over the image.
        heat: Grey PNG, 0..255.
        image: Grey PNG of what the model saw.
    """

    scored: Scored
    label: str
    method: str
    overlay: bytes
    heat: bytes
    image: bytes


class Engine(Protocol):
    """What the HTTP face asks for."""

    async def score(self, data: bytes) -> Scored:
        """File bytes -> answer; raises ImageError for bytes that are no usable image."""

    async def score_pixels(self, images: NDArray[np.uint8]) -> list[Scored]:
        """(N, H, W) uint8, preprocessed -> N answers."""

    async def explain(self, data: bytes, label: str | None) -> Explained:
        """File bytes -> heat map of ``label`` (None: the most probable one); raises ImageError."""

    async def ready(self) -> bool:
        """Whether an image could be scored now."""


class LocalEngine:
    """An :class:`Engine` around a model in this process.

    The model runs in one thread of its own: torch keeps a pool of cores for each thread that calls it, and an explanation hangs hooks
    into the network that a forward pass must not meet.

    Args:
        predictor: The model.
        decoders: Decoding processes.
        metrics: Counters.
        max_batch_size: Images of several requests in one forward pass.
    """

    def __init__(self, predictor: Predictor, decoders: DecodePool, metrics: Metrics, max_batch_size: int = 16) -> None:
        self.predictor, self._decoders, self._metrics = predictor, decoders, metrics
        self.batcher: Batcher[NDArray[np.uint8], Row] = Batcher(self._infer, max_batch_size)
        self._threads = ThreadPoolExecutor(max_workers=decoders.processes, thread_name_prefix="decode")
        self._model = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.healthy = True

    async def _infer(self, images: Sequence[NDArray[np.uint8]]) -> list[Row]:
        return await asyncio.get_running_loop().run_in_executor(self._model, self._forward, images)

    def _forward(self, images: Sequence[NDArray[np.uint8]]) -> list[Row]:
        """N (H, W) uint8 -> N pairs of (K,) float32 probabilities and the gate's verdict (None: no gate)."""
        start = time.perf_counter()
        probabilities, verdicts = self.predictor.predict_checked(np.stack(images))
        self._metrics.infer.observe(time.perf_counter() - start)
        self._metrics.batch.observe(len(images))
        return list(zip(probabilities, verdicts, strict=True))

    async def decode(self, data: bytes) -> NDArray[np.uint8]:
        """File bytes -> (H, W) uint8; raises ImageError, before a bad image could join a batch."""
        start = time.perf_counter()
        image = await asyncio.get_running_loop().run_in_executor(self._threads, self._decoders.decode, data)
        self._metrics.decode.observe(time.perf_counter() - start)
        return image

    async def score(self, data: bytes) -> Scored:
        """See :class:`Engine`."""
        return await self._scored(await self.decode(data))

    async def score_pixels(self, images: NDArray[np.uint8]) -> list[Scored]:
        """See :class:`Engine`."""
        return list(await asyncio.gather(*map(self._scored, images)))

    async def _scored(self, image: NDArray[np.uint8]) -> Scored:
        probabilities, verdict = await self.batcher(image)
        if verdict is not None:
            self._metrics.verdicts.labels(verdict.verdict).inc()
        return Scored(self.predictor.call(probabilities), verdict, image)

    async def explain(self, data: bytes, label: str | None) -> Explained:
        """See :class:`Engine`."""
        scored = await self.score(data)
        return await asyncio.get_running_loop().run_in_executor(self._model, self._explained, scored, label)

    def _explained(self, scored: Scored, label: str | None) -> Explained:
        from cxr_ray.evaluation.explain import explain, grey_png, overlay_png

        names = self.predictor.bundle.labels.names
        found = explain(self.predictor.model, scored.pixels, None if label is None else names.index(label), method=METHOD)
        heat = (255 * found.heat_HW).round().astype(np.uint8)
        images = overlay_png(scored.pixels, found.heat_HW), grey_png(heat), grey_png(scored.pixels)
        return Explained(scored, names[found.label], METHOD, *images)

    async def ready(self) -> bool:
        """See :class:`Engine`."""
        return self.healthy

    async def probe(self) -> None:
        """A forward pass of a blank image.

        Raises:
            RuntimeError: Its answer is not finite.
        """
        spec = self.predictor.bundle.preprocess
        rows = await self._infer([np.zeros((spec.height, spec.width), dtype=np.uint8)])
        self.healthy = bool(np.isfinite(rows[0][0]).all())
        if not self.healthy:
            raise RuntimeError("the model answers with numbers that are not finite")
