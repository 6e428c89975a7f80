"""The worst verdict is the whole's."""

from __future__ import annotations

from cxr_ray.audit.record import worst


def test_the_worst_verdict_is_the_wholes() -> None:
    assert worst([]) == "ok"
    assert worst(["ok", "warn", "ok"]) == "warn"
    assert worst(["warn", "fail", "ok"]) == "fail"
