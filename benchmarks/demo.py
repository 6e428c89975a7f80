"""``cxr-ray demo`` as a whole: seconds, macro F1 on the test part, and peak memory of all its processes together.

Memory is the sum of proportional set sizes (shared pages counted once), sampled twice a second: ``python benchmarks/demo.py --json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def descendants(root: int) -> list[int]:
    """Process ids of ``root`` and of all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, grown = {root}, True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in found} - found
        found |= children
        grown = bool(children)
    return sorted(found)


def proportional_set_size(pid: int) -> int:
    """Bytes; 0 for a process that has ended."""
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(row.split()[1]) * 1024 for row in rows if row.startswith("Pss:"))


def main() -> None:
    """Run the demo and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one flat object on stdout")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start, peak = time.monotonic(), 0
        command = [sys.executable, "-m", "cxr_ray", "demo", "--out", f"{folder}/demo", "--json"]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        while running.poll() is None:
            peak = max(peak, sum(map(proportional_set_size, descendants(running.pid))))
            time.sleep(0.5)
        seconds = time.monotonic() - start
        assert running.stdout is not None
        said = running.stdout.read()
    if running.returncode:
        sys.exit(f"the demo ended with {running.returncode}")
    found = {"seconds": round(seconds, 1), "peak_gib": round(peak / 2**30, 2), "test_macro_f1": json.loads(said)["test"]["macro_f1"]}
    print(json.dumps(found) if arguments.json else "\n".join(f"{key:14} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
