"""The one who changes a rollout: an actor of the cluster that takes orders, watches the candidate, and takes it back where it must.

It knows nothing that does not stand in Ray Serve's configuration of the service (``serving.deployed``): one that dies is replaced and
goes on. It exists while there is something to conduct.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import ray

from cxr_ray.bundle import Bundle, read_bundle
from cxr_ray.errors import RolloutError
from cxr_ray.serving.app import ServeSettings, manifest_sha256
from cxr_ray.serving.deployed import APPLICATION, Deployed, apply, configuration, last_line, read, reports
from cxr_ray.serving.rollout import Cause, Mode, ModelVersion, Report, Rollout, RolloutLimits, State, judge, total
from cxr_ray.serving.traffic import application

logger = logging.getLogger(__name__)

_TICK_S: Final = 1.0
_IDLE_S: Final = 60.0
_HEARD_S: Final = 20.0
"""After so long a candidate is removed, whether every replica has said that it no longer asks it or not."""
_NAME: Final = {"name": "cxr-ray-conductor", "namespace": "cxr-ray"}


def advance(deployed: Deployed, heard: Sequence[Report], now: float) -> Deployed | None:
    """The next step of a rollout.

    Args:
        deployed: As it is.
        heard: Of every replica of the service; empty: not all of them answered.
        now: Seconds since the epoch.

    Returns:
        As it should be; None: there is nothing to do now.
    """
    rollout = deployed.rollout
    if rollout is None:
        return None
    name, age = application(rollout), now - rollout.since
    if rollout.over:
        told = bool(heard) and all(report.rollout == rollout for report in heard)
        return deployed.without(name) if name in deployed.applications and (told or age > _HEARD_S) else None
    if rollout.state == "promoting" and (step := _promoted(deployed, rollout, heard, now)) is not None:
        return step
    candidate, starting = deployed.status(name), rollout.state == "starting"
    if candidate.failed or name not in deployed.applications:
        cause: Cause = "start-failed" if starting else "unhealthy"
        return ended(deployed, rollout, cause, last_line(candidate.message), now)
    if starting and candidate.state == "RUNNING":
        return deployed.changed(rollout=_moved(rollout, "running", now))
    if starting and age > rollout.limits.start_s:
        return ended(deployed, rollout, "start-failed", f"not up within {rollout.limits.start_s:g} s. {candidate.message}".strip(), now)
    breach = judge(total(report.tally for report in heard if report.rollout and report.rollout.id == rollout.id), rollout.limits)
    return None if breach is None else ended(deployed, rollout, breach.cause, breach.message, now)


def _promoted(deployed: Deployed, rollout: Rollout, heard: Sequence[Report], now: float) -> Deployed | None:
    service = deployed.status(APPLICATION)
    if service.state == "RUNNING" and heard and all(report.version == rollout.candidate.version for report in heard):
        return deployed.changed(rollout=_moved(rollout, "promoted", now))
    if service.failed or now - rollout.since > rollout.limits.start_s:
        message = last_line(service.message) if service.failed else f"not up within {rollout.limits.start_s:g} s"
        return ended(deployed, rollout, "promotion-failed", message, now)
    return None


def ended(deployed: Deployed, rollout: Rollout, cause: Cause, message: str, now: float, *, surge: bool = False) -> Deployed:
    """The service with the bundle from before the rollout, which is over; ``surge`` as of :meth:`Deployed.changed`."""
    over = _moved(rollout, "ended", now).model_copy(update={"cause": cause, "message": message})
    return deployed.changed(bundle=rollout.current.bundle, rollout=over, surge=surge)


def _moved(rollout: Rollout, state: State, now: float) -> Rollout:
    return rollout.model_copy(update={"state": state, "since": now})


def settled(deployed: Deployed, heard: Sequence[Report]) -> bool:
    """Whether a rollout is over in every replica, with nothing of its candidate left."""
    rollout = deployed.rollout
    if rollout is None or not rollout.over:
        return rollout is None
    gone = deployed.status(application(rollout)).state == "ABSENT"
    version = (rollout.candidate if rollout.state == "promoted" else rollout.current).version
    return gone and bool(heard) and all(report.rollout == rollout and report.version == version for report in heard)


class Conductor:
    """Takes orders one at a time, and looks at the rollout every second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy_until = time.monotonic() + _IDLE_S
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self, bundle: str, mode: Mode, weight: float, replicas: int, limits: RolloutLimits) -> None:
        """Bring a candidate up beside the service.

        Raises:
            BundleError: It cannot be served.
            RolloutError: Another rollout is not over, or the candidate is none for this service.
        """
        with self._lock:
            deployed = read()
            settings, last = deployed.settings, deployed.rollout
            if last is not None and application(last) in deployed.statuses:
                raise RolloutError(f"rollout {last.id} is {last.state}", hint="cxr-ray rollout status; cxr-ray rollout back")
            if deployed.status(APPLICATION).state != "RUNNING":
                raise RolloutError(f"the service is {deployed.status(APPLICATION).state}", hint="start the rollout when it is RUNNING")
            before, after = read_bundle(settings.bundle), read_bundle(bundle)
            check_candidate(before, after, settings)
            rollout = Rollout(
                id=secrets.token_hex(4),
                mode=mode,
                weight=weight,
                current=version_of(before, settings.bundle),
                candidate=version_of(after, bundle),
                limits=limits,
                since=time.time(),
            )
            apart = {"bundle": bundle, "replicas": replicas, "max_replicas": None, "models": {}, "audit": "off"}
            shared = {key: deployed.service[key] for key in ("runtime_env", "logging_config") if key in deployed.service}
            candidate = {**configuration(application(rollout), settings.model_copy(update=apart), route=None), **shared}
            apply(deployed.including(candidate).changed(rollout=rollout))

    def weight(self, weight: float) -> None:
        """Let the candidate see another share of the requests."""
        self._change(lambda deployed, rollout: deployed.changed(rollout=rollout.model_copy(update={"weight": weight})))

    def promote(self) -> None:
        """Let the service answer with the candidate's bundle; replicas are replaced one by one, with one more where there is room."""

        def change(deployed: Deployed, rollout: Rollout) -> Deployed:
            moved = _moved(rollout, "promoting", time.time())
            return deployed.changed(bundle=rollout.candidate.bundle, rollout=moved, surge=_room(deployed.settings))

        self._change(change)

    def back(self) -> None:
        """End a rollout, or undo one that was promoted."""

        def change(deployed: Deployed, rollout: Rollout) -> Deployed:
            replaced = rollout.state in {"promoting", "promoted"} and _room(deployed.settings)
            return ended(deployed, rollout, "by-hand", "taken back by hand", time.time(), surge=replaced)

        self._change(change, but=("ended",))

    def _change(self, change: Callable[[Deployed, Rollout], Deployed], but: Sequence[State] | None = None) -> None:
        with self._lock:
            deployed = read()
            rollout = deployed.rollout
            if rollout is None:
                raise RolloutError("there is no rollout", hint="cxr-ray rollout start NEW_BUNDLE")
            if (rollout.state != "running") if but is None else (rollout.state in but):
                raise RolloutError(f"rollout {rollout.id} is {rollout.state}", hint="cxr-ray rollout status")
            apply(change(deployed, rollout))

    def _watch(self) -> None:
        while True:
            time.sleep(_TICK_S)
            with self._lock:
                try:
                    self._look()
                except RolloutError:  # there is no service any more
                    pass
                except Exception as error:  # the controller may be starting again
                    self._busy_until = time.monotonic() + _IDLE_S
                    logger.warning("rollout not looked at: %s", type(error).__name__)
                if time.monotonic() > self._busy_until:
                    ray.kill(ray.get_runtime_context().current_actor)

    def _look(self) -> None:
        deployed = read()
        heard = reports()
        if not settled(deployed, heard):
            self._busy_until = time.monotonic() + _IDLE_S
        step = advance(deployed, heard, time.time())
        if step is not None and step.rollout is not None:
            logger.warning("rollout %s is %s %s", step.rollout.id, step.rollout.state, step.rollout.message)
            apply(step)


def check_candidate(before: Bundle, after: Bundle, settings: ServeSettings) -> None:
    """Refuse a bundle that could not stand in for the current one.

    Raises:
        RolloutError: Its labels or its task are others, or it is the same bundle.
    """
    faults = []
    if (before.labels.names, before.labels.task) != (after.labels.names, after.labels.task):
        described = [f"{', '.join(bundle.labels.names)} ({bundle.labels.task})" for bundle in (before, after)]
        faults.append(f"it answers {described[1]}, the service {described[0]}: clients would read one for the other")
    if manifest_sha256(before) == manifest_sha256(after):
        faults.append("it is the bundle that the service answers with")
    if after.manifest.name in settings.models:
        faults.append(f"its name, {after.manifest.name}, is that of another model of the service")
    if faults:
        raise RolloutError(f"{after.location} is no candidate: {'; '.join(faults)}")


def version_of(bundle: Bundle, location: str) -> ModelVersion:
    """How a bundle is named in a rollout."""
    return ModelVersion(bundle=location, name=bundle.manifest.name, version=bundle.version, manifest_sha256=manifest_sha256(bundle))


def _room(settings: ServeSettings) -> bool:
    """Whether the cluster could take one more replica now."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free.get("CPU", 0.0) >= settings.cpus and free.get("GPU", 0.0) >= settings.gpus


def order(command: str, *arguments: Any) -> None:
    """Have the cluster's conductor do something; it is started where there is none.

    Raises:
        CxrRayError: As the command does.
    """
    _ = read().service  # no conductor where there is nothing to conduct
    for _ in range(3):
        options = {**_NAME, "lifetime": "detached", "get_if_exists": True, "num_cpus": 0, "max_restarts": -1, "max_concurrency": 4}
        conductor: Any = ray.remote(Conductor).options(**options).remote()
        try:
            ray.get(getattr(conductor, command).remote(*arguments))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError:  # it was about to leave
            time.sleep(_TICK_S)
            continue
        return
    raise RolloutError("the rollout's conductor does not stay alive", hint="its log is in Ray's session folder")
