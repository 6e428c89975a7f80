"""``train``: Ray Train around the loop. One code path for any number of workers, CPU (gloo) or GPU (nccl).

The truth about a run is in OUT: our checkpoints, our history. Whoever dies, a worker (Ray starts it again) or the
driver (the user gives the same command again), training goes on from the newest whole checkpoint in OUT.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from cxr_ray import storage
from cxr_ray.cluster import connected
from cxr_ray.config import Recipe
from cxr_ray.data.augment import build_augmentation
from cxr_ray.data.order import step_sizes
from cxr_ray.data.shards import Dataset, open_dataset, pixels, targets_of
from cxr_ray.data.stream import FeedPlan, plan_feed
from cxr_ray.errors import RunError
from cxr_ray.models.inference import predict_probabilities
from cxr_ray.training import lease
from cxr_ray.training.checkpoint import EpochRecord, epoch_of, newest_valid
from cxr_ray.training.distributed import World
from cxr_ray.training.elastic import Workers
from cxr_ray.training.launch import cpus_a_worker, launch
from cxr_ray.training.loss import LabelCounts
from cxr_ray.training.progress import HistoryWatch, TrainProgress
from cxr_ray.training.run import (
    AuditNote,
    BestRecord,
    DataRecord,
    Run,
    RunManifest,
    claim,
    describe_data,
    hardware,
    open_run,
    refuse_foreign,
    run_fingerprint,
    versions,
    write_run,
)
from cxr_ray.training.tracking import check_trackers, tracked
from cxr_ray.training.worker import Job, build_model, use_device, work

if TYPE_CHECKING:
    from ray.train import UserCallback

logger = logging.getLogger(__name__)

PLACEMENT_GROUP = "placement_group"
"""Reported with each epoch: the id of the group that holds the workers, for a search that must free it (``cxr_ray.tuning.trial``)."""


@dataclass(frozen=True)
class RunResult:
    """What ``train`` did."""

    run: Run
    already_finished: bool
    """Nothing was left to do."""
    resumed_after: int | None
    """The last epoch of earlier launches; None: it started from scratch."""


def train(
    recipe: Recipe,
    dataset: str,
    out: str,
    *,
    workers: int | Workers = 1,
    use_gpu: bool = False,
    fold: int | None = None,
    address: str | None = None,
    overwrite: bool = False,
    report: Callable[[TrainProgress], None] | None = None,
    trackers: Sequence[str] = (),
    callbacks: Sequence[UserCallback] = (),
    plans: tuple[FeedPlan, FeedPlan | None] | None = None,
    initial: str | None = None,
    sharing: int = 1,
    audit: AuditNote | None = None,
) -> RunResult:
    """Train to the end, or go on where an earlier call with the same recipe and data stopped.

    Args:
        recipe: One experiment.
        dataset: DATASET, a local path or a URI.
        out: RUN to write, a local path (shared by all nodes) or a URI.
        workers: Training processes, or the least and the most of them. Results do not depend on their number, but for rounding,
            dropout and mixup.
        use_gpu: One GPU a worker.
        fold: Hold this fold out for validation and train on the others. None: partitions ``train`` and ``val``.
        address: Ray cluster; see :func:`cxr_ray.cluster.connect`.
        overwrite: Remove another RUN that stands at ``out``.
        report: Called in a thread of this process after each epoch.
        trackers: Of ``mlflow`` and ``wandb``, those that are told of each epoch; see :mod:`cxr_ray.training.tracking`.
        callbacks: Of Ray Train, such as Ray Tune's ``TuneReportCallback``. What is reported has the fields of
            :class:`EpochRecord` (NaN for None) ``checkpoint``, the location of the epoch's checkpoint, and :data:`PLACEMENT_GROUP`.
        plans: Feeds of the training and the validation part, when several runs share them. None: planned here.
        initial: Finished RUN of the same network whose weights are the start (its normalisation is not). None: the recipe's own start.
        sharing: Runs at a time on each node, which divide its cores.
        audit: What the audit of the DATASET said; kept in ``run.json``, and said again wherever the run's figures are shown.

    Raises:
        CxrRayError: Of the kind that fits: settings, DATASET, weights, cluster, a RUN of another recipe or in use, a loss
            that is not finite.
    """
    workers = Workers.of(workers)
    check_trackers(trackers)
    data = open_dataset(dataset)
    record = describe_data(data, fold)
    out = storage.absolute(out)
    _check(recipe, record)
    start = open_run(initial) if initial is not None else None
    origin = start.manifest.fingerprint if start is not None else None
    wanted = _new_manifest(recipe, record, workers, use_gpu=use_gpu, initial=origin, audit=audit)
    refuse_foreign(out)
    with lease.hold(out) as name:
        manifest = claim(out, wanted, overwrite=overwrite)
        run = Run(out, manifest)
        if manifest.status == "finished":
            return RunResult(run, already_finished=True, resumed_after=None)
        past = newest_valid(run.checkpoints)  # the workers look for themselves; here it tells the user what is torn
        reports = [report] if report is not None else []
        with connected(address), tracked(run, trackers) as told, HistoryWatch(out, recipe.training.epochs, *reports, *told):
            cpus_a_worker(workers, use_gpu)  # refused before anything is read
            train_plan, validation_plan = plans or plan_feeds(data, recipe, fold)
            step_sizes(train_plan.rows, recipe.training.batch_size, world_size=workers.most)  # refused now, not when they have grown
            checkpoint = start.best_checkpoint() if start is not None else None
            job = Job(out, name, recipe, record, label_counts(data, fold), train_plan, validation_plan, checkpoint, sharing)
            answer = launch(lambda: _run_worker(job), out, job.launch, workers=workers, use_gpu=use_gpu, callbacks=callbacks)
        manifest = _finish(out, manifest, answer)
    return RunResult(Run(out, manifest), already_finished=False, resumed_after=epoch_of(past) if past else None)


def plan_feeds(data: Dataset, recipe: Recipe, fold: int | None) -> tuple[FeedPlan, FeedPlan | None]:
    """Feeds of the training and the validation part, for one run or for several that share them; Ray must be connected."""
    train_parts, validation_parts = data.training_partitions(fold)
    train_plan = plan_feed(data, train_parts, recipe.feed)
    return train_plan, plan_feed(data, validation_parts, recipe.feed) if validation_parts else None


def label_counts(data: Dataset, fold: int | None) -> LabelCounts:
    """Counts of the training part, from the columns of labels alone."""
    column = "label" if data.labels.task == "multiclass" else "labels"
    parts = [targets_of(data.read(partition, [column]), data.labels) for partition in data.training_partitions(fold)[0]]
    return LabelCounts.of(np.concatenate(parts), len(data.labels))


def predict_partition(run: str, dataset: str, partition: str, *, use_gpu: bool = False) -> pa.Table:
    """What the best epoch of a RUN makes of a partition, computed by a Ray task; Ray must be connected.

    Returns:
        A row an image: ``image_id``, ``patient_id``, ``label`` or ``labels``, ``probabilities`` (K floats).
    """
    import ray

    task = ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0)(_predict)
    return ray.get(task.remote(run, dataset, partition, "cuda" if use_gpu else "cpu"))


def _predict(run: str, dataset: str, partition: str, device: str) -> pa.Table:
    use_device(torch.device(device), 1)
    opened, data = open_run(run), open_dataset(dataset)
    model = opened.load_model(device)
    target = "label" if data.labels.task == "multiclass" else "labels"
    tables = []
    for table in data.tables(partition, ["image", "image_id", "patient_id", target]):
        images = pixels(table, data.preprocess.height, data.preprocess.width)
        probabilities = predict_probabilities(model, images, data.labels.task, device=device)
        column = pa.FixedSizeListArray.from_arrays(pa.array(probabilities.ravel()), len(data.labels))
        tables.append(table.drop_columns(["image"]).append_column("probabilities", column))
    return pa.concat_tables(tables)


def _check(recipe: Recipe, record: DataRecord) -> None:
    """Find what can be found without a cluster: operations, network, image size."""
    if not record.validation and recipe.training.monitor != "last":
        raise RunError(
            f"training.monitor={recipe.training.monitor} needs a validation part, and {record.location} has none",
            hint="training.monitor=last",
        )
    _say_what_differs(recipe, record)
    build_augmentation(recipe.augment)
    with torch.device("meta"):
        build_model(recipe, record, load_weights=False)


def _say_what_differs(recipe: Recipe, record: DataRecord) -> None:
    """The paper's figures are of other images than these, or its way of training is unsound: say so before it begins."""
    if recipe.unsound is not None:
        logger.warning("%s is unsound: %s", recipe.name, recipe.unsound)
    expected, found = recipe.expects, record.preprocess
    if expected is None:
        return
    pairs = {
        "size": (f"{expected.size}x{expected.size}", f"{record.height}x{record.width}"),
        "equalisation": (expected.equalize, found.equalize),
        "blur": (expected.blur, found.blur),
    }
    other = [f"{name} {ours} instead of {theirs}" for name, (theirs, ours) in pairs.items() if theirs != ours]
    if other:
        logger.warning("the images are not as paper %s had them: %s", recipe.paper, ", ".join(other))


def _new_manifest(
    recipe: Recipe, record: DataRecord, workers: Workers, *, use_gpu: bool, initial: str | None, audit: AuditNote | None
) -> RunManifest:
    return RunManifest(
        schema="cxr-ray/run/1",
        status="running",
        fingerprint=run_fingerprint(recipe, record, initial),
        initial=initial,
        recipe=recipe,
        dataset=record,
        seed=recipe.training.seed,
        workers=workers.most,
        least_workers=workers.least if workers.elastic else None,
        use_gpu=use_gpu,
        versions=versions(),
        hardware=hardware(),
        audit=audit,
        started=_now(),
        launches=1,
    )


# --- in each worker process ---------------------------------------------------------------------------------------------


def _run_worker(job: Job) -> dict[str, Any]:
    """In each worker process."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    return work(job, world, workers_here=context.get_local_world_size(), announce=_announce)


def _announce(record: EpochRecord, checkpoint: str | None) -> None:
    """Tell Ray Train of an epoch; rank 0 hands over a pointer to our checkpoint, for without any Ray keeps no metrics."""
    import ray.train
    from ray.util import get_current_placement_group

    metrics: dict[str, Any] = {name: math.nan if value is None else value for name, value in asdict(record).items()}
    group = get_current_placement_group()
    metrics[PLACEMENT_GROUP] = group.id.hex() if group is not None else ""
    if checkpoint is None:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "pointer.json"), "w") as file:
            json.dump({"checkpoint": checkpoint}, file)
        pointer = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(
            {**metrics, "checkpoint": checkpoint}, checkpoint=pointer, checkpoint_dir_name=f"epoch-{record.epoch:04d}-{time.time_ns()}"
        )


def _finish(out: str, manifest: RunManifest, answer: dict[str, Any]) -> RunManifest:
    best = answer["best"]
    update = {
        "status": "finished",
        "finished": _now(),
        "epochs": answer["epochs"],
        "stopped_early": answer["stopped_early"],
        "hardware": {**manifest.hardware, "worker": answer["hardware"]},
        "best": BestRecord(**best, checkpoint=f"checkpoints/epoch-{best['epoch']:04d}"),
    }
    finished = manifest.model_copy(update=update)
    write_run(out, finished)
    return finished


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
