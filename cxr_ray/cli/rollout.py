"""``rollout``: a new version beside the one that a running service answers with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import RolloutError

if TYPE_CHECKING:
    from cxr_ray.serving.rollout import Rollout

_POLL_S = 0.5
_MODES = ("canary", "shadow")
rollout = typer.Typer(
    no_args_is_help=True, help="A new version beside the current one. Example: cxr-ray rollout start new-bundle --mode canary --weight 5"
)
Address = Annotated[str | None, typer.Option(help="Ray cluster of the service; default: RAY_ADDRESS, else the one on this machine.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.add_typer(rollout, name="rollout")


@rollout.command()
def start(
    bundle: Annotated[str, typer.Argument(help="BUNDLE of the new version, with the labels of the current one.")],
    mode: Annotated[
        str, typer.Option(help="canary: it answers a share of the requests. shadow: it is asked too, and compared.")
    ] = "canary",
    weight: Annotated[
        float | None, typer.Option(min=0, max=100, help="Percent of the requests that it sees; default: canary 5, shadow 100.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of it.")] = 1,
    error_rate: Annotated[float, typer.Option(help="Share of its requests that it may fail before it is taken back.")] = 0.02,
    latency_factor: Annotated[
        float, typer.Option(help="Its 99th percentile over the current version's, above which it is taken back.")
    ] = 3.0,
    least_requests: Annotated[int, typer.Option(help="Requests before either is judged.")] = 20,
    start_s: Annotated[float, typer.Option(help="Seconds for it to come up, and for a promotion.")] = 300.0,
    address: Address = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Bring a new version up beside the current one; it is taken back by itself where it fails or is slow.

    Example: cxr-ray rollout start new-bundle --mode canary --weight 5
    """
    from cxr_ray.serving.rollout import RolloutLimits
    from cxr_ray.settings import parse_settings
    from cxr_ray.storage import absolute

    if mode not in _MODES:
        raise RolloutError(f"--mode {mode} is unknown", hint=f"--mode {' or '.join(_MODES)}")
    given = {"error_rate": error_rate, "latency_factor": latency_factor, "least_requests": least_requests, "start_s": start_s}
    limits = parse_settings(RolloutLimits, given, where="rollout start")
    share = weight if weight is not None else {"canary": 5.0, "shadow": 100.0}[mode]

    def work(order: Callable[..., None]) -> None:
        order("start", absolute(bundle), mode, share, replicas, limits)
        found = _wait(lambda found, _: found.state != "starting")
        if found.state != "running":
            raise RolloutError(f"the candidate was not let in: {found.message}", hint="the service answers as before")
        console.say(f"rollout {found.id}: {found.candidate.version} sees {found.weight:g} % of the requests ({found.mode})")
        console.result({"rollout": found.model_dump(mode="json")}, next_step="cxr-ray rollout status")

    _with(address, work)


@rollout.command()
def weight(
    percent: Annotated[float, typer.Argument(min=0, max=100, help="Percent of the requests that the new version sees.")],
    address: Address = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Let the new version see more or fewer of the requests; no replica is restarted.

    Example: cxr-ray rollout weight 25
    """

    def work(order: Callable[..., None]) -> None:
        order("weight", percent)
        found = _wait(lambda found, reports: found.over or (bool(reports) and all(report.rollout == found for report in reports)))
        console.say(f"rollout {found.id}: {found.candidate.version} sees {found.weight:g} % of the requests")
        console.result({"rollout": found.model_dump(mode="json")})

    _with(address, work)


@rollout.command()
def status(address: Address = None, json: Json = False, debug: Debug = False) -> None:
    """How the rollout stands, and what replicas have seen of the new version.

    Example: cxr-ray rollout status --json
    """
    from cxr_ray.serving.deployed import read, reports
    from cxr_ray.serving.rollout import percentile_99, total

    def work(order: Callable[..., None]) -> None:
        found = read().rollout
        if found is None:
            console.say("there is no rollout")
            console.result({"rollout": None, "figures": None})
            return
        heard = [report.tally for report in reports() if report.rollout is not None and report.rollout.id == found.id]
        tally = total(heard)
        figures: dict[str, Any] = {"replicas": len(heard), "requests": len(tally.failed), "failed": sum(tally.failed)}
        for name, seconds in (("p99_ms", tally.seconds), ("current_p99_ms", tally.current_seconds)):
            figures[name] = round(1000 * percentile_99(seconds), 1) if seconds else None
        figures |= {"compared": tally.compared, "agreed": tally.agreed, "largest_difference": round(tally.largest_difference, 6)}
        figures["skipped"] = tally.skipped
        said = f"{found.mode}, {found.weight:g} %" if found.state == "running" else found.message or found.mode
        console.say(f"rollout {found.id} is {found.state} ({said}): {found.current.version} -> {found.candidate.version}")
        console.table("seen by its replicas", ["", ""], [[name.replace("_", " "), f"{value}"] for name, value in figures.items()])
        console.result({"rollout": found.model_dump(mode="json"), "figures": figures})

    _with(address, work)


@rollout.command()
def promote(address: Address = None, json: Json = False, debug: Debug = False) -> None:
    """Let the service answer with the new version alone; replicas are replaced one by one.

    Example: cxr-ray rollout promote
    """

    def work(order: Callable[..., None]) -> None:
        order("promote")
        found = _wait(_settled)
        if found.state != "promoted":
            raise RolloutError(f"not promoted: {found.message}", hint="the service answers as before")
        console.say(f"rollout {found.id}: the service answers with {found.candidate.version}")
        console.result(
            {"rollout": found.model_dump(mode="json")}, next_step=f"put bundle: {found.candidate.bundle} into your Serve config file"
        )

    _with(address, work)


@rollout.command()
def back(address: Address = None, json: Json = False, debug: Debug = False) -> None:
    """End the rollout, or undo one that was promoted: the service answers with the bundle from before.

    Example: cxr-ray rollout back
    """

    def work(order: Callable[..., None]) -> None:
        order("back")
        found = _wait(_settled)
        console.say(f"rollout {found.id}: the service answers with {found.current.version}")
        console.result({"rollout": found.model_dump(mode="json")})

    _with(address, work)


def _with(address: str | None, work: Callable[[Callable[..., None]], None]) -> None:
    """Join the service's cluster for the length of ``work``, which is given the way to its conductor."""
    import logging
    import os

    from cxr_ray.cluster import connected

    with connected(address or os.environ.get("RAY_ADDRESS") or "auto"):
        from cxr_ray.serving.conductor import order

        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # of this process; what it says below is not for people
        work(order)


def _wait(until: Callable[[Rollout, Any], bool]) -> Rollout:
    """The rollout, once ``until`` (of it, and of what replicas report) holds."""
    from cxr_ray.serving.deployed import read, reports

    while (found := read().rollout) is not None and not until(found, reports()):
        time.sleep(_POLL_S)
    if found is None:
        raise RolloutError("the rollout is gone: the service was deployed anew meanwhile")
    return found


def _settled(found: Rollout, heard: Any) -> bool:
    from cxr_ray.serving.conductor import settled
    from cxr_ray.serving.deployed import read

    return found.over and settled(read(), heard)
