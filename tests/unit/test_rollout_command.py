"""``cxr-ray rollout`` and ``serve --model`` refuse what cannot be meant before they touch a cluster."""

from __future__ import annotations

import pytest

from cxr_ray import cli


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("rollout start new-bundle --mode blue", "--mode canary or shadow"),
        ("rollout start new-bundle --weight 101", "or equal to"),
        ("rollout start new-bundle --error-rate 2 --latency-factor 0.5", "2 fault(s)"),
        ("rollout weight -- -1", "or equal to"),
        ("serve bundle --model croup", "expected NAME=BUNDLE"),
        ("serve bundle --model ../up=there", "models"),
    ],
)
def test_a_mistake_is_one_message(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments.split()) == 2
    assert said in " ".join(capsys.readouterr().err.split())
