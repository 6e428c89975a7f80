"""The image: no root, the tested versions, nothing copied that is not there or is secret."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[3]
FILE = ROOT / "deploy" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", FILE.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def test_it_runs_as_somebody_else_than_root() -> None:
    users = [value for name, value in last_stage() if name == "USER"]
    assert users == ["1000:1000"]
    after = [name for name, _ in last_stage()][[name for name, _ in last_stage()].index("USER") :]
    assert "RUN" not in after, "what is installed is not the runner's to change"


def test_it_starts_the_command_line_and_says_whether_it_is_well() -> None:
    stage = dict(last_stage())
    assert stage["ENTRYPOINT"] == '["cxr-ray"]'
    assert "/healthz" in stage["HEALTHCHECK"]
    assert stage["ENV"].count("RAY_AUTH_MODE=token") == 1


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    kept = {line[1:] for line in (FILE.parent / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied: set[str] = set()
    for name, value in instructions():
        assert name != "ADD", "ADD unpacks and fetches"
        words = shlex.split(value)
        if name == "COPY" and not any(word.startswith("--from") for word in words):
            copied |= set(words[:-1])
    assert copied
    assert copied == kept
    assert all((ROOT / path).exists() for path in copied)


def test_versions_are_pinned_and_no_secret_is_named() -> None:
    text = FILE.read_text()
    installs = re.findall(r"pip install .*", text)
    assert installs
    assert all("--constraint constraints.txt" in line for line in installs)
    assert all(re.search(r":\d+\.\d+", value) for name, value in instructions() if name == "FROM")
    assert not re.search(r"(TOKEN|KEY|SECRET|PASSWORD)\s*=", text)
    assert not [value for name, value in instructions() if name == "ARG"], "build arguments stay in the image's history"
