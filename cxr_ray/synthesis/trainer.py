"""Ray Train around the GAN: any number of workers, CPU or GPU. Whoever dies, training goes on from the newest whole checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cxr_ray import storage
from cxr_ray.cluster import connected
from cxr_ray.data.shards import Dataset, open_dataset
from cxr_ray.errors import CxrRayError, RunError
from cxr_ray.synthesis.config import GanConfig, work_size
from cxr_ray.synthesis.gan import Gan, GanRecord, GanState
from cxr_ray.synthesis.rare import Images, RareClass, read_class, resize, tile
from cxr_ray.synthesis.sample import make_images
from cxr_ray.synthesis.state import (
    CHECKPOINTS,
    Diary,
    GanManifest,
    GanRun,
    Watch,
    claim,
    load_state,
    refuse_foreign,
    save_state,
    write_history,
)
from cxr_ray.training import lease
from cxr_ray.training.checkpoint import newest_valid
from cxr_ray.training.distributed import World
from cxr_ray.training.launch import launch
from cxr_ray.training.run import hardware, versions
from cxr_ray.training.worker import use_device

Report = Callable[[GanRecord, int], None]
"""Called with an epoch, and how many were asked for."""

GRID = 8
"""Rows and columns of a sample grid."""


@dataclass(frozen=True)
class Job:
    """What the driver gives every worker; pickled."""

    out: str
    launch: str
    dataset: str
    label: str
    size: int
    config: GanConfig


def train_gan(
    dataset: Dataset,
    rare: RareClass,
    config: GanConfig,
    out: str,
    *,
    workers: int = 1,
    use_gpu: bool = False,
    address: str | None = None,
    report: Report | None = None,
) -> GanRun:
    """Train to the end, or go on where an earlier call stopped.

    Args:
        dataset: Whose training part holds the class; workers read it from its location.
        rare: What :func:`read_class` says of it.
        config: How.
        out: Run directory, on storage that all nodes share.
        workers: Training processes; a number that divides the batch changes nothing but rounding.
        use_gpu: One GPU a worker.
        address: Ray cluster; see :func:`cxr_ray.cluster.connect`.
        report: Called in a thread of this process after each checkpoint.

    Raises:
        CxrRayError: Of the kind that fits: image sizes, cluster, a run of another GAN or in use, a loss that is not finite.
    """
    if workers < 1:
        raise RunError(f"expected at least 1 worker, got {workers}", hint="--workers 1")
    spec, manifest = dataset.preprocess, dataset.manifest
    size = work_size(spec.height, spec.width, config.size)
    wanted = GanManifest(
        schema="cxr-ray/gan/1",
        label=rare.label,
        dataset=manifest.name,
        dataset_fingerprint=manifest.fingerprint,
        real_images=len(rare),
        size=size,
        config=config,
        workers=workers,
        use_gpu=use_gpu,
        versions=versions(),
        hardware=hardware(),
    )
    out = storage.absolute(out)
    refuse_foreign(out)
    with lease.hold(out) as name:
        run = claim(out, wanted)
        if run.epochs < config.epochs:
            job = Job(out, name, dataset.location, rare.label, size, config)
            watched = None if report is None else partial(_tell, report, config.epochs)
            with connected(address), Watch(out, watched):
                launch(lambda: _run_worker(job), out, name, workers=workers, use_gpu=use_gpu)
    return run


def _tell(report: Report, epochs: int, record: GanRecord) -> None:
    report(record, epochs)


def _run_worker(job: Job) -> dict[str, Any]:
    """In each worker process."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    use_device(world.device, context.get_local_world_size())
    return work(job, world)


def work(job: Job, world: World) -> dict[str, Any]:
    """Train to the end, Ray left out.

    Returns:
        ``{"epochs"}``, or ``{"error": CxrRayError}`` for what a user can mend and every rank knows of; Ray would try it again.
    """
    folder = storage.join(job.out, CHECKPOINTS)
    location = world.share(newest_valid(folder) if world.first else None)
    found, failure = None, None
    try:
        found = _open(job, location)
    except CxrRayError as error:
        failure = error
    failures = [error for error in world.collect(failure) if error is not None]
    if failures or found is None:
        return {"error": failures[0]}
    images, state = found
    try:
        gan = Gan(images, job.config, world, state)
        _train(job, gan, folder)
    except RunError as error:  # the kinds that a Gan raises on every rank alike
        return {"error": error}
    return {"epochs": gan.epoch}


def _open(job: Job, checkpoint: str | None) -> tuple[Images, GanState | None]:
    lease.check(job.out, job.launch)
    rare = read_class(open_dataset(job.dataset), job.label)
    return resize(rare.images_NHW, job.size, job.size), load_state(checkpoint) if checkpoint is not None else None


def _train(job: Job, gan: Gan, folder: str) -> None:
    world = gan.world
    diary = Diary(job.out, gan.epoch) if world.first else None

    def report(record: GanRecord) -> None:
        if diary is not None:
            diary.losses(record)
        if (record.epoch + 1) % job.config.checkpoint_every and record.epoch + 1 < job.config.epochs:
            return
        failure = world.share(_lost(job) if world.first else None)  # all ranks stop together: none may wait for another
        if failure is not None:
            raise failure
        if diary is not None:
            state = gan.state()
            save_state(folder, state)
            write_history(job.out, state.history)
            diary.samples(record.epoch, tile(make_images(gan.averaged, GRID * GRID, seed=job.config.seed), GRID))

    try:
        gan.run(report)
    finally:
        if diary is not None:
            diary.close()


def _lost(job: Job) -> RunError | None:
    """Why this launch may not write any more."""
    try:
        lease.check(job.out, job.launch)
    except RunError as error:
        return error
    return None
