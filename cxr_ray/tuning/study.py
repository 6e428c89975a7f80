"""The Optuna study of a sweep: kept beside the run, so that a killed sweep goes on and ``optuna-dashboard`` can open it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from cxr_ray import storage
from cxr_ray.errors import ConfigError, RunError

if TYPE_CHECKING:
    import optuna

    from cxr_ray.tuning.sweep import Sweep

SQLITE = "study.db"
DRIVERS = {"postgresql": "psycopg[binary]", "mysql": "mysqlclient"}
"""Packages without which SQLAlchemy does not open such a URL."""


def study_storage(out: str, kind: str = "journal") -> optuna.storages.BaseStorage:
    """Where the study is kept.

    Args:
        out: The sweep's directory.
        kind: ``journal`` (a file that only grows; on an object store, many small ones), ``sqlite`` (a local file), or a database URL such
            as ``postgresql://user@host/studies``.

    Raises:
        ConfigError: ``kind`` is none of these, or SQLite on an object store.
        RunError: The database cannot be reached.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    from cxr_ray.tuning.journal import WHOLE, ObjectStoreJournal

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # below: a line for every parameter that is not always there
    if kind == "journal":
        return JournalStorage(ObjectStoreJournal(out) if storage.is_uri(out) else JournalFileBackend(storage.join(out, WHOLE)))
    if kind == "sqlite":
        if storage.is_uri(out):
            raise ConfigError(
                [f"SQLite needs a local file, and --out is {out}"], where="--study", hint="--study journal, or a database URL"
            )
        kind = f"sqlite:///{storage.join(out, SQLITE)}"
    if "://" not in kind:
        raise ConfigError([f"{kind!r} is neither journal, sqlite nor a database URL"], where="--study")
    try:
        return optuna.storages.RDBStorage(kind, engine_kwargs={"pool_pre_ping": True})
    except ImportError:
        scheme = kind.partition(":")[0]
        hint = f"pip install {DRIVERS[scheme]}" if scheme in DRIVERS else None
        raise ConfigError([f"the driver of {scheme} databases is not installed"], where="--study", hint=hint) from None
    except Exception as error:  # SQLAlchemy raises many kinds; their text may hold the password
        raise RunError(
            f"the study's database cannot be opened: {type(error).__name__}", hint="check host, name and rights in --study"
        ) from None


def open_study(sweep: Sweep, kept_in: optuna.storages.BaseStorage, name: str) -> optuna.Study:
    """The study ``name`` of a storage, made on first use; a grid's combinations then wait in it as trials."""
    import optuna

    modes = optuna.study.StudyDirection
    directions = [modes.MAXIMIZE if objective.mode == "max" else modes.MINIMIZE for objective in sweep.objectives]
    new = name not in optuna.study.get_all_study_names(kept_in)
    study = optuna.create_study(storage=kept_in, study_name=name, directions=directions, load_if_exists=True, sampler=sampler(sweep, 0))
    if new and sweep.search.algorithm == "grid":
        for point in sweep.space.combinations():
            study.enqueue_trial(point)
    return study


def sampler(sweep: Sweep, number: int) -> optuna.samplers.BaseSampler:
    """What proposes trial ``number``.

    Its random numbers follow from the sweep's seed and the trial's number, so a resumed sweep does not propose its first trials again.
    """
    import optuna

    search, seed = sweep.search, (sweep.search.seed * 1_000_003 + number) % 2**32
    if search.algorithm in ("random", "grid"):  # a grid's trials wait in the study; the sampler is not asked
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if search.algorithm == "cmaes":
            return optuna.samplers.CmaEsSampler(n_startup_trials=search.startup_trials, seed=seed)
        return optuna.samplers.TPESampler(
            n_startup_trials=search.startup_trials,
            seed=seed,
            multivariate=True,
            group=sweep.space.conditional,  # a parameter that is not always there has a model of its own
            constant_liar=True,  # trials that still run count as bad, so that those beside them differ
        )
