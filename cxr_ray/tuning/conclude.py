"""The end of a sweep: the best trial by validation, retrained with other seeds if asked for, and exported."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from cxr_ray import storage
from cxr_ray.errors import RunError
from cxr_ray.evaluation.settle import settle, wish
from cxr_ray.training.export import plan_export, write_export
from cxr_ray.training.gate import gate_for
from cxr_ray.training.held_out import held_out
from cxr_ray.training.progress import TrainProgress
from cxr_ray.training.run import open_run
from cxr_ray.training.trainer import train
from cxr_ray.tuning.room import room, sharing
from cxr_ray.tuning.rows import TrialRow
from cxr_ray.tuning.sweep import Sweep
from cxr_ray.tuning.trial import dataset_name, location

WINNER, BUNDLE = "winner", "bundle"


@dataclass(frozen=True)
class Retrained:
    """The winner's recipe, trained again from scratch with several seeds."""

    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    values: tuple[float, ...]
    """The first objective, on the validation part, a seed each."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Over the seeds (n - 1); 0 for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Winner:
    """What a sweep ends with."""

    trial: int
    data: str
    """DATASET it was trained on."""
    run: str
    bundle: str
    retrained: Retrained | None


def conclude(
    sweep: Sweep,
    best: TrialRow,
    data: Mapping[str, str],
    out: str,
    *,
    seeds: int = 0,
    workers: int = 1,
    use_gpu: bool = False,
    fold: int | None = None,
    report: Callable[[int, TrainProgress], None] | None = None,
) -> Winner:
    """Export the best trial, or the best of its retrainings; nothing but validation figures chooses.

    Args:
        sweep: What was searched.
        best: Its best trial.
        data: Name -> DATASET.
        out: The sweep's directory; ``winner/`` and ``bundle/`` are written there.
        seeds: How often to train its recipe again, with seeds that follow the sweep's recipe's. 0: not at all.
        workers: Training processes of each.
        use_gpu: One GPU a worker.
        fold: Validate on this fold.
        report: Called with the seed after each epoch of a retraining.

    Raises:
        RunError: The trial's RUN is gone.
    """
    dataset = data[dataset_name(best.params, data)]
    retrained = None
    run = location(out, best.number)
    if seeds:
        retrained = _retrain(sweep, best, dataset, out, seeds=seeds, workers=workers, use_gpu=use_gpu, fold=fold, report=report)
        sign = 1 if sweep.objectives[0].mode == "max" else -1
        run = max(zip(retrained.values, retrained.runs, strict=True), key=lambda pair: sign * pair[0])[1]
    bundle = storage.join(out, BUNDLE)
    _export(run, bundle, sweep.name)
    return Winner(best.number, dataset, run, bundle, retrained)


def _export(run: str, bundle: str, name: str) -> None:
    """As ``cxr-ray export`` does by default: calibrated, with thresholds and a gate."""
    plan = plan_export([run], bundle, name=name, overwrite=storage.exists(bundle))
    labels, found = plan.runs[0].labels, held_out(plan)
    settled = settle(wish(labels), found.probabilities, found.targets, found.patients, labels, part=found.part, by_all=found.by_all)
    gate, no_gate = None, ""
    try:
        gate = gate_for(plan)
    except RunError as error:  # too few images to fit a gate on: a bundle without one is a bundle still
        no_gate = error.message
    write_export(plan, thresholds=settled.thresholds, origin=settled.origin, calibration=settled.calibration, gate=gate, no_gate=no_gate)


def _retrain(
    sweep: Sweep,
    best: TrialRow,
    dataset: str,
    out: str,
    *,
    seeds: int,
    workers: int,
    use_gpu: bool,
    fold: int | None,
    report: Callable[[int, TrainProgress], None] | None,
) -> Retrained:
    recipe = sweep.resolve(best.params)
    numbers = tuple(range(recipe.training.seed + 1, recipe.training.seed + 1 + seeds))
    at_a_time = room(seeds, workers=workers, use_gpu=use_gpu)
    audit = open_run(location(out, best.number)).manifest.audit

    def one(seed: int) -> tuple[str, float]:
        again = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
        where = storage.join(out, WINNER, f"trial-{best.number:04d}-seed-{seed}")
        told = None if report is None else _of(report, seed)
        train(again, dataset, where, workers=workers, use_gpu=use_gpu, fold=fold, report=told, sharing=sharing(at_a_time), audit=audit)
        return where, _validation_value(where, sweep.objectives[0].metric)

    with ThreadPoolExecutor(at_a_time, thread_name_prefix="cxr-ray-seed") as pool:
        pairs: Sequence[tuple[str, float]] = list(pool.map(one, numbers))
    return Retrained(numbers, tuple(where for where, _ in pairs), tuple(value for _, value in pairs))


def _of(report: Callable[[int, TrainProgress], None], seed: int) -> Callable[[TrainProgress], None]:
    return lambda progress: report(seed, progress)


def _validation_value(location: str, metric: str) -> float:
    run = open_run(location)
    epoch = run.best().epoch
    value = next(asdict(record)[metric] for record in run.history() if record.epoch == epoch)
    if value is None:
        raise RunError(f"{metric} is undefined on the validation part of {location}")
    return float(value)
