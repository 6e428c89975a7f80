"""``run_sweep``: from a sweep file and DATASETs to the best trial's bundle, in one directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cxr_ray import storage
from cxr_ray.cluster import connected
from cxr_ray.data.shards import open_dataset
from cxr_ray.errors import ConfigError, RunError
from cxr_ray.training import lease
from cxr_ray.training.progress import TrainProgress
from cxr_ray.training.run import AuditNote, describe_data
from cxr_ray.tuning.conclude import Winner, conclude
from cxr_ray.tuning.parameters import ChoiceParameter
from cxr_ray.tuning.record import claim, describe
from cxr_ray.tuning.report import write_report
from cxr_ray.tuning.rows import TrialRow, best_row, rows_of
from cxr_ray.tuning.search import search
from cxr_ray.tuning.searcher import Told
from cxr_ray.tuning.space import DATA
from cxr_ray.tuning.study import open_study, study_storage
from cxr_ray.tuning.sweep import Sweep, check_networks


@dataclass(frozen=True)
class Swept:
    """What a sweep came to."""

    rows: tuple[TrialRow, ...]
    best: TrialRow
    winner: Winner


def run_sweep(
    sweep: Sweep,
    data: Mapping[str, str],
    out: str,
    *,
    resume: bool = False,
    study: str = "journal",
    workers: int = 1,
    use_gpu: bool = False,
    fold: int | None = None,
    max_concurrent: int | None = None,
    retrain: int | None = None,
    address: str | None = None,
    told: Told | None = None,
    report: Callable[[int, TrainProgress], None] | None = None,
    audits: Mapping[str, AuditNote] | None = None,
) -> Swept:
    """Search, report, export; or go on where an earlier call was killed.

    Args:
        sweep: What to search.
        data: Name -> DATASET.
        out: Directory of the sweep: ``sweep.json``, the study, ``trials/`` (a RUN each), ``sweep.html``, ``trials.csv``, ``bundle/``.
        resume: Go on with a sweep that stands at ``out``.
        study: Where the Optuna study is kept; see :func:`cxr_ray.tuning.study.study_storage`.
        workers: Training processes of each trial.
        use_gpu: One GPU a worker.
        fold: Validate on this fold. None: partition ``val``.
        max_concurrent: Trials at a time. None: as many as the cluster has room for.
        retrain: Seeds to train the winner with again. None: as many as the sweep says.
        address: Ray cluster; see :func:`cxr_ray.cluster.connect`.
        told: Called after each epoch and each trial.
        report: Called with the seed after each epoch of a retraining.
        audits: Name -> what the audit of the DATASET said; kept with every trial.

    Raises:
        CxrRayError: Of the kind that fits; :class:`RunError` where no trial came to an end.
    """
    out = storage.absolute(out)
    record = describe(sweep, data, fold)
    check_data(sweep, data, fold)
    with lease.hold(out):
        name = claim(out, sweep.name, record, resume=resume)
        kept_in = study_storage(out, study)
        found = open_study(sweep, kept_in, name)
        with connected(address):
            try:
                search(
                    sweep,
                    {name: storage.absolute(where) for name, where in data.items()},
                    out,
                    found,
                    kept_in,
                    workers=workers,
                    use_gpu=use_gpu,
                    fold=fold,
                    max_concurrent=max_concurrent,
                    told=told,
                    audits=audits,
                )
            except RunError:
                write_report(out, sweep, found, rows_of(found), ["The search was interrupted; --resume goes on with it."])
                raise
            rows = tuple(rows_of(found))
            best = best_row(rows, sweep.objectives)
            write_report(out, sweep, found, rows, [])
            if best is None:
                reasons = "".join(f"\n  - trial {row.number}: {row.reason or row.state}" for row in rows)
                raise RunError(f"no trial came to its end:{reasons}")
            winner = conclude(
                sweep,
                best,
                data,
                out,
                seeds=sweep.retrain_seeds if retrain is None else retrain,
                workers=workers,
                use_gpu=use_gpu,
                fold=fold,
                report=report,
            )
    return Swept(rows, best, winner)


def check_data(sweep: Sweep, data: Mapping[str, str], fold: int | None) -> None:
    """Make sure, before a cluster is joined, that every network can be built at the image size of every DATASET.

    Raises:
        ConfigError: One cannot, or the sweep chooses among other DATASETs than ``data`` names.
    """
    chosen = sweep.space.parameters.get(DATA)
    names = {str(label) for label in chosen.labels} if isinstance(chosen, ChoiceParameter) else None
    if names is not None and names != set(data):
        wanted = " ".join(f"--data {name}=DATASET" for name in sorted(names))
        raise ConfigError(
            [f"{sweep.name} chooses among {', '.join(sorted(names))}; there are {', '.join(data)}"], where="--data", hint=wanted
        )
    if names is None and len(data) > 1:
        raise ConfigError([f"{sweep.name} does not choose among DATASETs, and {len(data)} are given"], where="--data")
    for location in data.values():
        record = describe_data(open_dataset(location), fold)
        check_networks(sweep, len(record.labels), (record.height, record.width))
