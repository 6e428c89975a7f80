"""One trial: a training of its own (:func:`cxr_ray.training.trainer.train`) in a process of Ray Tune, which is told of every epoch.

What the trial is worth is in its RUN (``OUT/trials/0007``), so a trial that was interrupted goes on after its last finished epoch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray._raylet import PlacementGroupID
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.trainable.function_trainable import FunctionTrainable, wrap_function
from ray.util.placement_group import PlacementGroup, remove_placement_group

from cxr_ray import storage
from cxr_ray.data.shards import open_dataset
from cxr_ray.data.stream import FeedPlan
from cxr_ray.errors import CxrRayError, RunBusyError
from cxr_ray.training.checkpoint import EpochRecord
from cxr_ray.training.run import AuditNote, describe_data
from cxr_ray.training.trainer import PLACEMENT_GROUP, RunResult, train
from cxr_ray.tuning.costs import costs
from cxr_ray.tuning.sweep import Sweep

if TYPE_CHECKING:
    from ray.train import Checkpoint
    from ray.train.v2._internal.execution.context import TrainRunContext

TRIALS = "trials"
EPOCHS, FINAL, REASON, CONTROLLER = "epochs", "final", "reason", "controller"
"""Of what is reported: epochs done; set in a trial's last report; why it failed; the actor that runs the training."""
PATIENCE_SECONDS = 90.0
"""How long a trial waits for its RUN to be let go by a driver that was killed (``lease.STALE_SECONDS`` and some more)."""
Plans = Mapping[tuple[str, str], tuple[FeedPlan, FeedPlan | None]]
"""(name of the DATASET, feed settings as JSON) -> feeds of its two parts, in the object store where they fit."""


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep share; pickled once."""

    sweep: Sweep
    data: Mapping[str, str]
    """Name -> DATASET."""
    out: str
    workers: int
    use_gpu: bool
    fold: int | None
    sharing: int
    """Runs at a time on each node."""
    plans: Plans
    audits: Mapping[str, AuditNote]
    """Name of a DATASET -> what its audit said."""


class Report(TuneReportCallback):
    """Hands each epoch on to Ray Tune, with the network's costs, which do not change."""

    def __init__(self, constant: Mapping[str, float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._constant = dict(constant)

    def after_report(self, run_context: TrainRunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Called by Ray Train's controller when all workers have reported an epoch; rank 0 speaks for all."""
        me = ray.get_runtime_context().current_actor
        told = {**metrics[0], EPOCHS: metrics[0]["epoch"] + 1, **self._constant, CONTROLLER: me}
        super().after_report(run_context, [told], checkpoint)


def folder(number: int) -> str:
    """The RUN of a trial, seen from the sweep's directory."""
    return f"{TRIALS}/{number:04d}"


def location(out: str, number: int) -> str:
    """The RUN of a trial."""
    return storage.join(out, folder(number))


def run_trial(config: Mapping[str, Any], shared: Shared) -> dict[str, Any]:
    """Train one trial to its end, or go on where it was interrupted.

    Args:
        config: ``{"number", "values"}`` of the trial; values by dotted key.
        shared: What all trials share.

    Returns:
        Its last report: each objective at the epoch that was kept, ``epochs``, ``seconds``; or ``reason``, where it failed.
    """
    try:
        return _train(int(config["number"]), config["values"], shared)
    except CxrRayError as error:
        return _failed(shared.sweep, error.message)
    except Exception as error:  # a fault in one trial, of ours or of a library, is recorded and does not end the sweep
        return _failed(shared.sweep, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")


def trainable(shared: Shared) -> type[FunctionTrainable]:
    """:func:`run_trial` as Ray Tune runs it, which ends a stopped trial's training with it.

    Ray Tune only stops to listen. The controller of Ray Train would wait for ever to report its next epoch, and its workers would hold
    their CPUs; and were the controller killed, their placement group would stay until the whole search is over.
    """
    base: Any = wrap_function(tune.with_parameters(run_trial, shared=shared))

    class Trial(base):
        _controller: Any = None
        _group = ""

        def step(self) -> dict[str, Any]:
            result: dict[str, Any] = super().step()
            self._controller = result.pop(CONTROLLER, self._controller)
            self._group = result.get(PLACEMENT_GROUP, self._group)
            if FINAL in result:  # the training has ended by itself, and freed what it held
                self._controller, self._group = None, ""
            return result

        def cleanup(self) -> None:
            if self._controller is not None:
                ray.kill(self._controller)  # before its workers: it would start new ones
            free(self._group)
            super().cleanup()

    return Trial


def free(group: str) -> None:
    """Remove the placement group with this id, if there is one, and with it the workers in it."""
    if group:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def _train(number: int, values: Mapping[str, Any], shared: Shared) -> dict[str, Any]:
    sweep = shared.sweep
    recipe, name = sweep.resolve(values), dataset_name(values, shared.data)
    record = describe_data(open_dataset(shared.data[name]), shared.fold)
    constant = costs(recipe, record, [objective.metric for objective in sweep.objectives if objective.is_cost])
    callback = Report(constant)
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            result = train(
                recipe,
                shared.data[name],
                location(shared.out, number),
                workers=shared.workers,
                use_gpu=shared.use_gpu,
                fold=shared.fold,
                callbacks=[callback],
                plans=shared.plans.get((name, recipe.feed.model_dump_json())),
                sharing=shared.sharing,
                audit=shared.audits.get(name),
            )
            break
        except RunBusyError:  # of the driver that was killed; its processes are about to end
            if time.monotonic() > give_up:
                raise
            time.sleep(1.0)
    return {**kept_values(sweep, result, constant), EPOCHS: result.run.manifest.epochs, FINAL: True, REASON: ""}


def dataset_name(values: Mapping[str, Any], data: Mapping[str, str]) -> str:
    """The DATASET a trial uses: what it chose, or the only one."""
    return str(values["data"]) if "data" in values else next(iter(data))


def kept_values(sweep: Sweep, result: RunResult, constant: Mapping[str, float]) -> dict[str, float]:
    """Each objective at the epoch that the RUN keeps."""
    best = result.run.best()
    record = next(record for record in result.run.history() if record.epoch == best.epoch)
    return {objective.metric: constant.get(objective.metric, _value(record, objective.metric)) for objective in sweep.objectives}


def _value(record: EpochRecord, metric: str) -> float:
    value = asdict(record).get(metric)
    return float("nan") if value is None else float(value)


def _failed(sweep: Sweep, reason: str) -> dict[str, Any]:
    return {**{objective.metric: float("nan") for objective in sweep.objectives}, EPOCHS: 0, FINAL: True, REASON: reason}


def epoch_values(sweep: Sweep, history: Sequence[EpochRecord]) -> list[float]:
    """The first objective, epoch by epoch."""
    return [_value(record, sweep.objectives[0].metric) for record in history]
