"""``doctor``, ``validate`` and ``recipes``: what is installed, what is written, what there is."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import ConfigError, CxrRayError

PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "albumentations",
    "optuna",
    "pyarrow",
    "numpy",
    "opencv-python-headless",
    "Pillow",
    "pydicom",
    "fastapi",
)


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(doctor)
    app.command()(validate)
    app.command()(recipes)


def doctor(
    address: Annotated[str | None, typer.Option(help="Ray cluster to ask; default: RAY_ADDRESS, if set.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what is installed, which GPUs and DICOM codecs there are, and whether a cluster answers.

    Example: cxr-ray doctor
    """
    facts: dict[str, Any] = {
        "cxr_ray": _version("cxr-ray"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "shared_memory_free_gib": round(shutil.disk_usage("/dev/shm").free / 2**30, 1) if Path("/dev/shm").is_dir() else None,
        "gpus": _gpus(),
        "dicom_codecs": _codecs(),
        "cluster": _cluster(address or os.environ.get("RAY_ADDRESS")),
    }
    missing = [name for name, found in facts["packages"].items() if found is None]
    facts["ok"] = not missing and all(facts["dicom_codecs"].values())
    console.table("installed", ["package", "version"], [[name, found or "MISSING"] for name, found in facts["packages"].items()])
    console.say(
        f"Python {facts['python']}, {facts['cores']} cores, {facts['memory_gib']} GiB, "
        f"shared memory {facts['shared_memory_free_gib']} GiB free"
    )
    console.say(
        "GPUs: " + (", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in facts["gpus"]) or "none; training runs on the CPU")
    )
    console.table(
        "DICOM codecs", ["transfer syntax", "decodes"], [[name, "yes" if works else "NO"] for name, works in facts["dicom_codecs"].items()]
    )
    console.say("cluster: " + (facts["cluster"]["message"] if facts["cluster"] else "none named; commands start one on this machine"))
    console.result(facts, next_step="cxr-ray demo")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> list[dict[str, Any]]:
    import torch

    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in properties]


def _codecs() -> dict[str, bool]:
    from cxr_ray.imaging.dicom import codecs

    return codecs()


def _cluster(address: str | None) -> dict[str, Any] | None:
    if not address:
        return None
    from cxr_ray.cluster import connected, resources

    try:
        with connected(address):
            there = resources()
            return {"answers": True, "message": f"{address}: {there.get('CPU', 0):g} CPU, {there.get('GPU', 0):g} GPU"}
    except CxrRayError as error:
        return {"answers": False, "message": error.message}


def validate(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="YAML files or folders; default: every configuration of this installation and folder.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check recipes, plans and sweeps; every fault of every file at once.

    Example: cxr-ray validate my-recipe.yaml
    """
    from cxr_ray.config import RECIPE_DIRECTORY
    from cxr_ray.reproduction.plan import PLAN_DIRECTORY

    named = paths or [RECIPE_DIRECTORY, PLAN_DIRECTORY, *filter(Path.is_dir, [Path("tune_configs")])]
    files = [file for path in named for file in (sorted(path.rglob("*.yaml")) if path.is_dir() else [path])]
    if not files:
        raise ConfigError(["no .yaml files"], where=", ".join(map(str, named)))
    faults: list[str] = []
    for file in files:
        try:
            _check(file)
        except ConfigError as error:
            faults += [f"{file.name}: {fault}" for fault in error.faults]
    if faults:
        raise ConfigError(faults, where=f"{len(files)} file(s)")
    console.say(f"{len(files)} file(s) valid")
    console.result({"files": len(files), "valid": True})


def _check(file: Path) -> None:
    """Read a file as what its keys say it is: a plan, a sweep or a recipe."""
    from cxr_ray.config import load_recipe
    from cxr_ray.data.augment import build_augmentation
    from cxr_ray.reproduction.plan import load_plan
    from cxr_ray.settings import read_yaml
    from cxr_ray.tuning.sweep import check_networks, load_sweep

    keys = read_yaml(file).keys()
    if "entries" in keys:
        load_plan(str(file))
    elif "space" in keys:
        sweep = load_sweep(file)
        size = sweep.recipe.expects.size if sweep.recipe.expects is not None else 224
        check_networks(sweep, 2, (size, size))
    else:
        build_augmentation(load_recipe(str(file)).augment)


def recipes(json: Json = False, debug: Debug = False) -> None:
    """List the built-in recipes with their networks and sizes.

    Example: cxr-ray recipes --json
    """
    import torch

    from cxr_ray.config import load_recipe, recipe_names
    from cxr_ray.models.classifier import build_classifier, count_parameters

    listed: list[dict[str, Any]] = []
    for name in recipe_names():
        recipe = load_recipe(name)
        with torch.device("meta"):  # without memory or work: some have 200 million parameters
            model = build_classifier(recipe.model, 3, mean=0.5, std=0.25, image_size=(224, 224), load_weights=False)
        counts = count_parameters(model)
        listed.append(
            {"name": name, "paper": recipe.paper, "parameters": counts["total"], "parts": counts, "description": recipe.description}
        )
    console.table(
        "recipes (parameters for 3 labels at 224×224)",
        ["name", "paper", "parameters", "what"],
        [[item["name"], item["paper"] or "-", f"{item['parameters']:,}", item["description"].split(". ")[0]] for item in listed],
    )
    console.result({"recipes": listed}, next_step="cxr-ray train --recipe NAME --data DATASET --out RUN")
