"""Imports run one way, and Ray appears only at the edges (DESIGN: layers)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cxr_ray"

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "labels": {"errors"},
    "settings": {"errors"},
    "config": {"errors", "labels", "settings"},
    "storage": {"errors"},
    "cluster": {"errors"},
    "cpu": set(),
    "page": set(),
    "imaging": {"errors", "labels", "settings", "storage"},
}
_BASE = {"errors", "labels", "settings", "config", "storage", "cluster", "cpu", "page", "imaging"}
ALLOWED |= {
    "data": _BASE,
    "models": _BASE,
    "bundle": _BASE | {"models"},
    "training": _BASE | {"data", "models", "bundle"},
    "evaluation": _BASE | {"data", "models", "bundle"},
    "audit": _BASE | {"data"},
    "evidence": _BASE | {"data", "models", "bundle", "training", "evaluation", "audit"},
    "synthesis": _BASE | {"data", "models", "bundle", "training"},
    "tuning": _BASE | {"data", "models", "bundle", "training", "evaluation"},
    "jobs": {"errors", "storage", "cluster"},
    "reproduction": _BASE | {"data", "models", "bundle", "training", "evaluation"},
    "serving": {"errors", "labels", "settings", "config", "storage", "cluster", "cpu", "imaging", "models", "bundle", "evaluation.explain"},
    "provenance": _BASE | {"data", "models", "bundle", "training", "evaluation", "serving.predictor"},
    "client": {"errors", "serving.schema"},
    "cli": _BASE
    | {"data", "models", "bundle", "training", "evaluation", "audit", "evidence"}
    | {"synthesis", "reproduction", "tuning", "jobs", "serving", "client", "provenance"},
    "__init__": set(),
    "__main__": {"cli"},
}
RAY_EDGES = {
    "cluster.py",
    "data/ingest.py",
    "data/stream.py",
    "jobs/client.py",
    "training/launch.py",
    "training/trainer.py",
    "tuning/search.py",
    "tuning/searcher.py",
    "tuning/stopping.py",
    "tuning/trial.py",
    "synthesis/trainer.py",
    "serving/app.py",
    "serving/offline.py",
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of every import in the file, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def test_there_is_something_to_check() -> None:
    assert len(modules()) > 30


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    layer = relative.parts[0].removesuffix(".py")
    assert layer in ALLOWED, f"{relative} is in no layer: add it to DESIGN and to this test"
    for name in imported(path):
        if not name.startswith("cxr_ray."):
            continue
        target = name.removeprefix("cxr_ray.")
        top = target.split(".")[0]
        if top in {layer, "__version__"}:
            continue
        reached = any(
            target == allowed or target.startswith(f"{allowed}.") or allowed.startswith(f"{target}.") for allowed in ALLOWED[layer]
        )
        assert reached, f"{relative} imports {name}: {layer} may import only {sorted(ALLOWED[layer])}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ray_stays_at_the_edges(path: Path) -> None:
    relative = str(path.relative_to(PACKAGE))
    uses_ray = any(name.split(".")[0] == "ray" for name in imported(path))
    if relative not in RAY_EDGES:
        assert not uses_ray, f"{relative} imports ray; only {sorted(RAY_EDGES)} may"


@pytest.mark.parametrize("module", ["cxr_ray", "cxr_ray.cli", "cxr_ray.config", "cxr_ray.storage", "cxr_ray.cluster", "cxr_ray.client"])
def test_light_modules_import_neither_torch_nor_ray(module: str) -> None:
    import subprocess
    import sys

    code = f"import sys, {module}; print(sorted({{'torch', 'ray', 'cv2', 'pandas'}} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path.relative_to(PACKAGE)) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_no_file_hides_a_second_noun() -> None:
    long = {str(path.relative_to(PACKAGE)): count for path in modules() if (count := len(path.read_text().splitlines())) > 400}
    assert long == {}
