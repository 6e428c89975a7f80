"""Requests a second and their latency: our service against the same bundle behind FastAPI + uvicorn, LitServe and BentoML.

    apt-get install wrk
    python -m venv DIR && python -c "import site; print(site.getsitepackages()[0])" > $(ls -d DIR/lib/python*/site-packages)/main.pth
    DIR/bin/pip install -r benchmarks/serve_load.requirements.txt
    python benchmarks/serve_load.py --work work/load --rivals DIR/bin/python --json

One X-ray of about 1,000 pixels goes up as a multipart form and an answer comes back, at 1, 8 and 32 requests at once, client and service on
the same cores. Decoding and preprocessing are those of the bundle in every system, and the rivals compute with torch. Each system is
first tried with a few settings (the best by the mean of its logarithmic rates at 1 and 8 is kept), then measured in rounds, each system
started anew in every round and alone on the machine; figures are medians of the rounds. ``--overhead`` measures instead what the way
to the model costs at one request at a time. Prints one flat object.
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import statistics
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from rivals import overhead, systems
from rivals.load import Client, Measured
from rivals.network import make_bundle, xray
from rivals.systems import System, started

CONCURRENCY = (1, 8, 32)
Facts = dict[str, object]


def variants(names: Sequence[str], bundle: str, python: str, key: str, front: str, work: Path) -> dict[str, dict[str, System]]:
    """System -> what is said of its settings -> the system with them."""
    common = {"bundle": bundle, "key_sha256": sha256(key.encode()).hexdigest()}

    def own(engine: str) -> dict[str, System]:
        return {
            f"replicas {replicas}, cpus {cpus}, decoders {decoders}": systems.ours(
                f"ours_{engine}", {**common, "engine": engine, "replicas": replicas, "cpus": cpus, "decoders": decoders}, front
            )
            for replicas, cpus, decoders in ((1, 1, 1), (1, 2, 1), (2, 1, 1))
        }

    every: dict[str, Callable[[], dict[str, System]]] = {
        "ours_auto": lambda: own("auto"),
        "ours_torch": lambda: own("torch"),
        "fastapi": lambda: {
            f"workers {workers}, threads {threads}, pool {pool}": systems.fastapi(
                python, bundle, workers=workers, threads=threads, pool=pool
            )
            for workers, threads, pool in ((1, 2, 1), (1, 1, 2), (2, 1, 1))
        },
        "litserve": lambda: {
            f"workers {workers}, threads {threads}, batch {batch}": systems.litserve(
                python, bundle, workers=workers, threads=threads, batch=batch
            )
            for workers, threads, batch in ((1, 2, 1), (1, 2, 8), (2, 1, 1))
        },
        "bentoml": lambda: {
            f"workers {workers}, threads {threads}, pool {pool}, batch {batch}": systems.bentoml(
                python, bundle, work / "bentoml", workers=workers, threads=threads, pool=pool, batch=batch
            )
            for workers, threads, pool, batch in ((1, 2, 1, 1), (2, 1, 1, 1), (1, 2, 1, 8))
        },
    }
    return {name: every[name]() for name in names}


class Bench:
    """Starts systems one at a time and loads them.

    Args:
        client: What asks.
        work: Where logs are put.
        port: That each system listens on in its turn.
        seconds: Of one load.
    """

    def __init__(self, client: Client, work: Path, port: int, seconds: float) -> None:
        self.client, self.work, self.port, self.seconds = client, work, port, seconds
        self.memory: dict[str, float] = {}

    def measure(self, system: System, concurrency: Sequence[int], seconds: float | None = None) -> dict[int, Measured]:
        """Start, warm up, load at each concurrency, stop."""
        seconds = seconds or self.seconds
        with started(system, self.port, self.client, self.work / f"{system.name}.log") as running:
            self.client.load(running.url, 8, max(1.0, seconds / 2), running.cpu_seconds)
            found = {many: self.client.load(running.url, many, seconds, running.cpu_seconds) for many in concurrency}
            self.memory[system.name] = max(self.memory.get(system.name, 0.0), running.memory_mib())
        told = ", ".join(f"{many}: {one.rate:.1f}/s p99 {one.p99:.0f} ms cpu {one.cpu:.1f} ms" for many, one in found.items())
        print(f"{system.name:12} {told}", file=sys.stderr)
        return found

    def best(self, offered: dict[str, System]) -> str:
        """Of some settings of a system, the one with the highest rates."""
        if len(offered) == 1:
            return next(iter(offered))
        scores = {}
        for said, system in offered.items():
            print(f"{system.name:12} with {said}", file=sys.stderr)
            found = self.measure(system, (1, 8), max(1.0, self.seconds / 2))
            scores[said] = sum(math.log(max(one.rate, 1e-3)) for one in found.values())
        return max(scores, key=scores.__getitem__)


def compare(bench: Bench, offered: dict[str, dict[str, System]], rounds: int, *, tune: bool) -> Facts:
    """Every system in its best setting, in rounds."""
    chosen = {name: bench.best(some) if tune else next(iter(some)) for name, some in offered.items()}
    loads: dict[str, dict[int, list[Measured]]] = {name: {many: [] for many in CONCURRENCY} for name in offered}
    for turn in range(rounds):
        for name in list(offered) if turn % 2 == 0 else reversed(offered):
            for many, found in bench.measure(offered[name][chosen[name]], CONCURRENCY).items():
                loads[name][many].append(found)
    facts: Facts = {"rounds": rounds, "seconds": bench.seconds}
    for name, by_load in loads.items():
        facts[f"{name}_settings"] = chosen[name]
        for many, found_all in by_load.items():
            facts[f"{name}_rate_{many}"] = round(statistics.median(one.rate for one in found_all), 2)
            facts[f"{name}_p50_ms_{many}"] = round(statistics.median(one.p50 for one in found_all), 2)
            facts[f"{name}_cpu_ms_{many}"] = round(statistics.median(one.cpu for one in found_all), 2)
            facts[f"{name}_p99_ms_{many}"] = round(statistics.median(one.p99 for one in found_all), 2)
        facts[f"{name}_errors"] = sum(one.errors for found_all in by_load.values() for one in found_all)
        facts[f"{name}_memory_mib"] = round(bench.memory[name])
    return facts | _ratios(facts, list(offered))


def _ratios(facts: Facts, names: list[str]) -> Facts:
    """Ours over the best rival's rate, and ours over that rival's p99."""
    rivals = [name for name in names if not name.startswith("ours")]
    found: Facts = {}
    for many in CONCURRENCY if rivals else ():
        best = max(rivals, key=lambda name: float(str(facts[f"{name}_rate_{many}"])))
        found[f"best_rival_{many}"] = best
        for name in names:
            if name.startswith("ours"):
                for what in ("rate", "p99_ms"):
                    ratio = float(str(facts[f"{name}_{what}_{many}"])) / float(str(facts[f"{best}_{what}_{many}"]))
                    found[f"{name}_{what}_ratio_{many}"] = round(ratio, 3)
    return found


def main() -> None:
    """Parse, prepare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the bundle, logs and the client's files")
    parser.add_argument("--rivals", default=sys.executable, help="Python of the environment that has LitServe and BentoML")
    parser.add_argument("--systems", nargs="+", default=["ours_auto", "ours_torch", "fastapi", "litserve", "bentoml"])
    parser.add_argument("--image", type=Path, help="X-ray to send; default: a phantom")
    parser.add_argument("--backbone", default="mobilenet_v3_large")
    parser.add_argument("--size", type=int, default=224, help="pixels of the network's input")
    parser.add_argument("--front", default="auto", choices=["auto", "haproxy", "ray"], help="what stands before our replicas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one load")
    parser.add_argument("--no-tune", action="store_true", help="each system with the first of its settings")
    parser.add_argument("--port", type=int, default=18432)
    parser.add_argument("--overhead", action="store_true", help="where the time of a lone request goes")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    bundle = make_bundle(work / f"bundle-{arguments.backbone}-{arguments.size}", arguments.backbone, arguments.size)
    image = arguments.image.read_bytes() if arguments.image else xray()
    key = secrets.token_hex(16)
    bench = Bench(Client(work, image, key), work, arguments.port, arguments.seconds)
    facts: Facts = {"backbone": arguments.backbone, "size": arguments.size, "image_bytes": len(image), "front": arguments.front}
    if arguments.overhead:
        facts |= overhead.measure(bench.measure, bundle, image, key, rounds=arguments.rounds)
    else:
        offered = variants(arguments.systems, bundle, arguments.rivals, key, arguments.front, work)
        facts |= compare(bench, offered, arguments.rounds, tune=not arguments.no_tune)
    if arguments.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name:28} {value}", file=sys.stderr)


if __name__ == "__main__":
    main()
