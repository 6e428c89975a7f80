"""What a lone request costs beside decoding and the forward pass: with our routes alone, and behind each of Ray's fronts."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256

from starlette.datastructures import Headers

from cxr_ray.bundle import read_bundle
from cxr_ray.cpu import use_cores
from cxr_ray.serving.bodies import images_of
from cxr_ray.serving.decoding import DecodePool
from cxr_ray.serving.engine import LocalEngine
from cxr_ray.serving.metrics import Metrics
from cxr_ray.serving.predictor import Predictor
from cxr_ray.serving.selection import select_engine
from rivals import systems
from rivals.load import BOUNDARY, Measured
from rivals.systems import System

_UNCOUNTED = 5
"""Calls before those that count."""
Load = Callable[[System, Sequence[int]], dict[int, Measured]]


def measure(load: Load, bundle: str, image: bytes, key: str, *, rounds: int) -> dict[str, object]:
    """Medians in milliseconds at one request at a time: the bare predictor, each way to it, and the difference."""
    settings = {"bundle": bundle, "key_sha256": sha256(key.encode()).hexdigest()}
    ways = {
        "alone": systems.alone("alone", settings),
        "haproxy": systems.ours("haproxy", settings, "haproxy"),
        "ray_proxy": systems.ours("ray_proxy", settings, "ray"),
    }
    use_cores(1)
    predictor = Predictor(read_bundle(bundle))
    engine = select_engine(predictor, "auto", batch_size=16, threads=1)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("bare", *ways)}
    for _ in range(rounds):
        before, times = time.process_time(), 60
        taken = _milliseconds(lambda: predictor.predict_checked(predictor.decode(image)[None]), times)
        found["bare"].append((taken, 1000 * (time.process_time() - before) / (times + _UNCOUNTED)))
        for name, system in ways.items():
            measured = load(system, (1,))[1]
            found[name].append((measured.p50, measured.cpu))
    facts: dict[str, object] = {"engine": engine.name}
    least = [statistics.median(values) for values in zip(*found["bare"], strict=True)]
    for name, pairs in found.items():
        for what, values, bare in zip(("ms", "cpu_ms"), zip(*pairs, strict=True), least, strict=True):
            facts[f"{name}_{what}"] = round(statistics.median(values), 2)
            if name != "bare":
                facts[f"{name}_overhead_{what}"] = round(statistics.median(values) - bare, 2)
    return facts | _parts(predictor, image)


def _parts(predictor: Predictor, image: bytes) -> dict[str, object]:
    """What the steps of our own code take, each by itself."""
    decoders = DecodePool(predictor.bundle.preprocess)
    engine = LocalEngine(predictor, decoders, Metrics())
    pixels = predictor.decode(image)
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    form = head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    headers = Headers({"content-type": f"multipart/form-data; boundary={BOUNDARY}"})
    with asyncio.Runner() as runner:
        found = {
            "decode": _milliseconds(lambda: predictor.decode(image)),
            "decode_in_child": _milliseconds(lambda: decoders.decode(image)),
            "forward": _milliseconds(lambda: predictor.predict_checked(pixels[None])),
            "forward_by_engine": runner.run(_awaited(lambda: engine.score_pixels(pixels[None]))),
            "form": runner.run(_awaited(lambda: images_of(headers, form))),
            "sha256": _milliseconds(lambda: sha256(image).hexdigest()),
        }
    decoders.close()
    return {f"part_{name}_ms": round(value, 3) for name, value in found.items()}


def _milliseconds(call: Callable[[], object], times: int = 60) -> float:
    """Median of a call, after a few that do not count."""
    taken = []
    for number in range(times + _UNCOUNTED):
        start = time.perf_counter()
        call()
        if number >= _UNCOUNTED:
            taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


async def _awaited(call: Callable[[], Awaitable[object]], times: int = 60) -> float:
    """As :func:`_milliseconds`, within one loop, as the service does it."""
    taken = []
    for number in range(times + _UNCOUNTED):
        start = time.perf_counter()
        await call()
        if number >= _UNCOUNTED:
            taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)
