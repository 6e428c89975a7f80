"""The service as Ray Serve's controller has it: read, and changed as a whole, so that nobody sees half a change.

A service is always deployed by a configuration (what ``serve deploy`` sends), never as a pickled application: the controller keeps it, it
survives the controller's own death, and a change of ``user_config`` reaches replicas without a restart.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray import serve
from ray.serve.context import _disconnect, _get_global_client
from ray.serve.schema import ServeDeploySchema, ServeInstanceDetails

from cxr_ray.errors import ClusterError, RolloutError
from cxr_ray.serving.app import DEPLOYMENT, LOGGING, ServeSettings, user_config
from cxr_ray.serving.rollout import Report, Rollout

APPLICATION: Final = "cxr-ray"
"""What the application is called that clients reach."""
IMPORT_PATH: Final = "cxr_ray.serving.app:build"
_FAILED: Final = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})
Config = Mapping[str, Any]
"""One application of a Serve config file."""


@dataclass(frozen=True)
class Status:
    """How an application stands.

    Args:
        state: In Ray Serve's words: ``RUNNING``, ``DEPLOYING`` …; ``ABSENT``: there is none.
        message: Why, where it is not running.
    """

    state: str = "ABSENT"
    message: str = ""

    @property
    def failed(self) -> bool:
        """Whether it will not come up by itself."""
        return self.state in _FAILED


@dataclass(frozen=True)
class Deployed:
    """All applications of a cluster that were deployed by a configuration.

    Args:
        applications: Name -> configuration, as it was sent.
        statuses: Name -> status, also of applications that are leaving.
        target_capacity: Percent, where the cluster's operator has set one.
    """

    applications: Mapping[str, Config]
    statuses: Mapping[str, Status]
    target_capacity: float | None = None

    def status(self, name: str) -> Status:
        """Of one application."""
        return self.statuses.get(name, Status())

    @property
    def service(self) -> Config:
        """The application that clients reach.

        Raises:
            RolloutError: There is none, or not one of ours.
        """
        found = self.applications.get(APPLICATION)
        if found is None or found["import_path"] != IMPORT_PATH:
            raise RolloutError(
                f"no service of cxr-ray runs on this cluster as application {APPLICATION!r}",
                hint="start it by `cxr-ray serve BUNDLE` or `serve deploy serve/config.yaml`; --address names its cluster",
            )
        return found

    @property
    def settings(self) -> ServeSettings:
        """Arguments of the service."""
        return ServeSettings(**self.service["args"])

    @property
    def rollout(self) -> Rollout | None:
        """Its last rollout, ended or not; None: there was none since it was deployed."""
        told = _override(self.service).get("user_config") or {}
        given = told.get("rollout")
        return None if given is None else Rollout(**given)

    def changed(self, *, bundle: str | None = None, rollout: Rollout, surge: bool = False) -> Deployed:
        """The same with another bundle (None: the one it has) or rollout.

        Args:
            bundle: That the service answers with.
            rollout: That its replicas follow.
            surge: Whether a replica of the new bundle is started before an old one stops; needs room for one more.
        """
        arguments = {**self.service["args"], **({} if bundle is None else {"bundle": bundle})}
        kept = {key: value for key, value in _override(self.service).items() if key != "max_surge_percent"}
        override = {**kept, "name": DEPLOYMENT, "user_config": user_config(ServeSettings(**arguments), rollout)}
        if surge:
            override["max_surge_percent"] = 1  # rounded up: one replica
        others = [one for one in self.service.get("deployments", ()) if one["name"] != DEPLOYMENT]
        return self.including({**self.service, "args": arguments, "deployments": [*others, override]})

    def including(self, application: Config) -> Deployed:
        """The same with one application more, or changed."""
        return Deployed({**self.applications, application["name"]: application}, self.statuses, self.target_capacity)

    def without(self, name: str) -> Deployed:
        """The same without one application."""
        left = {other: config for other, config in self.applications.items() if other != name}
        return Deployed(left, self.statuses, self.target_capacity)


def _override(application: Config) -> Config:
    """What an application's configuration says of our deployment beside its arguments."""
    return next((one for one in application.get("deployments", ()) if one["name"] == DEPLOYMENT), {})


def configuration(name: str, settings: ServeSettings, *, route: str | None) -> Config:
    """The configuration of an application of ours; without a route only replicas reach it."""
    arguments = settings.model_dump(mode="json")
    return {"name": name, "route_prefix": route, "import_path": IMPORT_PATH, "args": arguments, "logging_config": LOGGING}


def read() -> Deployed:
    """What the controller has.

    Raises:
        RolloutError: Ray Serve does not run on this cluster.
    """
    client: Any = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        raise RolloutError("Ray Serve does not run on this cluster", hint="--address, or RAY_ADDRESS, names the service's cluster")
    try:
        details = ServeInstanceDetails(**client.get_serve_details())
    except ray.exceptions.ActorDiedError:  # of a Ray Serve that was shut down; another may run by now
        _disconnect()  # type: ignore[no-untyped-call]
        return read()
    applications, statuses = {}, {}
    for name, found in details.applications.items():
        causes = [deployment.message for deployment in found.deployments.values() if deployment.message]
        statuses[name] = Status(found.status.value, " ".join([found.message, *causes]).strip())
        if found.deployed_app_config is not None and found.status.value != "DELETING":
            applications[name] = found.deployed_app_config.model_dump(exclude_unset=True)
    return Deployed(applications, statuses, details.target_capacity)


def apply(deployed: Deployed) -> None:
    """Hand all applications to the controller, which brings them about in its own time; those that are not named leave."""
    client: Any = _get_global_client()
    described = {"applications": list(deployed.applications.values()), "target_capacity": deployed.target_capacity}
    client.deploy_apps(ServeDeploySchema.model_validate(described))


def deploy(settings: ServeSettings, *, poll_s: float = 1.0) -> None:
    """Deploy the service (its settings are checked) and wait until it answers. Ray Serve must be started.

    Raises:
        ClusterError: It did not come up.
    """
    there = read()
    for candidate in [name for name in there.applications if name.startswith(f"{APPLICATION}--")]:
        there = there.without(candidate)  # of a rollout that this ends
    apply(there.including(configuration(APPLICATION, settings, route="/")))
    while (status := read().status(APPLICATION)).state != "RUNNING":
        if status.failed:
            raise ClusterError(f"the service did not come up: {last_line(status.message)}", hint="its log is in Ray's session folder")
        time.sleep(poll_s)
    client: Any = _get_global_client()
    client.wait_for_proxies_serving()


def last_line(message: str) -> str:
    """What a traceback ends with; a sentence stays itself."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"


def reports(timeout_s: float = 5.0) -> Sequence[Report]:
    """Of every replica of the service; none where they do not all answer in time."""
    handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
    try:
        found: Sequence[Report] = handle.broadcast("report").results(timeout_s=timeout_s)
    except Exception:  # replicas come and go; whoever asks, asks again
        return ()
    return found
