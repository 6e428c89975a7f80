"""``cross_validate``: a run a fold, each from scratch, and the pooled predictions of the images that each did not see.

``OUT/fold-K`` are RUNs; ``OUT/predictions.parquet`` has a row an image, ``OUT/cv.json`` the plain figures. Figures with intervals
are made of the predictions by ``cxr_ray.evaluation``. With any monitor but ``last`` the held-out fold also chose the epoch, which
flatters the figures: ``cv.json`` says so.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cxr_ray import storage
from cxr_ray.cluster import connected
from cxr_ray.config import Recipe
from cxr_ray.data.shards import open_dataset
from cxr_ray.errors import DatasetError, RunError
from cxr_ray.training import lease
from cxr_ray.training.metrics import label_metrics
from cxr_ray.training.progress import TrainProgress
from cxr_ray.training.run import RUN, Run, describe_data, run_fingerprint
from cxr_ray.training.trainer import predict_partition, train

logger = logging.getLogger(__name__)

SCHEMA = "cxr-ray/cv/1"
SUMMARY, PREDICTIONS = "cv.json", "predictions.parquet"


@dataclass(frozen=True)
class CrossValidation:
    """What ``cross_validate`` wrote.

    Args:
        location: Its directory.
        summary: ``cv.json``.
    """

    location: str
    summary: dict[str, Any]

    def predictions(self) -> pa.Table:
        """A row an image: ``image_id``, ``patient_id``, ``fold``, ``label`` (index) or ``labels`` (floats), ``probabilities``."""
        return pq.read_table(io.BytesIO(storage.read_bytes(storage.join(self.location, PREDICTIONS))))

    def runs(self) -> list[str]:
        """The RUN of each fold."""
        return [storage.join(self.location, fold["run"]) for fold in self.summary["folds"]]


def fold_numbers(partitions: tuple[str, ...]) -> list[int]:
    """Folds of a DATASET, ascending.

    Raises:
        DatasetError: It has fewer than two.
    """
    folds = sorted(int(name.removeprefix("fold-")) for name in partitions if name.startswith("fold-"))
    if len(folds) < 2:
        raise DatasetError(f"cross-validation needs folds; there are {', '.join(partitions)}", hint="cxr-ray ingest … --folds 5")
    return folds


def cross_validate(
    recipe: Recipe,
    dataset: str,
    out: str,
    *,
    workers: int = 1,
    use_gpu: bool = False,
    address: str | None = None,
    overwrite: bool = False,
    report: Callable[[int, TrainProgress], None] | None = None,
) -> CrossValidation:
    """Train on all folds but one, for each fold in turn, or go on where an earlier call stopped.

    Args:
        recipe: One experiment; ``monitor: last`` keeps the held-out folds out of every choice.
        dataset: DATASET with partitions ``fold-0`` …
        out: Directory to write, a local path or a URI.
        workers: Training processes of each run.
        use_gpu: One GPU a worker.
        address: Ray cluster; see :func:`cxr_ray.cluster.connect`.
        overwrite: Remove another cross-validation that stands at ``out``.
        report: Called with the fold after each of its epochs.

    Raises:
        CxrRayError: As :func:`cxr_ray.training.trainer.train`; :class:`RunError` too where another cross-validation stands at ``out``.
    """
    data = open_dataset(dataset)
    folds = fold_numbers(tuple(data.partitions))
    out = storage.absolute(out)
    fingerprint = storage.sha256("".join(run_fingerprint(recipe, describe_data(data, fold)) for fold in folds).encode())
    if recipe.training.monitor != "last":
        logger.warning(
            "the held-out fold chooses the epoch (%s), which flatters it; training.monitor=last does not", recipe.training.monitor
        )
    if storage.exists(storage.join(out, RUN)):
        raise RunError(f"{out} is a RUN of its own, not a cross-validation", hint="another --out")
    with lease.hold(out):
        done = _there(out, fingerprint, overwrite)
        if done is not None:
            return done
        with connected(address):
            tables, facts = [], []
            for fold in folds:  # one after the other: on a cluster with room for more, these calls may run in threads
                told = None if report is None else _of_fold(report, fold)
                location = storage.join(out, f"fold-{fold}")
                result = train(recipe, dataset, location, workers=workers, use_gpu=use_gpu, fold=fold, overwrite=overwrite, report=told)
                table = predict_partition(location, data.location, f"fold-{fold}", use_gpu=use_gpu)
                tables.append(table.append_column("fold", pa.array([fold] * len(table), pa.int64())))
                facts.append(_fold_facts(fold, result.run, tables[-1]))
        pooled = pa.concat_tables(tables)
        return _write(out, recipe, data.manifest.fingerprint, fingerprint, pooled, facts)


def _of_fold(report: Callable[[int, TrainProgress], None], fold: int) -> Callable[[TrainProgress], None]:
    return lambda progress: report(fold, progress)


def _there(out: str, fingerprint: str, overwrite: bool) -> CrossValidation | None:
    location = storage.join(out, SUMMARY)
    if not storage.exists(location):
        return None
    if overwrite:
        storage.remove(location)
        return None
    summary = storage.read_json(location)
    if summary.get("schema") != SCHEMA or summary.get("fingerprint") != fingerprint:
        raise RunError(f"{out} is a cross-validation of another recipe or other data", hint="another --out, or --overwrite")
    return CrossValidation(out, summary)


def figures(table: pa.Table) -> dict[str, Any]:
    """``n``, ``patients``, ``accuracy``, ``macro_f1``, ``macro_auroc`` of a table of predictions."""
    probabilities = np.stack(table["probabilities"].to_numpy())
    targets = np.stack(table["labels"].to_numpy()) if "labels" in table.column_names else table["label"].to_numpy()
    found = label_metrics(torch.from_numpy(np.array(probabilities)), torch.from_numpy(np.array(targets)))
    return {"n": len(table), "patients": len(set(table["patient_id"].to_pylist())), **found}


def _fold_facts(fold: int, run: Run, table: pa.Table) -> dict[str, Any]:
    best = run.best()
    return {"fold": fold, "run": f"fold-{fold}", "epochs": run.manifest.epochs, "epoch": best.epoch, **figures(table)}


def _write(out: str, recipe: Recipe, data: str, fingerprint: str, pooled: pa.Table, facts: list[dict[str, Any]]) -> CrossValidation:
    buffer = io.BytesIO()
    pq.write_table(pooled, buffer)
    storage.write_bytes(storage.join(out, PREDICTIONS), buffer.getvalue())
    summary = {
        "schema": SCHEMA,
        "fingerprint": fingerprint,
        "recipe": recipe.name,
        "dataset_fingerprint": data,
        "monitor": recipe.training.monitor,
        "held_out_folds_chose_the_epoch": recipe.training.monitor != "last",
        "pooled": figures(pooled),
        "folds": facts,
    }
    storage.write_json(storage.join(out, SUMMARY), summary)
    return CrossValidation(out, summary)
