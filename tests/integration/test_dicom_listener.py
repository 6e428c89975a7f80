"""A modality sends, the listener answers, an archive receives: over real associations on loopback. No Ray."""

from __future__ import annotations

import io
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import uvicorn

pytest.importorskip("highdicom", reason="the extra dicom is not installed")
pytest.importorskip("pynetdicom", reason="the extra dicom is not installed")

from pydantic import ValidationError
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ComprehensiveSRStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt

from cxr_ray.errors import ClusterError, CxrRayError, ImageError
from cxr_ray.serving.dicom.answer import answer
from cxr_ray.serving.dicom.delivery import Delivery, Destination
from cxr_ray.serving.dicom.listener import ListenSettings, listening
from cxr_ray.serving.dicom.reading import Finding, HeatMap, Reading

# pynetdicom's client, here the modality, may leave a plain socket of an aborted association to the garbage collector on a busy machine.
# The listener's are of a class of their own, and one left open still fails.
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed <socket\.socket:ResourceWarning")

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless]
PATIENT = {"PatientName": "MARKER^NAME", "PatientID": "MARKER-ID", "StudyInstanceUID": "1.2.3.1", "SeriesInstanceUID": "1.2.3.2"}
READING = Reading((Finding("covid", 0.9, 0.5, True),), "tiny", "0123456789ab", (), HeatMap("covid", np.zeros((32, 32, 3), np.uint8)))


class Archive:
    """A SCP that keeps what it is sent.

    Args:
        statuses: One for each C-STORE, then success.
        syntax: The only transfer syntax it takes.
    """

    def __init__(self, statuses: list[int] | None = None, syntax: UID = ExplicitVRLittleEndian) -> None:
        self.statuses, self.received = statuses or [], []
        self.arrived = threading.Condition()
        ae = AE("ARCHIVE")
        for sop_class in (ComprehensiveSRStorage, SecondaryCaptureImageStorage):
            ae.add_supported_context(sop_class, syntax)
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        self.to = Destination("127.0.0.1", self._server.server_address[1], "ARCHIVE")

    def _store(self, event: evt.Event) -> int:
        status = self.statuses.pop(0) if self.statuses else 0x0000
        with self.arrived:
            if status == 0:
                self.received.append(dcmread(io.BytesIO(event.encoded_dataset())))
            self.arrived.notify_all()
        return status

    def wait(self, count: int) -> list[Dataset]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.received) >= count, timeout=30)
        return self.received

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def archive() -> Iterator[Archive]:
    made = Archive()
    yield made
    made.close()


@contextmanager
def listener(to: Destination, read: Callable[[bytes], Reading] = lambda _: READING, room: int = 8, **settings: Any) -> Iterator[int]:
    delivery = Delivery(to, ae_title="CXR_RAY", room=room, tries=3, wait=0.05, timeout=5)
    try:
        with listening(partial(answer, reader=read), delivery, ListenSettings(**{"port": 0, "timeout_s": 5, **settings})) as port:
            yield port
    finally:
        delivery.close()


def send(port: int, *files: bytes, caller: str = "MODALITY", called: str = "CXR_RAY") -> list[Dataset]:
    """The status of each file."""
    ae = AE(caller)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    for syntax in SYNTAXES:
        ae.add_requested_context(DigitalXRayImageStorageForPresentation, syntax)
        ae.add_requested_context(ComputedRadiographyImageStorage, syntax)
    association = ae.associate("127.0.0.1", port, ae_title=called)
    assert association.is_established
    try:
        return [association.send_c_store(dcmread(io.BytesIO(file))) for file in files]
    finally:
        association.release()


@pytest.fixture
def xray(hostile: ModuleType) -> Callable[..., bytes]:
    def make(**changes: Any) -> bytes:
        return bytes(hostile.dicom(hostile.picture(), **{"SOPInstanceUID": "1.2.3.3", **PATIENT, **changes}))

    return make


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_an_image_comes_back_as_report_and_capture(xray: Callable[..., bytes], syntax: UID) -> None:
    archive = Archive(syntax=syntax)
    with listener(archive.to) as port:
        statuses = send(port, xray(), xray(syntax=JPEG2000Lossless, SOPInstanceUID="1.2.3.4"))
        received = archive.wait(4)
    archive.close()
    assert [status.Status for status in statuses] == [0, 0]
    assert [made.SOPClassUID for made in received] == [ComprehensiveSRStorage, SecondaryCaptureImageStorage] * 2
    for made in received:
        assert (made.PatientName, made.PatientID, made.StudyInstanceUID) == ("MARKER^NAME", "MARKER-ID", "1.2.3.1")
        assert made.file_meta.TransferSyntaxUID == syntax
    assert received[1].pixel_array.shape[2] == 3


def test_the_model_gets_the_file_that_was_sent(xray: Callable[..., bytes], archive: Archive) -> None:
    seen = []

    def read(data: bytes) -> Reading:
        seen.append(dcmread(io.BytesIO(data)))
        return READING

    with listener(archive.to, read) as port:
        send(port, xray())
    assert seen[0] == dcmread(io.BytesIO(xray()))


def raising(error: Exception) -> Callable[[bytes], Reading]:
    def read(_: bytes) -> Reading:
        raise error

    return read


@pytest.mark.parametrize(
    ("error", "status", "comment"),
    [
        (ImageError("not-upright", "…"), 0xC000, "not-upright"),
        (CxrRayError("no service answers"), 0xA700, "no-answer-now (CxrRayError)"),
        (RuntimeError("MARKER-ID"), 0x0110, "fault"),
    ],
)
def test_a_status_tells_the_truth_and_nothing_of_the_patient(
    xray: Callable[..., bytes], archive: Archive, caplog: pytest.LogCaptureFixture, error: Exception, status: int, comment: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with listener(archive.to, raising(error)) as port:
        said = send(port, xray())[0]
    assert (said.Status, said.ErrorComment) == (status, comment)
    assert archive.received == []
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("cxr_ray", "pynetdicom"))]
    assert any(comment in line for line in ours)
    assert not any("MARKER" in line or "1.2.3" in line for line in ours)


def test_an_image_without_a_study_and_one_that_is_another_are_refused(xray: Callable[..., bytes], archive: Archive) -> None:
    with listener(archive.to) as port:
        assert send(port, xray(StudyInstanceUID=None))[0].ErrorComment == "no-identity"
        dataset = dcmread(io.BytesIO(xray()))
        ae = AE("MODALITY")
        ae.add_requested_context(ComputedRadiographyImageStorage)
        association = ae.associate("127.0.0.1", port, ae_title="CXR_RAY")
        original = association.dimse.send_msg

        def lie(primitive: Any, context: int) -> None:
            primitive.AffectedSOPInstanceUID = "9.9.9"
            original(primitive, context)

        association.dimse.send_msg = lie  # type: ignore[method-assign]
        assert association.send_c_store(dataset).Status == 0xA900
        association.release()
    assert archive.received == []


def test_a_full_queue_is_out_of_resources(xray: Callable[..., bytes]) -> None:
    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with listener(Destination("127.0.0.1", silent.getsockname()[1], "ARCHIVE"), room=1) as port:
            assert [status.Status for status in send(port, xray(), xray())] == [0, 0xA700]


def test_what_fails_is_sent_again_and_what_is_refused_is_not(xray: Callable[..., bytes], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cxr_ray")
    archive = Archive([0xA700, 0x0000, 0xA700])
    with listener(archive.to) as port:
        send(port, xray())
        assert len(archive.wait(2)) == 2
        archive.statuses = [0xA900]
        send(port, xray(SOPInstanceUID="1.2.3.5"))
        deadline = time.monotonic() + 20
        while "is dropped" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
    archive.close()
    assert "try 3" in caplog.text
    assert "is dropped after 1 tries: refused: status 0xA900" in caplog.text
    assert len(archive.received) == 2


def test_only_those_who_are_named_and_know_our_name_may_call(xray: Callable[..., bytes], archive: Archive) -> None:
    with listener(archive.to, callers=("MODALITY",)) as port:
        assert send(port, xray())[0].Status == 0
        for caller, called in (("STRANGER", "CXR_RAY"), ("MODALITY", "OTHER")):
            ae = AE(caller)
            ae.add_requested_context(ComputedRadiographyImageStorage)
            assert ae.associate("127.0.0.1", port, ae_title=called).is_rejected
    with pytest.raises(ValidationError, match="must be named"):
        ListenSettings(host="0.0.0.0")


def test_echo_and_classes_that_are_not_taken(archive: Archive) -> None:
    with listener(archive.to) as port:
        ae = AE("MODALITY")
        ae.add_requested_context("1.2.840.10008.1.1")
        ae.add_requested_context(MRImageStorage)
        association = ae.associate("127.0.0.1", port, ae_title="CXR_RAY")
        assert association.send_c_echo().Status == 0
        assert [context.abstract_syntax for context in association.rejected_contexts] == [MRImageStorage]
        association.release()


def test_a_port_that_is_taken(archive: Archive) -> None:
    with listener(archive.to) as port:
        with pytest.raises(ClusterError, match="cannot listen"):
            with listener(archive.to, port=port):
                pass


def test_a_message_beyond_the_limit_aborts(hostile: ModuleType, archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    big = hostile.dicom(np.zeros((512, 512), np.uint16), SOPInstanceUID="1.2.3.6", **PATIENT)
    with listener(archive.to, max_bytes=100_000) as port:
        assert "Status" not in send(port, big)[0]
        assert "longer than is accepted" in caplog.text
        small = hostile.dicom(hostile.picture(), SOPInstanceUID="1.2.3.7", **PATIENT)
        assert [status.Status for status in send(port, small, small)] == [0, 0]  # counted anew for each


def test_a_pdu_that_is_too_long_or_too_slow_ends_the_connection(archive: Archive) -> None:
    with listener(archive.to, timeout_s=0.5) as port:
        for start in (b"\x01\x00" + struct.pack(">I", 2**31), b"\x01\x00\x00"):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(start)
                begun = time.monotonic()
                with ExitStack() as stack:
                    stack.callback(client.close)
                    while client.recv(1024):
                        pass
                assert time.monotonic() - begun < 5


def test_a_bundle_answers_a_real_file(bundle: Any, real_data: Path, archive: Archive) -> None:
    from cxr_ray.serving.dicom.reading import local_reader
    from cxr_ray.serving.predictor import Predictor

    file = (real_data / "dicom_chest" / "RG1_UNCR.dcm").read_bytes()
    with listener(archive.to, local_reader(Predictor(bundle), picture=True)) as port:
        assert send(port, file)[0].Status == 0
        report, capture = archive.wait(2)
    assert report.PatientID == dcmread(io.BytesIO(file)).PatientID
    assert report.DeviceSerialNumber == bundle.version
    assert capture.Columns == 512


@contextmanager
def service(bundle: Any, key: str) -> Iterator[str]:
    """The real HTTP face of ``bundle`` on loopback, without Ray Serve."""
    from cxr_ray.serving.app import model_info
    from cxr_ray.serving.audit import OFF, AuditLog
    from cxr_ray.serving.decoding import DecodePool
    from cxr_ray.serving.edge import Face, build_api
    from cxr_ray.serving.engine import LocalEngine
    from cxr_ray.serving.guard import EdgeLimits
    from cxr_ray.serving.keys import KeyRecord, KeyRing, digest
    from cxr_ray.serving.metrics import Metrics
    from cxr_ray.serving.predictor import Predictor

    pool, metrics = DecodePool(bundle.preprocess, seconds=60), Metrics()
    face = Face(
        engine=LocalEngine(Predictor(bundle), pool, metrics),
        info=model_info(bundle),
        keys=KeyRing([KeyRecord(id="test", sha256=digest(key))]),
        audit=AuditLog(OFF, model_sha256="0" * 64),
        limits=EdgeLimits(deadline_seconds=60),
        metrics=metrics,
    )
    server = uvicorn.Server(uvicorn.Config(build_api(face), log_level="warning", ws="none", lifespan="off"))
    with socket.socket() as listening_at:
        listening_at.bind(("127.0.0.1", 0))
        listening_at.listen()  # what comes before the server runs waits for it
        thread = threading.Thread(target=server.run, args=([listening_at],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening_at.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            pool.close()


def test_a_service_gives_the_same_answer_as_its_bundle(xray: Callable[..., bytes], bundle: Any, tmp_path: Path) -> None:
    """The same SOP Instance UIDs mean the same probabilities, decisions and heat map, bit for bit."""
    from cxr_ray.cli import run

    (tmp_path / "x.dcm").write_bytes(xray())
    (tmp_path / "key").write_text("a-key-of-more-than-16-characters")
    with service(bundle, "a-key-of-more-than-16-characters") as url:
        for model, out in ((bundle.location, "local"), (url, "remote")):
            arguments = ["dicom-report", model, str(tmp_path / "x.dcm"), "--out", str(tmp_path / out), "--key-file", str(tmp_path / "key")]
            assert run(arguments) == 0
    for name in ("report.dcm", "heat-map.dcm"):
        local, remote = (dcmread(tmp_path / out / name) for out in ("local", "remote"))
        assert local.SOPInstanceUID == remote.SOPInstanceUID
