"""The next step of a rollout follows from how the service stands, whoever looks, and however often."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cxr_ray.errors import RolloutError
from cxr_ray.serving.app import ServeSettings
from cxr_ray.serving.conductor import advance, check_candidate, ended, settled
from cxr_ray.serving.deployed import APPLICATION, Deployed, Status, configuration
from cxr_ray.serving.rollout import ModelVersion, Report, Rollout, Tally
from cxr_ray.serving.traffic import application

RUNNING, FAILED = Status("RUNNING"), Status("DEPLOY_FAILED", "Traceback:\n  here\nRuntimeError: not finite")


def version(name: str) -> ModelVersion:
    return ModelVersion(bundle=f"/{name}", name="m", version=name, manifest_sha256=name * 8)


def deployed(state: Any, *, service: Status = RUNNING, candidate: Status = RUNNING, **changes: Any) -> Deployed:
    """A service with a rollout in ``state`` since second 1,000, and another application that is none of ours."""
    given: dict[str, Any] = {"id": "0123abcd", "mode": "canary", "weight": 5.0, "state": state, "since": 1000.0}
    rollout = Rollout(**{**given, "current": version("old"), "candidate": version("new"), **changes})
    settings = ServeSettings(bundle="/old", key_sha256="0" * 64)
    name = application(rollout)
    applications = {"else": {"name": "else", "import_path": "a:b"}}
    statuses = {APPLICATION: service, name: candidate}
    bare = Deployed(applications, statuses).including(configuration(APPLICATION, settings, route="/"))
    candidate_settings = settings.model_copy(update={"bundle": "/new"})
    return bare.including(configuration(name, candidate_settings, route=None)).changed(rollout=rollout)


def heard(found: Deployed, name: str = "old", tally: Tally | None = None) -> list[Report]:
    """What two replicas say that follow the rollout."""
    return [Report(name, found.rollout, tally or Tally())] * 2


def test_a_candidate_gets_requests_once_it_runs() -> None:
    assert advance(deployed("starting", candidate=Status("DEPLOYING")), (), 1001) is None
    step = advance(deployed("starting"), (), 1001)
    assert step is not None
    assert step.rollout is not None
    assert (step.rollout.state, step.rollout.since) == ("running", 1001)


@pytest.mark.parametrize(
    ("candidate", "now", "message"),
    [(FAILED, 1001, "RuntimeError: not finite"), (Status("DEPLOYING", "waits for a CPU"), 1301, "not up within 300 s. waits for a CPU")],
)
def test_one_that_does_not_come_up_never_gets_a_request(candidate: Status, now: float, message: str) -> None:
    step = advance(deployed("starting", candidate=candidate), (), now)
    assert step is not None
    assert step.rollout is not None
    assert (step.rollout.state, step.rollout.cause, step.rollout.message) == ("ended", "start-failed", message)


def test_one_that_keeps_its_limits_stays_and_one_that_does_not_is_taken_back() -> None:
    found = deployed("running")
    assert advance(found, heard(found, tally=Tally(failed=(False,) * 30)), 1100) is None
    half = Tally(failed=(True,) * 3 + (False,) * 10)  # of each replica; only together are they enough
    step = advance(found, heard(found, tally=half), 1100)
    assert step is not None
    assert step.rollout is not None
    assert (step.rollout.cause, step.rollout.message) == ("error-rate", "6 of 26 requests failed; 2.00% may")
    assert application(step.rollout) in step.applications  # it leaves only when nobody asks it any more


def test_what_an_earlier_rollout_showed_is_not_held_against_the_candidate() -> None:
    found = deployed("running")
    assert found.rollout is not None
    earlier = found.rollout.model_copy(update={"id": "89abcdef"})
    assert advance(found, [Report("old", earlier, Tally(failed=(True,) * 100))], 1100) is None


def test_a_candidate_that_dies_or_is_taken_away_ends_the_rollout() -> None:
    for found in (deployed("running", candidate=FAILED), deployed("running").without("cxr-ray--0123abcd")):
        step = advance(found, (), 1100)
        assert step is not None
        assert step.rollout is not None
        assert step.rollout.cause == "unhealthy"


def test_a_promotion_is_done_when_every_replica_answers_with_the_new_bundle() -> None:
    found = deployed("promoting").changed(bundle="/new", rollout=deployed("promoting").rollout, surge=True)  # type: ignore[arg-type]
    assert advance(found, [*heard(found, "new")[:1], *heard(found, "old")[:1]], 1010) is None
    assert advance(replace(found, statuses={APPLICATION: Status("DEPLOYING")}), heard(found, "new"), 1010) is None
    step = advance(found, heard(found, "new"), 1010)
    assert step is not None
    assert step.rollout is not None
    assert step.rollout.state == "promoted"
    assert step.settings.bundle == "/new"
    assert "max_surge_percent" not in step.service["deployments"][-1]


def test_a_promotion_that_fails_brings_the_old_bundle_back() -> None:
    for found, now in ((deployed("promoting", service=FAILED), 1010), (deployed("promoting", service=Status("DEPLOYING")), 1301)):
        assert found.rollout is not None
        step = advance(found.changed(bundle="/new", rollout=found.rollout), (), now)
        assert step is not None
        assert step.rollout is not None
        assert step.rollout.cause == "promotion-failed"
        assert step.settings.bundle == "/old"


def test_a_candidate_that_fails_while_it_is_promoted_is_taken_back() -> None:
    found = deployed("promoting", service=Status("DEPLOYING"))
    assert found.rollout is not None
    step = advance(found.changed(bundle="/new", rollout=found.rollout), heard(found, tally=Tally(failed=(True,) * 20)), 1010)
    assert step is not None
    assert step.rollout is not None
    assert (step.rollout.cause, step.settings.bundle) == ("error-rate", "/old")


@pytest.mark.parametrize("state", ["ended", "promoted"])
def test_a_candidate_leaves_when_no_replica_asks_it(state: str) -> None:
    found = deployed(state)
    assert advance(found, (), 1001) is None
    assert advance(found, [Report("old", None, Tally())], 1001) is None
    for reports, now in ((heard(found), 1001), ((), 1021)):
        step = advance(found, reports, now)
        assert step is not None
        assert set(step.applications) == {APPLICATION, "else"}
        assert advance(step, heard(found), 1100) is None


def test_a_rollout_has_settled_when_nothing_of_the_candidate_is_left() -> None:
    found = deployed("promoted")
    assert not settled(found, heard(found, "new"))
    gone = replace(found.without("cxr-ray--0123abcd"), statuses={APPLICATION: RUNNING})
    assert not settled(gone, heard(found, "old"))
    assert settled(gone, heard(found, "new"))
    assert not settled(deployed("running"), ())


def test_other_settings_of_the_operator_stay() -> None:
    found = deployed("running")
    named = [{"name": "classifier", "graceful_shutdown_timeout_s": 30}, {"name": "other", "num_replicas": 2}]
    found = found.including({**found.service, "deployments": named})
    assert found.rollout is None
    again = ended(found, deployed("running").rollout, "by-hand", "", 1)  # type: ignore[arg-type]
    kept, ours = again.service["deployments"]
    assert (kept, ours["graceful_shutdown_timeout_s"], ours["user_config"]["max_batch_size"]) == (named[1], 30, 16)


def test_what_is_no_service_of_ours_is_not_touched() -> None:
    with pytest.raises(RolloutError, match="no service of cxr-ray"):
        _ = Deployed({APPLICATION: {"name": APPLICATION, "import_path": "a:b"}}, {}).service
    with pytest.raises(RolloutError, match="no service of cxr-ray"):
        _ = Deployed({}, {}).settings


def test_the_same_bundle_is_no_candidate(bundle: Any) -> None:
    with pytest.raises(RolloutError, match="it is the bundle that the service answers with"):
        check_candidate(bundle, bundle, ServeSettings(bundle=bundle.location))
