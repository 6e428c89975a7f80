"""Processes of this machine, by what they descend from."""

from __future__ import annotations

import contextlib
from pathlib import Path


def below(pid: int) -> list[int]:
    """All descendants of a process."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def command_of(pid: int) -> str:
    """Its command line, words parted by NUL; Ray writes titles there. Empty: it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


def processes(kind: str, pid: int) -> list[int]:
    """Descendants of process ``pid`` whose command line has ``kind`` in it."""
    return [one for one in below(pid) if kind in command_of(one)]
