"""What a lone request costs beside decoding and the forward pass: with our routes alone, and behind each of Ray's fronts."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from hashlib import sha256

import numpy as np
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
    bare: list[float] = []
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        bare.append(_milliseconds(lambda: predictor.predict_checked(predictor.decode(image)[None])))
        for name, system in ways.items():
            found[name].append(load(system, (1,))[1].p50)
    least = statistics.median(bare)
    facts: dict[str, object] = {"engine": engine.name, "bare_ms": round(least, 2)}
    for name, values in found.items():
        facts[f"{name}_ms"] = round(statistics.median(values), 2)
        facts[f"{name}_overhead_ms"] = round(statistics.median(values) - least, 2)
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
            "decode_in_child": _milliseconds(lambda: runner.run(engine.decode(image))),
            "forward": _milliseconds(lambda: predictor.predict_checked(pixels[None])),
            "forward_by_engine": _milliseconds(lambda: runner.run(engine.score_pixels(np.array([pixels])))),
            "form": _milliseconds(lambda: runner.run(images_of(headers, form))),
            "sha256": _milliseconds(lambda: sha256(image).hexdigest()),
        }
    decoders.close()
    return {f"part_{name}_ms": round(value, 3) for name, value in found.items()}


def _milliseconds(call: Callable[[], object], times: int = 60) -> float:
    """Median of a call, after a few that do not count."""
    taken = []
    for number in range(times + 5):
        start = time.perf_counter()
        call()
        if number >= 5:
            taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)
