"""Where the service may listen, and with what certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import serve
from ray.exceptions import ActorDiedError

from cxr_ray import cli, front
from cxr_ray.errors import ClusterError, ConfigError
from cxr_ray.serving.app import ServeSettings
from cxr_ray.serving.start import Place, running


def test_a_pair_is_taken(key_pair: tuple[Path, Path]) -> None:
    Place(certificate=str(key_pair[0]), key=str(key_pair[1])).check()
    Place().check()


def test_a_key_that_others_may_read_is_refused(key_pair: tuple[Path, Path], tmp_path: Path) -> None:
    key = tmp_path / "tls.key"
    key.write_bytes(key_pair[1].read_bytes())
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Place(certificate=str(key_pair[0]), key=str(key)).check()


@pytest.mark.parametrize("wrong", ["other", "absent", "swapped", "one"])
def test_what_is_no_pair_is_refused_in_words(wrong: str, key_pair: tuple[Path, Path], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    certificate, key = key_pair
    other = tmp_path / "other.key"
    other.touch(0o600)
    encoding, form, none = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    other.write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(encoding, form, none))
    place = {
        "other": Place(certificate=str(certificate), key=str(other)),
        "absent": Place(certificate=str(tmp_path / "absent"), key=str(key)),
        "swapped": Place(certificate=str(key), key=str(key)),
        "one": Place(certificate=str(certificate)),
    }[wrong]
    with pytest.raises(ConfigError, match="belong together" if wrong == "one" else "no certificate and its key"):
        place.check()


def test_the_command_ends_before_anything_starts(key_pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", "bundle", "--tls-cert", str(key_pair[1]), "--tls-key", str(key_pair[1])]) == 2
    assert "no certificate and its key" in capsys.readouterr().err


def test_a_front_that_does_not_come_up_is_told_in_words(bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def start(**_: object) -> None:
        raise ActorDiedError

    monkeypatch.setenv("CXR_RAY_API_KEY", "a-key-for-a-service-that-does-not-start")
    monkeypatch.setattr(serve, "start", start)
    monkeypatch.setattr(serve, "shutdown", lambda: ended.append(True))
    monkeypatch.setattr(front, "in_use", lambda: False)
    with pytest.raises(ClusterError, match="did not come up: ActorDiedError"), running(ServeSettings(bundle=bundle.location), port=0):
        pass
    assert ended == [True], "what had started is left behind"
