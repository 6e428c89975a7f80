"""What a job is made of: the command, the files and variables that go along, and the room its entrypoint needs. No Ray here."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxr_ray import storage
from cxr_ray.errors import ConfigError

ARTEFACTS = ("dataset.json", "run.json", "bundle.json", "study.json")
"""A directory that holds one of these is data, not code: it stays here."""
EXCLUDES = (".git", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "*.egg-info")
IMAGES_AND_WEIGHTS = ("dcm", "dicom", "png", "jpg", "jpeg", "parquet", "safetensors")
"""Endings, in either case. Patients' images never travel with the code by accident; nor do the files that make a package large."""
LOOK_DEPTH = 4
"""Directories below the working directory that are searched for artefacts."""
PATH_OPTIONS = ("--data", "--out")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class JobRequest:
    """One command for the cluster."""

    command: tuple[str, ...]
    working_dir: str | None = None
    """Directory that becomes the job's; None: nothing is sent."""
    environment: Mapping[str, str] = field(default_factory=dict)
    submission_id: str | None = None
    """None: Ray makes one."""
    cpus: float = 0.0
    """Of the entrypoint itself, on one node; what it starts asks for its own."""
    gpus: float = 0.0
    memory_bytes: int = 0

    @property
    def entrypoint(self) -> str:
        """The command as the shell on the cluster reads it."""
        return shlex.join(self.command)

    @property
    def needs(self) -> dict[str, float]:
        """What the entrypoint asks of a node, in Ray's units."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes)}
        return {name: amount for name, amount in wanted.items() if amount}

    def runtime_env(self) -> dict[str, Any]:
        """Ray's runtime environment: the working directory without data, and the variables.

        Raises:
            ConfigError: The working directory is none.
        """
        found: dict[str, Any] = {"env_vars": dict(self.environment)} if self.environment else {}
        if self.working_dir is not None:
            if not Path(self.working_dir).is_dir():
                raise ConfigError([f"{self.working_dir} is no directory"], where="--working-dir")
            found |= {"working_dir": os.path.abspath(self.working_dir), "excludes": excludes(self.working_dir)}
        return found


def parse_environment(pairs: Sequence[str], here: Mapping[str, str]) -> dict[str, str]:
    """``KEY=VALUE`` as it stands, ``KEY`` alone with the value it has ``here``, so that a secret need not be typed.

    Raises:
        ConfigError: With every fault at once.
    """
    found, faults = {}, []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not _NAME.fullmatch(name):
            faults.append(f"{name!r}: expected KEY=VALUE, or KEY alone for the value it has here")
        elif not equals and name not in here:
            faults.append(f"{name} is not set here; give {name}=VALUE")
        else:
            found[name] = value if equals else here[name]
    if faults:
        raise ConfigError(faults, where="--env")
    return found


def excludes(working_dir: str) -> list[str]:
    """Patterns, as in ``.gitignore``, of what stays here: caches, images, weights and every artefact of ours."""
    endings = ["*." + "".join(f"[{letter}{letter.upper()}]" for letter in ending) for ending in IMAGES_AND_WEIGHTS]
    return [*EXCLUDES, *endings, *(f"/{path}" for path in _artefacts(Path(working_dir)))]


def _artefacts(root: Path) -> Iterator[str]:
    for folder, below, files in os.walk(root):
        relative = Path(folder).relative_to(root)
        if relative.parts and not {*ARTEFACTS}.isdisjoint(files):
            below.clear()
            yield relative.as_posix()
        elif len(relative.parts) >= LOOK_DEPTH:
            below.clear()
        else:
            below[:] = sorted(name for name in below if name not in EXCLUDES)


def unreachable_paths(command: Sequence[str]) -> list[str]:
    """Values of ``--data`` and ``--out`` that are relative local paths, each as ``--out run``: on the cluster they lead elsewhere."""
    found = []
    for position, word in enumerate(command):
        option, equals, value = word.partition("=")
        if option not in PATH_OPTIONS:
            continue
        if not equals:
            value = command[position + 1] if position + 1 < len(command) else ""
        place = value.rpartition("=")[2] if not storage.is_uri(value) else value  # NAME=DATASET of a search
        if place and not storage.is_uri(place) and not os.path.isabs(place):
            found.append(f"{option} {place}")
    return found
