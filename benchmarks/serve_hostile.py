"""What does a service answer to what the internet throws at it, how soon, and what does it cost?

    cxr-ray demo
    python benchmarks/serve_hostile.py --bundle work/bundle --json

Starts ``cxr-ray serve`` with one replica on the loopback interface and sends it every request of ``tests/attacks.py``, one at a time; then
asks every route but ``/healthz`` without a key; then sends what schemathesis makes of the OpenAPI description. Memory is that of the
replica, its decoding processes and their codecs, sampled ten times a second. Prints one flat object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from attacks import Attack, Reply, attacks, closed_routes, head, refused, send
from live_service import KEY, Service, Watch, serving

from cxr_ray.training.run import hardware, versions

Answered = tuple[Attack, Reply]


def table(answered: Sequence[Answered]) -> str:
    """A line a kind of attack, Markdown."""
    kinds: dict[str, list[Answered]] = {}
    for attack, reply in answered:
        kinds.setdefault(attack.name.partition(":")[0], []).append((attack, reply))
    rows = ["| attack | requests | answers | slowest |", "|---|---|---|---|"]
    for kind, found in kinds.items():
        statuses = Counter(reply.status or "closed" for _, reply in found)
        told = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items(), key=str))
        rows.append(f"| {kind} | {len(found)} | {told} | {max(1000 * reply.seconds for _, reply in found):.0f} ms |")
    return "\n".join(rows)


def attacked(service: Service) -> tuple[dict[str, Any], list[Answered]]:
    """Send every attack; what came of it."""
    name = json.loads(service.get("/v1/model"))["name"]
    replica = service.replica()
    with Watch(service) as watch:
        answered = [(attack, send(service.port, attack.data)) for attack in attacks(KEY, name)]
    slowest, slow = max(answered, key=lambda pair: pair[1].seconds)
    return {
        "attacks": len(answered),
        "refused": sum(refused(*pair) for pair in answered),
        "not_refused": [attack.name for attack, reply in answered if not refused(attack, reply)],
        "slowest_ms": round(1000 * slow.seconds),
        "slowest": slowest.name,
        "memory_before_mib": round(watch.before / 2**20),
        "memory_growth_mib": round(watch.growth / 2**20),
        "same_replica": service.replica() == replica,
    }, answered


def without_key(service: Service) -> dict[str, Any]:
    """How many routes refuse who has no key."""
    paths = closed_routes(service.get("/v1/model"))
    answers = [send(service.port, head("", method=b"GET", path=path.encode())) for path in paths]
    return {"routes": len(paths), "routes_that_want_a_key": sum(reply.status == 401 for reply in answers)}


def fuzzed(service: Service, examples: int) -> dict[str, Any]:
    """Requests made from the OpenAPI description, and how many of them the service failed at."""
    import hypothesis
    import schemathesis

    key = {"X-API-Key": KEY}
    statuses: Counter[int] = Counter()
    described = schemathesis.openapi.from_url(f"{service.url}/openapi.json", headers=key)
    operations: list[Any] = list(described.get_all_operations())
    for operation in operations:

        @hypothesis.settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(case=operation.ok().as_strategy())
        def ask(case: Any) -> None:
            statuses[case.call(headers=key).status_code] += 1

        ask()
    return {"fuzzed_requests": statuses.total(), "server_errors": sum(count for status, count in statuses.items() if status >= 500)}


def main() -> None:
    """Start the service, attack it, and say what it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="BUNDLE")
    parser.add_argument("--examples", type=int, default=100, help="requests that schemathesis makes for each operation")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    bundle = str(Path(arguments.bundle).absolute())
    with tempfile.TemporaryDirectory(prefix="cxr-") as folder, serving(bundle, Path(folder), "--gate", "flag") as service:
        load = os.getloadavg()[0]
        facts, answered = attacked(service)
        facts |= without_key(service) | fuzzed(service, arguments.examples)
    facts |= {"load_average": round(load, 2), "date": time.strftime("%Y-%m-%d"), "hardware": hardware(), "versions": versions()}
    print(table(answered), file=sys.stderr)
    if arguments.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name:24} {value}", file=sys.stderr)


if __name__ == "__main__":
    main()
