"""A service as a user starts it, and what it must withstand: hostile requests, no key, and patients' data that it must not keep."""

from __future__ import annotations

import base64
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attacks
import pytest
from live_service import KEY, Service, Watch, serving
from PIL import Image

MARKS = [f"MARK{number:02d}QX" for number in range(20)]
SLOWEST_SECONDS = 10.0
"""One second on an idle machine (benchmarks/serve_hostile.py); tests share theirs."""
MOST_GROWTH_BYTES = 256 * 2**20


@pytest.fixture(scope="module")
def service(session_bundle: Any) -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="cxr-") as folder, serving(session_bundle.location, Path(folder)) as running:
        yield running


def test_every_attack_is_refused_by_the_replica_that_stays(service: Service, png: bytes) -> None:
    replica = service.replica()
    with Watch(service) as watch:
        answered = {attack: attacks.send(service.port, attack.data) for attack in attacks.attacks(KEY, "tiny")}
    assert len(answered) > 150
    assert [(attack.name, reply.status) for attack, reply in answered.items() if not attacks.refused(attack, reply)] == []
    assert [(attack.name, reply.seconds) for attack, reply in answered.items() if reply.seconds > SLOWEST_SECONDS] == []
    assert service.replica() == replica
    assert watch.growth < MOST_GROWTH_BYTES
    assert attacks.send(service.port, attacks.post(KEY, png)).status == 200


def test_every_route_but_one_wants_a_key(service: Service) -> None:
    paths = attacks.closed_routes(service.get("/v1/model"))
    assert {"/", "/v1/predict", "/readyz", "/metrics", "/openapi.json", "/v2/models/x/infer"} <= set(paths)
    for path in paths:
        for method in (b"GET", b"POST"):
            reply = attacks.send(service.port, attacks.head("", b"Content-Length: 0", method=method, path=path.encode()))
            assert (path, reply.status) == (path, 401)
    assert attacks.send(service.port, attacks.head("", method=b"GET", path=b"/healthz")).status == 200


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    """One element in explicit little endian."""
    length = struct.pack("<H", len(value)) if kind == b"LO" else struct.pack("<xxI", len(value))
    return struct.pack("<HH", group, number) + kind + length + value


def marked_files(hostile: ModuleType) -> dict[str, bytes]:
    """Good files and broken ones, with the first eleven marks wherever such a file has room for words."""
    name, number, born, operator, private, label, drawn, text, packed, exif, comment = MARKS[:11]
    elements = element(9, 0x10, b"LO", private.encode()) + element(0x6000, 0x1500, b"LO", label.encode())
    elements += element(0x6000, 0x3000, b"OW", drawn.encode())
    tags = {"PatientName": f"{name}^Jane", "PatientID": number, "PatientBirthDate": "18770923", "OperatorsName": operator}

    def film(side: int, **changes: Any) -> bytes:
        plain = hostile.dicom(hostile.picture(side, side), **tags, **changes).replace(b"18770923", born.encode())
        return bytes(hostile.with_elements_before(plain, elements))

    grey = hostile.picture()
    chunks = [
        hostile.png_chunk(b"tEXt", b"Comment\0" + text.encode()),
        hostile.png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(packed.encode())),
    ]
    about = Image.Exif()
    about[0x010E] = exif
    png = hostile.png(80, 96, 8, 0, hostile.filtered(grey), before=chunks)
    jpeg = hostile.saved(Image.fromarray(grey), "JPEG", exif=about, comment=comment.encode())
    good = {"film": film(96), "large film": film(1200), "png": png, "jpeg": jpeg}  # the large one goes through Ray's object store
    bad = {"short film": film(96, PixelData=bytes(10)), "short png": png[:-20], "short jpeg": jpeg[: len(jpeg) // 2]}
    assert all(any(mark.encode() in data for data in good.values()) for mark in MARKS[:11] if mark != packed)
    return good | bad


def marked_requests(hostile: ModuleType) -> list[bytes]:
    """Those files in every way that they can be sent, and the other marks in all that surrounds them."""
    file_name, field, value, query, path, given_id, agent, cookie, user = (mark.encode() for mark in MARKS[11:])
    secret = base64.b64encode(user + b":" + KEY.encode())
    lines = (b"X-Request-ID: " + given_id, b"User-Agent: " + agent, b"Cookie: patient=" + cookie, b"Authorization: Basic " + secret)
    found = []
    for data in marked_files(hostile).values():
        note = attacks.part(b'name="' + field + b'"', value)
        image = attacks.part(b'name="' + field + b'"; filename="' + file_name + b'.dcm"', data)
        found += [
            attacks.post(KEY, data, *lines, path=b"/v1/predict?patient=" + query),
            attacks.post(KEY, data, *lines, path=b"/v1/explain?label=" + query),
            attacks.post(KEY, data, *lines, path=b"/v1/explain"),
            attacks.form(KEY, [note, image, image]),
            attacks.post(KEY, data, *lines, path=b"/v2/models/" + path + b"/infer"),
            attacks.post(path.decode(), data, *lines[:3], path=b"/v1/" + path),
        ]
    broken = b"GET /" + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: " + user + b"\r\n\r\n"
    return [*found, attacks.head(KEY, *lines, method=b"GET", path=b"/" + path), broken]


def left_behind(folder: Path, replies: list[attacks.Reply]) -> Iterator[tuple[str, bytes]]:
    """Everything a service has said and written, by where."""
    for reply in replies:
        yield "an answer", reply.body + str(reply.headers).encode()
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


def test_twenty_marks_and_none_is_kept(service: Service, hostile: ModuleType) -> None:
    """Names, numbers and dates of patients, in files and around them: none in logs, metrics, answers, temporary or spilled files."""
    folder = service.folder
    before = set((folder / "tmp").rglob("*"))
    sent = marked_requests(hostile)
    replies = [attacks.send(service.port, data) for data in sent]
    assert {200, 400, 401, 404, 415, 422} >= {reply.status for reply in replies} >= {200, 400, 401, 404, 422}
    replies.append(attacks.send(service.port, attacks.head(KEY, method=b"GET", path=b"/metrics")))
    found = dict(left_behind(folder, replies))
    assert {name.partition("/")[0] for name in found} >= {"an answer", "audit.jsonl", "ray", "stdout", "stderr"}
    assert sum("/logs/serve/" in name for name in found) >= 3, "the logs of Ray Serve are elsewhere"
    assert replies[0].headers["x-request-id"].encode() in found["audit.jsonl"]
    assert [(place, mark) for place, data in left_behind(folder, replies) for mark in MARKS if mark.encode() in data] == []
    assert set((folder / "tmp").rglob("*")) == before
