"""What a replica does with an image, behind the HTTP face and without Ray: decode in guarded processes, score, judge, explain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from cxr_ray.serving.batcher import Batcher
from cxr_ray.serving.decoding import DecodePool
from cxr_ray.serving.metrics import Metrics
from cxr_ray.serving.schema import ExplanationMethod

if TYPE_CHECKING:
    from cxr_ray.models.gate import GateVerdict
    from cxr_ray.serving.predictor import Prediction, Predictor


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
        method: By which it was found.
        overlay: PNG: the heat over the image.
        heat: Grey PNG, 0..255.
        image: Grey PNG of what the model saw.
    """

    scored: Scored
    label: str
    method: ExplanationMethod
    overlay: bytes
    heat: bytes
    image: bytes


class Engine(Protocol):
    """What the HTTP face asks for."""

    async def score(self, data: bytes) -> Scored:
        """File bytes -> answer; raises ImageError for bytes that are no usable image."""

    async def score_pixels(self, images: NDArray[np.uint8]) -> list[Scored]:
        """(N, H, W) uint8, preprocessed -> N answers."""

    async def explain(self, data: bytes, label: str | None, method: ExplanationMethod) -> Explained:
        """File bytes -> heat map of ``label`` (None: the most probable one); raises ImageError."""

    async def ready(self) -> bool:
        """Whether an image could be scored now."""


class LocalEngine:
    """An :class:`Engine` around a model in this process.

    The network runs in one thread: an explanation hangs hooks into it that a forward pass of its own must not meet.

    Args:
        predictor: The model.
        decoders: Decoding processes.
        metrics: Counters.
        max_batch_size: Images of several requests in one forward pass.
    """

    def __init__(self, predictor: Predictor, decoders: DecodePool, metrics: Metrics, max_batch_size: int = 16) -> None:
        self.predictor, self._decoders, self._metrics = predictor, decoders, metrics
        self.batcher: Batcher[NDArray[np.uint8], Scored] = Batcher(self._forward, max_batch_size)
        self._threads = ThreadPoolExecutor(max_workers=decoders.processes, thread_name_prefix="decode")
        self._explanations = ThreadPoolExecutor(max_workers=1, thread_name_prefix="explain")
        self.healthy = True

    def _forward(self, images: Sequence[NDArray[np.uint8]]) -> list[Scored]:
        """N (H, W) uint8 -> N answers."""
        start = time.perf_counter()
        probabilities, verdicts = self.predictor.predict_checked(np.stack(images))
        self._metrics.infer.observe(time.perf_counter() - start)
        self._metrics.batch.observe(len(images))
        rows = zip(probabilities, verdicts, images, strict=True)
        return [Scored(self.predictor.call(row), verdict, image) for row, verdict, image in rows]

    def _decode(self, data: bytes, scored: Future[Scored]) -> None:
        """File bytes -> the batcher, unless nobody waits any more; a bad image gets its reason before it could join a batch."""
        if scored.cancelled():
            return
        start = time.perf_counter()
        try:
            image = self._decoders.decode(data)
        except Exception as error:
            if scored.set_running_or_notify_cancel():
                scored.set_exception(error)
            return
        self._metrics.decode.observe(time.perf_counter() - start)
        self.batcher.put(image, scored)

    async def score(self, data: bytes) -> Scored:
        """See :class:`Engine`."""
        scored: Future[Scored] = Future()
        self._threads.submit(self._decode, data, scored)
        return self._counted(await asyncio.wrap_future(scored))

    async def score_pixels(self, images: NDArray[np.uint8]) -> list[Scored]:
        """See :class:`Engine`."""
        return [self._counted(scored) for scored in await asyncio.gather(*map(self.batcher, images))]

    def _counted(self, scored: Scored) -> Scored:
        if scored.verdict is not None:
            self._metrics.verdicts.labels(scored.verdict.verdict).inc()
        return scored

    async def explain(self, data: bytes, label: str | None, method: ExplanationMethod) -> Explained:
        """See :class:`Engine`. Predictions go on meanwhile, but where they are made by the network that the hooks are in."""
        scored = await self.score(data)

        def call() -> Explained:
            return self._explained(scored, label, method)

        if self.predictor.forward.name == "torch":
            return await self.batcher.between(call)
        return await asyncio.wrap_future(self._explanations.submit(call))

    def _explained(self, scored: Scored, label: str | None, method: ExplanationMethod) -> Explained:
        from cxr_ray.evaluation.explain import explain, grey_png, overlay_png

        names, said = self.predictor.bundle.labels.names, scored.prediction.probabilities
        wanted = label or max(said, key=said.__getitem__)  # of what is answered: calibrated, the order may be another
        found = explain(self.predictor.model, scored.pixels, names.index(wanted), method=method)
        heat = (255 * found.heat_HW).round().astype(np.uint8)
        images = overlay_png(scored.pixels, found.heat_HW), grey_png(heat), grey_png(scored.pixels)
        return Explained(scored, names[found.label], method, *images)

    async def ready(self) -> bool:
        """See :class:`Engine`."""
        return self.healthy

    async def probe(self) -> None:
        """A forward pass of a blank image.

        Raises:
            RuntimeError: Its answer is not finite.
        """
        spec = self.predictor.bundle.preprocess
        scored = await self.batcher(np.zeros((spec.height, spec.width), dtype=np.uint8))
        self.healthy = all(map(isfinite, scored.prediction.probabilities.values()))
        if not self.healthy:
            raise RuntimeError("the model answers with numbers that are not finite")
