"""``cross_validate``: a run a fold, and the pooled predictions of the images that each did not see.

Folds start from scratch and run side by side where the cluster has room. Recipes that say ``cross_validation.start: previous`` go on
from fold to fold, as the scripts of papers 001 and 003 do; such figures are marked as unsound everywhere.

``OUT/fold-K`` are RUNs; ``OUT/predictions.parquet`` has a row an image, ``OUT/cv.json`` the plain figures. Figures with intervals are
made of the predictions by ``cxr_ray.evaluation``. With any monitor but ``last`` the held-out fold also chose the epoch, which
flatters the figures: ``cv.json`` says so.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cxr_ray import storage
from cxr_ray.cluster import connected, nodes, require, resources
from cxr_ray.config import Recipe
from cxr_ray.data.shards import open_dataset
from cxr_ray.errors import DatasetError, RunError
from cxr_ray.training import lease
from cxr_ray.training.metrics import label_metrics
from cxr_ray.training.progress import TrainProgress
from cxr_ray.training.run import RUN, AuditNote, Run, describe_data, run_fingerprint
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
    parallel: int | None = None,
    address: str | None = None,
    overwrite: bool = False,
    report: Callable[[int, TrainProgress], None] | None = None,
    trackers: Sequence[str] = (),
    audit: AuditNote | None = None,
) -> CrossValidation:
    """Train on all folds but one, for every fold, or go on where an earlier call stopped.

    Args:
        recipe: One experiment; ``monitor: last`` keeps the held-out folds out of every choice.
        dataset: DATASET with partitions ``fold-0`` …
        out: Directory to write, a local path or a URI.
        workers: Training processes of each run.
        use_gpu: One GPU a worker.
        parallel: Folds at a time. None: as many as the cluster has GPUs for, or without GPUs one a node. Results do not depend on it.
        address: Ray cluster; see :func:`cxr_ray.cluster.connect`.
        overwrite: Remove another cross-validation that stands at ``out``.
        report: Called with the fold after each of its epochs, from one thread a fold.
        trackers: Told of each fold as of a run of its own.
        audit: What the audit of the DATASET said; kept with every fold.

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
            at_a_time = _parallel(recipe, len(folds), workers, use_gpu, parallel)
            sharing = math.ceil(at_a_time / nodes())

            def run_fold(fold: int, initial: str | None = None) -> tuple[pa.Table, dict[str, Any]]:
                told = None if report is None else _of_fold(report, fold)
                location = storage.join(out, f"fold-{fold}")
                result = train(
                    recipe,
                    dataset,
                    location,
                    workers=workers,
                    use_gpu=use_gpu,
                    fold=fold,
                    overwrite=overwrite,
                    report=told,
                    trackers=trackers,
                    initial=initial,
                    sharing=sharing,
                    audit=audit,
                )
                table = predict_partition(location, data.location, f"fold-{fold}", use_gpu=use_gpu)
                return table.append_column("fold", pa.array([fold] * len(table), pa.int64())), _fold_facts(fold, result.run, table)

            done_folds = _one_after_the_other(run_fold, folds, out) if _goes_on(recipe) else _side_by_side(run_fold, folds, at_a_time)
        pooled = pa.concat_tables([table for table, _ in done_folds])
        return _write(out, recipe, data.manifest.fingerprint, fingerprint, pooled, [facts for _, facts in done_folds])


RunFold = Callable[..., tuple[pa.Table, dict[str, Any]]]


def _goes_on(recipe: Recipe) -> bool:
    return recipe.cross_validation.start == "previous"


def _one_after_the_other(run_fold: RunFold, folds: Sequence[int], out: str) -> list[tuple[pa.Table, dict[str, Any]]]:
    """Each fold goes on from the one before it: unsound, and what the scripts of papers 001 and 003 do."""
    done = []
    for position, fold in enumerate(folds):
        done.append(run_fold(fold, storage.join(out, f"fold-{folds[position - 1]}") if position else None))
    return done


def _side_by_side(run_fold: RunFold, folds: Sequence[int], parallel: int) -> list[tuple[pa.Table, dict[str, Any]]]:
    if parallel == 1:  # in this thread, where Ctrl-C is heard at once
        return [run_fold(fold) for fold in folds]
    with ThreadPoolExecutor(parallel, thread_name_prefix="cxr-ray-fold") as pool:
        return list(pool.map(run_fold, folds))


def _parallel(recipe: Recipe, folds: int, workers: int, use_gpu: bool, wanted: int | None) -> int:
    """Folds at a time.

    Raises:
        ClusterError: More were asked for than the cluster could ever run at once.
    """
    if _goes_on(recipe):
        return 1
    if wanted is None:
        room = int(resources().get("GPU", 0)) if use_gpu else nodes()  # a CPU worker keeps all cores of its node busy
        return max(1, min(folds, room // workers))
    wanted = max(1, min(folds, wanted))
    require(wanted * workers, wanted * workers if use_gpu else 0, what=f"{wanted} folds at a time of {workers} worker(s)")
    return wanted


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
    history = run.history()
    facts = {"fold": fold, "run": f"fold-{fold}", "epochs": run.manifest.epochs, "epoch": run.best().epoch}
    return {**facts, "seconds_per_epoch": sum(record.seconds for record in history) / max(len(history), 1), **figures(table)}


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
        "folds_go_on_from_the_fold_before": _goes_on(recipe),
        "pooled": figures(pooled),
        "folds": facts,
    }
    storage.write_json(storage.join(out, SUMMARY), summary)
    return CrossValidation(out, summary)
