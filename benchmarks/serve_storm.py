"""What does the service lose when its processes are killed, a new bundle rolls in, ten thousand requests come at once, or clients dawdle?

    cxr-ray demo
    python benchmarks/serve_storm.py work/demo/bundle --json

Two replicas on this machine, behind HAProxy or Ray's own proxy (``--front ray``); every client is in this process and asks 127.0.0.1.
Each storm is held against the calm before it in the same run. Prints one flat object; times are in milliseconds unless the name says other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import redirect_stdout
from importlib.resources import files
from pathlib import Path
from typing import Any

from cxr_ray import cluster, front

KEY = "a-key-of-this-benchmark-alone"
CALM_CLIENTS = 4
KILLS = 10
STORMS = ("kill-replica", "kill-replicas", "kill-controller", "kill-proxy", "roll", "flood", "loris")
Answers = list[tuple[float, float, str]]
"""When (of the monotonic clock) an answer came, after how many milliseconds, and its status, or the error in its place."""


class Client:
    """One connection at a time, kept as long as the server does."""

    def __init__(self, port: int, body: bytes) -> None:
        head = f"POST /v1/predict?gate=flag HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Type: application/octet-stream\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._port = port
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> str:
        """The status of one answer, or the name of what went wrong."""
        try:
            async with asyncio.timeout(60):
                return await self._ask()
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self.close()
            return type(error).__name__

    async def _ask(self) -> str:
        self._connection = self._connection or await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._connection
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        await reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
        if "connection: close" in head:
            self.close()
        return head.split()[1]

    def close(self) -> None:
        """Forget the connection."""
        if self._connection is not None:
            self._connection[1].close()
            self._connection = None


@contextlib.asynccontextmanager
async def asking(port: int, body: bytes, clients: int) -> AsyncIterator[Answers]:
    """So many clients ask without pause while the block runs."""
    answers: Answers = []
    ended = False

    async def go_on() -> None:
        client = Client(port, body)
        while not ended:
            begin = time.monotonic()
            status = await client.ask()
            answers.append((time.monotonic(), 1000 * (time.monotonic() - begin), status))
            if not status.isdigit():
                await asyncio.sleep(0.02)
        client.close()

    tasks = [asyncio.create_task(go_on()) for _ in range(clients)]
    try:
        yield answers
    finally:
        ended = True
        await asyncio.gather(*tasks)


def p99(answers: Answers) -> float:
    """Of the times of answers that are 200."""
    times = sorted(milliseconds for _, milliseconds, status in answers if status == "200")
    return statistics.quantiles(times, n=100)[98] if len(times) > 1 else float("nan")


def lost(answers: Answers) -> int:
    """Requests that were not answered with 200."""
    return sum(status != "200" for _, _, status in answers)


def family() -> list[Path]:
    """Folders in /proc of all processes that descend from this one."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])

    def ours(number: int) -> bool:
        while number > 1 and number != os.getpid():
            number = parents.get(number, 0)
        return number == os.getpid()

    return [Path("/proc") / str(number) for number in parents if number != os.getpid() and ours(number)]


def processes(kind: str) -> list[int]:
    """Numbers of our processes whose command line holds ``kind``."""
    found = []
    for entry in family():
        with contextlib.suppress(OSError):
            if kind in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found


def megabytes() -> float:
    """Memory of all processes of ours, shared pages divided between them."""
    found = 0
    for entry in family():
        with contextlib.suppress(OSError):
            found += int((entry / "smaps_rollup").read_text().partition("\nPss:")[2].split()[0])
    return found / 1024


class Storms:
    """One running service and what is done to it.

    Args:
        port: Of the service.
        body: Of a request.
        calm: Seconds of the calm that a storm is held against, and of what follows a blow.
        requests: Of the flood.
        clients: Of the flood.
        pause: Seconds between the start of a replica's process and the next kill, where replica after replica is killed.
        roll: Replaces the bundle by another.
    """

    def __init__(self, port: int, body: bytes, *, calm: float, requests: int, clients: int, pause: float, roll: Callable[[], None]) -> None:
        self._port, self._body, self._calm, self._pause, self._replace = port, body, calm, pause, roll
        self._requests, self._clients = requests, clients

    async def run(self, storm: str) -> dict[str, Any]:
        """The figures of one."""
        await self._quiet()
        base = await self._quiet()
        found = await getattr(self, f"_{storm.replace('-', '_')}")(p99(base))
        name = storm.replace("-", "_")
        return {f"{name}_base_p99": round(p99(base), 1), **{f"{name}_{key}": value for key, value in found.items()}}

    async def _quiet(self) -> Answers:
        async with asking(self._port, self._body, CALM_CLIENTS) as answers:
            await asyncio.sleep(self._calm)
        return answers

    async def _blow(self, kind: str) -> Answers:
        async with asking(self._port, self._body, CALM_CLIENTS) as answers:
            await asyncio.sleep(1)
            os.kill(processes(kind)[0], signal.SIGKILL)
            await asyncio.sleep(self._calm + 10)
        return answers

    async def _kill_replica(self, _: float) -> dict[str, Any]:
        answers = await self._blow("ray::ServeReplica")
        return {"requests": len(answers), "lost": lost(answers)}

    async def _kill_replicas(self, _: float) -> dict[str, Any]:
        """The older one, again and again, a pause after there are two: by default the other is ready, or about to be."""
        async with asking(self._port, self._body, CALM_CLIENTS) as answers:
            for _ in range(KILLS):
                while len(found := await asyncio.to_thread(processes, "ray::ServeReplica")) < 2:
                    await asyncio.sleep(0.2)
                os.kill(min(found), signal.SIGKILL)
                await asyncio.sleep(self._pause)
            await asyncio.sleep(self._calm + 10)
        failed = {f"status_{status.lower()}": count for status, count in Counter(one[2] for one in answers).items() if status != "200"}
        return {"kills": KILLS, "requests": len(answers), "lost": lost(answers), **failed}

    async def _kill_controller(self, _: float) -> dict[str, Any]:
        answers = await self._blow("ray::ServeController")
        return {"requests": len(answers), "lost": lost(answers)}

    async def _kill_proxy(self, _: float) -> dict[str, Any]:
        async with asking(self._port, self._body, CALM_CLIENTS) as answers:
            await asyncio.sleep(1)
            begin = time.monotonic()
            for number in processes("haproxy.cfg" if front.in_use() else "ray::ProxyActor"):
                os.kill(number, signal.SIGKILL)
            alive = None
            while alive is None and time.monotonic() < begin + 60:
                await asyncio.sleep(0.1)
                dead = [when for when, _, status in answers if when > begin and status != "200"]
                alive = next((when for when, _, status in answers if dead and when > dead[0] and status == "200"), None)
        return {"lost": lost(answers), "seconds": round(alive - begin, 2) if alive else None}

    async def _roll(self, base: float) -> dict[str, Any]:
        async with asking(self._port, self._body, CALM_CLIENTS) as answers:
            begin = time.monotonic()
            await asyncio.to_thread(self._replace)
            seconds = time.monotonic() - begin
            await asyncio.sleep(self._calm)
        return {"requests": len(answers), "lost": lost(answers), "seconds": round(seconds, 1), "p99_ratio": round(p99(answers) / base, 2)}

    async def _flood(self, base: float) -> dict[str, Any]:
        before, left, most = megabytes(), self._requests, 0.0
        statuses: Counter[str] = Counter()

        async def go_on() -> None:
            nonlocal left
            client = Client(self._port, self._body)
            while left > 0:
                left -= 1
                statuses[await client.ask()] += 1
            client.close()

        clients = asyncio.gather(*(go_on() for _ in range(self._clients)))
        while not clients.done():
            most = max(most, await asyncio.to_thread(megabytes))
            await asyncio.wait([clients], timeout=0.5)
        end = time.monotonic()
        back = None
        while back is None and time.monotonic() - end < 60:
            async with asking(self._port, self._body, CALM_CLIENTS) as answers:
                await asyncio.sleep(1)
            if p99(answers) <= 1.5 * base and not lost(answers):
                back = round(time.monotonic() - end - 1, 1)
        told = {f"status_{status.lower()}": count for status, count in sorted(statuses.items())}
        growth, peak = round(megabytes() - before), round(most - before)
        return {"requests": self._requests, "clients": self._clients, **told, "growth_mb": growth, "peak_mb": peak, "seconds_to_base": back}

    async def _loris(self, base: float) -> dict[str, Any]:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n"

        async def dawdle(start: str) -> float:
            begin = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(start.encode())
            with contextlib.suppress(OSError):
                await asyncio.wait_for(reader.read(), 60)
            writer.close()
            return time.monotonic() - begin

        async with asking(self._port, self._body, CALM_CLIENTS) as answers:
            seconds = await asyncio.gather(*map(dawdle, [head, f"{head}Content-Length: 1000\r\n\r\nhalf"] * 150))
        return {"sockets": 300, "seconds": round(max(seconds), 1), "lost": lost(answers), "p99_ratio": round(p99(answers) / base, 2)}


def order(address: str, settings: str, ready: Any, go: Any) -> None:
    """Deploy a service's settings when told to: a client that measures must not be the one that orders."""
    cluster.prepare_environment()
    from cxr_ray.serving.app import ServeSettings
    from cxr_ray.serving.deployed import deploy

    with cluster.connected(address):
        ready.set()
        go.wait()
        deploy(ServeSettings.model_validate_json(settings))


@contextlib.contextmanager
def service(bundle: str, which: str) -> Iterator[tuple[int, Callable[[], None]]]:
    """Two replicas; the port, and what replaces their bundle."""
    os.environ["CXR_RAY_API_KEY"] = KEY
    front.choose(which)
    cluster.prepare_environment()
    import ray

    from cxr_ray.serving.app import ServeSettings, checked
    from cxr_ray.serving.start import running

    logging.getLogger("ray").setLevel(logging.ERROR)
    settings = ServeSettings(bundle=bundle, replicas=2, cpus=1)
    with tempfile.TemporaryDirectory() as folder, cluster.connected("local"):
        other = Path(folder) / "other"
        shutil.copytree(bundle, other)
        manifest = json.loads((other / "bundle.json").read_text())
        (other / "bundle.json").write_text(json.dumps(manifest | {"name": f"{manifest['name']}-other"}))
        with running(settings, port=0) as url:
            told = checked(settings.model_copy(update={"bundle": str(other)})).model_dump_json()
            context = multiprocessing.get_context("spawn")
            ready, go = context.Event(), context.Event()
            orders = context.Process(target=order, args=(ray.get_runtime_context().gcs_address, told, ready, go), daemon=True)
            orders.start()
            ready.wait(60)

            def roll() -> None:
                go.set()
                orders.join()

            yield int(url.rpartition(":")[2]), roll
            orders.kill()


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """The benchmark; its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--front", choices=["auto", "haproxy", "ray"], default="auto")
    parser.add_argument("--storms", nargs="+", choices=STORMS, default=STORMS)
    parser.add_argument("--requests", type=int, default=10_000, help="of the flood")
    parser.add_argument("--clients", type=int, default=500, help="of the flood, at once")
    parser.add_argument("--calm", type=float, default=8.0, help="seconds of the calm that each storm is held against")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before the next of kill-replicas")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    body = (files("cxr_ray.serving.web") / "samples" / "phantom-normal.png").read_bytes()
    with redirect_stdout(sys.stderr), service(str(Path(given.bundle).absolute()), given.front) as (port, roll):
        storms = Storms(port, body, calm=given.calm, requests=given.requests, clients=given.clients, pause=given.pause, roll=roll)
        found: dict[str, Any] = {"front": "haproxy" if front.in_use() else "ray"}
        for storm in given.storms:
            found |= asyncio.run(storms.run(storm))
    for name, value in {} if given.json else found.items():
        print(f"{name:32} {value}")
    if given.json:
        print(json.dumps(found))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
