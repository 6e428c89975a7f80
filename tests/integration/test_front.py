"""The front door under fire: replica, controller and front are killed, clients dawdle, a new bundle comes; over TLS."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from process_tree import processes

from cxr_ray import front
from cxr_ray.errors import ClusterError
from cxr_ray.serving.app import ServeSettings
from cxr_ray.serving.deployed import deploy
from cxr_ray.serving.keys import obtain_key
from cxr_ray.serving.start import Place, running

KEY = "a-key-for-the-tests-of-the-front"
HEAD = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n"
HEADERS = {"X-API-Key": KEY, "Content-Type": "application/octet-stream"}


class Clients:
    """Clients that ask without pause, each over a connection of its own, until the block ends; ``answers`` counts statuses and failures."""

    def __init__(self, port: int, tls: ssl.SSLContext, *bodies: bytes) -> None:
        self._port, self._tls, self._bodies = port, tls, bodies
        self._ended = threading.Event()
        self.answers: Counter[Any] = Counter()
        self.versions: Counter[str] = Counter()

    def __enter__(self) -> Clients:
        self._threads = [threading.Thread(target=self._ask, args=(body,)) for body in self._bodies]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, body: bytes) -> None:
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=self._tls, timeout=30)
        while not self._ended.is_set():
            try:
                connection.request("POST", "/v1/predict", body, HEADERS)
                answer = connection.getresponse()
                told = json.loads(answer.read())
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.answers[type(error).__name__] += 1
                connection.close()
                self._ended.wait(0.1)
                continue
            self.answers[answer.status] += 1
            self.versions[told.get("model_version", "")] += 1
        connection.close()

    def until(self, reached: Callable[[], bool], seconds: float = 60) -> None:
        """Wait; fails when it takes longer."""
        end = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < end, self.answers
            time.sleep(0.05)

    def go_on(self, count: int = 20) -> None:
        """Wait for so many further answers."""
        before = self.answers.total()
        self.until(lambda: self.answers.total() >= before + count)


@pytest.fixture(scope="session")
def trusting(key_pair: tuple[Path, Path]) -> ssl.SSLContext:
    """Of a client that trusts the test's certificate and no other."""
    return ssl.create_default_context(cafile=str(key_pair[0]))


@pytest.fixture
def service(
    ray_cluster: None, bundle: Any, key_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, ServeSettings]]:
    """Two replicas behind HAProxy, over TLS."""
    if not front.in_use():
        pytest.skip("there is no HAProxy here")
    monkeypatch.setenv("CXR_RAY_API_KEY", KEY)
    settings = ServeSettings(bundle=bundle.location, cpus=0.5, replicas=2, key_sha256=obtain_key().digest)
    place = Place(port=0, certificate=str(key_pair[0]), key=str(key_pair[1]))
    with running(settings, place=place) as url:
        assert url.startswith("https://127.0.0.1:")
        yield int(url.rpartition(":")[2]), settings


def kill_one(kind: str, below: int) -> None:
    os.kill(processes(kind, below)[0], signal.SIGKILL)


def large(png: bytes) -> bytes:
    """The same picture in more bytes than the front keeps: what follows a PNG's end is not read."""
    return png + bytes(front.BUFFER_BYTES)


def slow_clients(port: int, tls: ssl.SSLContext, stack: contextlib.ExitStack, count: int) -> list[socket.socket]:
    """Half handshakes, half heads and half bodies."""
    found = []
    for number in range(count):
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        if number % 3:
            client = tls.wrap_socket(client, server_hostname="127.0.0.1")
            client.sendall((HEAD if number % 3 == 1 else f"{HEAD}Content-Length: 1000\r\n\r\nhalf").encode())
        found.append(stack.enter_context(client))
    return found


def closed_within(clients: list[socket.socket], end: float) -> bool:
    """Whether the server closes each of them before ``end`` (of the monotonic clock)."""
    for client in clients:
        with contextlib.suppress(ConnectionError):
            while True:
                client.settimeout(max(0.01, end - time.monotonic()))
                try:
                    if not client.recv(4096):
                        break
                except TimeoutError:
                    return False
    return True


def test_behind_haproxy(service: tuple[int, ServeSettings], trusting: ssl.SSLContext, png: bytes, tmp_path: Path) -> None:
    """One service for all of it: each start costs seconds. Nobody's request fails but while the front itself is dead."""
    port, settings = service
    own = os.getpid()
    with contextlib.ExitStack() as stack:
        with Clients(port, trusting, png, png, large(png)) as clients:
            clients.go_on()
            kill_one("ray::ServeReplica", own)
            clients.go_on(60)
            kill_one("ray::ServeController", own)
            clients.go_on(60)
            assert set(clients.answers) == {200}, "killed replica and controller"
            a_new_bundle_rolls_in(clients, settings, tmp_path)
            slow, begin = slow_clients(port, trusting, stack, 60), time.monotonic()
            what_does_not_start_takes_no_traffic(clients, settings)
            assert set(clients.answers) == {200}, "rolled"
            assert closed_within(slow, begin + 15)
            clients.go_on()
        only_the_front_is_seen(port, own)
        the_front_comes_back(port, trusting, own, png)


def a_new_bundle_rolls_in(clients: Clients, settings: ServeSettings, tmp_path: Path) -> None:
    """The last answer is of the new one."""
    from cxr_ray.bundle import read_bundle

    changed = tmp_path / "changed"
    subprocess.run(["cp", "-r", settings.bundle, changed], check=True)
    manifest = changed / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"tiny"', '"changed"', 1))
    deploy(settings.model_copy(update={"bundle": str(changed)}))
    version = read_bundle(str(changed)).version
    clients.until(lambda: clients.versions[version] > 20)


def what_does_not_start_takes_no_traffic(clients: Clients, settings: ServeSettings) -> None:
    with pytest.raises(ClusterError, match="did not come up"):
        deploy(settings.model_copy(update={"audit": "/proc/there-is-no-such-folder/audit.jsonl"}))
    clients.go_on()


def only_the_front_is_seen(port: int, own: int) -> None:
    """Of HAProxy and of the replicas' HTTP servers nothing listens beyond this machine."""
    haproxy = processes(str(Path(os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent), own)  # of this service alone
    assert haproxy
    listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [line.split()[3] for line in listening if any(f"pid={number}," in line for number in haproxy)]
    assert set(ours) == {f"127.0.0.1:{port}"}
    direct = [line.split()[3] for line in listening if any(f"pid={number}," in line for number in processes("ray::ServeReplica", own))]
    assert {address.rpartition(":")[0] for address in direct if address.rpartition(":")[2].startswith("300")} == {"127.0.0.1"}


def the_front_comes_back(port: int, tls: ssl.SSLContext, own: int, png: bytes) -> None:
    with Clients(port, tls, png) as clients:
        clients.go_on(5)
        for number in processes("haproxy.cfg", own):  # one of before the roll may still be there
            os.kill(number, signal.SIGKILL)
        begin = time.monotonic()
        clients.until(lambda: set(clients.answers) > {200}, 5)
        answered = clients.answers[200]
        clients.until(lambda: clients.answers[200] > answered, 30)
        assert time.monotonic() - begin < 20  # 5 s on a quiet machine; benchmarks/serve_storm.py measures it


def test_behind_rays_own_proxy(bundle: Any, key_pair: tuple[Path, Path], trusting: ssl.SSLContext, png: bytes, tmp_path: Path) -> None:
    """The command, with ``--front ray``: TLS, a killed replica, slow clients."""
    command = [sys.executable, "-m", "cxr_ray", "serve", bundle.location, "--port", "0", "--replicas", "2", "--json"]
    command += ["--front", "ray", "--tls-cert", str(key_pair[0]), "--tls-key", str(key_pair[1])]
    given = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CXR_"))} | {"CXR_RAY_API_KEY": KEY}
    with (tmp_path / "stderr").open("w") as log, contextlib.ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=given))
        try:
            assert process.stdout is not None
            port = int(json.loads(process.stdout.readline())["url"].rpartition(":")[2])
            slow, begin = slow_clients(port, trusting, stack, 30), time.monotonic()
            with Clients(port, trusting, png, png, large(png)) as clients:
                clients.go_on()
                kill_one("ray::ServeReplica", process.pid)
                clients.go_on(60)
                asked_over_tls = [client for number, client in enumerate(slow) if number % 3]  # a handshake may take a minute there
                assert closed_within(asked_over_tls, begin + 15)
            assert set(clients.answers) == {200}
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
