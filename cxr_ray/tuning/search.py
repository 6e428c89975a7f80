"""``search``: Ray Tune runs the trials, Optuna proposes them, and whoever is killed, a later call goes on.

The truth about a sweep is the Optuna study and the trials' RUNs. Ray Tune's own state is never read: what it would have to know of earlier
calls (which trials are open, what the early stopping has seen) is told to it anew from the study.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping

import optuna
from optuna.trial import TrialState
from ray import tune

from cxr_ray import storage
from cxr_ray.data.shards import open_dataset
from cxr_ray.errors import RunError
from cxr_ray.training.run import AuditNote
from cxr_ray.training.trainer import plan_feeds
from cxr_ray.tuning.room import TRIAL_CPUS, room, sharing
from cxr_ray.tuning.searcher import StudySearch, Told
from cxr_ray.tuning.stopping import scheduler
from cxr_ray.tuning.sweep import Sweep
from cxr_ray.tuning.trial import Plans, Shared, trainable

RAY = "ray"
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # every RUN has its own history and TensorBoard logs
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints tables even with verbose=0
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read
}


def search(
    sweep: Sweep,
    data: Mapping[str, str],
    out: str,
    study: optuna.Study,
    kept_in: optuna.storages.BaseStorage,
    *,
    workers: int = 1,
    use_gpu: bool = False,
    fold: int | None = None,
    max_concurrent: int | None = None,
    told: Told | None = None,
    audits: Mapping[str, AuditNote] | None = None,
) -> None:
    """Run the trials that the study still lacks; Ray must be connected, and the caller holds the lease of ``out``.

    Args:
        sweep: What to search.
        data: Name -> DATASET.
        out: The sweep's directory, on storage that all nodes share.
        study: The sweep's; what it lacks is run.
        kept_in: Its storage.
        workers: Training processes of each trial.
        use_gpu: One GPU a worker.
        fold: Validate on this fold. None: partition ``val``.
        max_concurrent: Trials at a time. None: as many as the cluster has room for.
        told: Called in this process after each epoch and each trial.
        audits: Name -> what the audit of the DATASET said.

    Raises:
        ClusterError: The cluster could never run a trial.
        RunError: Interrupted before all trials had ended.
    """
    past = study.get_trials(deepcopy=False)
    missing = _missing(sweep, study)
    if missing <= 0:
        return
    at_a_time = room(missing, workers=workers, use_gpu=use_gpu, wanted=max_concurrent)
    shared = Shared(sweep, dict(data), out, workers, use_gpu, fold, sharing(at_a_time), _plans(sweep, data, fold), audits or {})
    left = [trial for trial in past if trial.state == TrialState.RUNNING]
    os.environ.update(TUNE_ENVIRONMENT)
    storage.remove(storage.join(out, RAY))  # of earlier calls, which are over
    tuner = tune.Tuner(
        tune.with_resources(trainable(shared), {"CPU": TRIAL_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=StudySearch(sweep, study, kept_in, left, out, told),
            scheduler=scheduler(sweep, [trial for trial in past if trial.state != TrialState.WAITING]),
            num_samples=missing,
            max_concurrent_trials=at_a_time,
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(name=f"tune-{uuid.uuid4().hex[:8]}", storage_path=storage.join(out, RAY), verbose=0),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the log files that TUNE_ENVIRONMENT turns off
    tuner.fit()
    unfinished = _missing(sweep, study)
    if unfinished > 0:
        raise RunError(f"interrupted: {unfinished} of {sweep.planned} trials have not ended", hint="the same command with --resume")


def _missing(sweep: Sweep, study: optuna.Study) -> int:
    return sweep.planned - sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def _plans(sweep: Sweep, data: Mapping[str, str], fold: int | None) -> Plans:
    """The images of every DATASET once in the object store, for all trials whose recipe leaves the feed as it is here."""
    recipe = sweep.resolve(sweep.space.endpoints()[0])
    return {(name, recipe.feed.model_dump_json()): plan_feeds(open_dataset(where), recipe, fold) for name, where in data.items()}
