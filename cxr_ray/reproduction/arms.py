"""One arm of a reproduction: train, score, and keep what the table shows. What is finished is not run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cxr_ray import storage
from cxr_ray.bundle import read_bundle
from cxr_ray.config import Recipe
from cxr_ray.data.shards import Dataset, open_dataset
from cxr_ray.errors import ConfigError
from cxr_ray.evaluation.crossval import caveats, pooled_metrics
from cxr_ray.evaluation.evaluate import METRICS, evaluate, subject_of_bundle
from cxr_ray.evaluation.settle import settle, wish
from cxr_ray.models.classifier import build_classifier
from cxr_ray.models.parameters import count_flops, count_parameters
from cxr_ray.reproduction.plan import Arm
from cxr_ray.training.checkpoint import EpochRecord
from cxr_ray.training.crossval import cross_validate
from cxr_ray.training.export import plan_export, write_export
from cxr_ray.training.held_out import held_out
from cxr_ray.training.progress import TrainProgress
from cxr_ray.training.run import open_run
from cxr_ray.training.trainer import train

HEADLINE = ("accuracy", "macro_f1", "macro_auroc")
BUNDLE, REPORT = "bundle", "report"
Show = Callable[[str, TrainProgress], None]


@dataclass(frozen=True)
class Machine:
    """How arms are run.

    Args:
        workers: Training processes of each run.
        use_gpu: One GPU a worker.
        parallel: Folds at a time; None: as the cluster has room.
    """

    workers: int = 1
    use_gpu: bool = False
    parallel: int | None = None


def run_arm(recipe: Recipe, arm: Arm, dataset: str, out: str, machine: Machine, show: Show) -> dict[str, Any]:
    """Train and score one arm, or go on where an earlier call stopped.

    Args:
        recipe: Resolved.
        arm: Protocol.
        dataset: DATASET.
        out: Directory of the arm; runs and report go there.
        machine: Workers and GPUs.
        show: Called with a short name after each epoch.

    Returns:
        Facts for the table: the headline figures with intervals, ``n``, ``patients``, ``predictions`` (a directory for the paired
        comparison), seconds and images a second, epochs, parameters, FLOPs, warnings.

    Raises:
        CxrRayError: Whatever training or scoring says.
    """
    data = open_dataset(dataset)
    runs, scored = (_folds if arm.protocol == "cv" else _ensemble if arm.protocol == "ensemble" else _split)(
        recipe, data, dataset, out, machine, show
    )
    metrics = storage.read_json(storage.join(scored, METRICS))
    return {
        "recipe": recipe.name,
        "protocol": arm.protocol,
        "key": arm.data,
        "dataset": {"name": data.manifest.name, "fingerprint": data.manifest.fingerprint, "policy": data.manifest.policy},
        "image_size": [data.preprocess.height, data.preprocess.width],
        "labels": list(data.labels.names),
        "seed": recipe.training.seed,
        "figures": {name: metrics[name] for name in HEADLINE},
        "n": metrics["n"],
        "patients": metrics["patients"],
        "warnings": metrics.get("warnings", []),
        "predictions": scored,
        **_cost([open_run(location).history() for location in runs]),
        **_size(recipe, data),
    }


def _folds(recipe: Recipe, data: Dataset, dataset: str, out: str, machine: Machine, show: Show) -> tuple[list[str], str]:
    done = _cross_validate(recipe, dataset, out, machine, show)
    if not storage.exists(storage.join(out, METRICS)):
        pooled_metrics(done.predictions(), data, out, recipe=recipe.name, warnings=caveats(done.summary, recipe))
    return done.runs(), out


def _ensemble(recipe: Recipe, data: Dataset, dataset: str, out: str, machine: Machine, show: Show) -> tuple[list[str], str]:
    done = _cross_validate(recipe, dataset, out, machine, show)
    return done.runs(), _score(out, done.location, data)


def _split(recipe: Recipe, data: Dataset, dataset: str, out: str, machine: Machine, show: Show) -> tuple[list[str], str]:
    run = storage.join(out, "run")
    train(recipe, dataset, run, workers=machine.workers, use_gpu=machine.use_gpu, report=lambda progress: show("", progress))
    return [run], _score(out, run, data)


def _cross_validate(recipe: Recipe, dataset: str, out: str, machine: Machine, show: Show) -> Any:
    return cross_validate(
        recipe,
        dataset,
        out,
        workers=machine.workers,
        use_gpu=machine.use_gpu,
        parallel=machine.parallel,
        report=lambda fold, progress: show(f"fold {fold}", progress),
    )


def _score(out: str, trained: str, data: Dataset) -> str:
    """Export what was trained and score it on the test part, once; returns the REPORT."""
    report, bundle = storage.join(out, REPORT), storage.join(out, BUNDLE)
    if not storage.exists(storage.join(report, METRICS)):
        if "test" not in data.partitions:
            raise ConfigError([f"{data.location} has no test part; it has {', '.join(data.partitions)}"], where="--data")
        _export(trained, bundle)
        evaluate(subject_of_bundle(read_bundle(bundle)), data, report)
    return report


def _export(trained: str, bundle: str) -> None:
    """As ``cxr-ray export --allow-unsound``: thresholds of a multilabel model are fitted on what was held out. Not calibrated."""
    plan = plan_export([trained], bundle, allow_unsound=True, overwrite=True)
    labels = plan.runs[0].labels
    wanted = wish(labels, calibrate="none")
    if not wanted.needs_images:
        write_export(plan)
        return
    found = held_out(plan)
    settled = settle(wanted, found.probabilities, found.targets, found.patients, labels, part=found.part)
    write_export(plan, thresholds=settled.thresholds, origin=settled.origin)


def _cost(histories: list[list[EpochRecord]]) -> dict[str, Any]:
    """Times of all epochs of all runs, and the epoch of the smallest validation loss of the first."""
    records = [record for history in histories for record in history]
    losses = {record.epoch: record.val_loss for record in histories[0] if record.val_loss is not None}
    return {
        "epochs": len(histories[0]),
        "runs": len(histories),
        "best_loss_epoch": min(losses, key=lambda epoch: losses[epoch]) + 1 if losses else None,
        "seconds_per_epoch": sum(record.seconds for record in records) / len(records),
        "images_per_second": sum(record.images_per_second for record in records) / len(records),
    }


def _size(recipe: Recipe, data: Dataset) -> Mapping[str, int]:
    import torch

    with torch.device("meta"):
        size = (data.preprocess.height, data.preprocess.width)
        model = build_classifier(recipe.model, len(data.labels), mean=0.5, std=0.25, image_size=size, load_weights=False)
    counts = count_parameters(model)
    return {"parameters": counts["total"], "parameters_learning": counts["learning"], "flops": count_flops(model)}
