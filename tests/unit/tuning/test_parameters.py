from __future__ import annotations

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_ray.errors import ConfigError
from cxr_ray.tuning.parameters import parse_parameter


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"type": "float", "low": 1}, "space.k.high: Field required"),
        ({"type": "float", "low": 2, "high": 1}, "space.k: low 2 must be below high 1; one value alone belongs under set:"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "space.k: a logarithmic range must begin above 0, low is 0"),
        ({"type": "float", "low": 1, "high": 2, "log": True, "step": 0.5}, "space.k: a logarithmic range has no step"),
        ({"type": "float", "low": 0, "high": 1, "step": 0.3}, "space.k: high 1 is not reached from low 0 in steps of 0.3"),
        ({"type": "float", "low": float("nan"), "high": 1}, "space.k.low: Input should be a finite number .got nan."),
        ({"type": "int", "low": 1, "high": 4, "step": 2}, "space.k: high 4 is not reached from low 1 in steps of 2"),
        ({"type": "int", "low": 1.5, "high": 4}, "space.k.low: .*fractional part.*"),
        ({"type": "int", "low": 1, "high": 4, "stop": 2}, "space.k.stop: unknown key; valid here: high, log, low, step, type, when"),
        ({"type": "choice", "options": []}, "space.k: there are no options"),
        ({"type": "choice", "options": ["a", 1, True]}, "space.k: option True stands there twice"),
        ({"type": "choice", "options": ["a", ["b"]]}, r"space.k: option 1 is a list: give it a name, options: \{NAME: \['b'\], …\}"),
        ({"type": "loguniform"}, "space.k.type: expected float, int, choice, got 'loguniform'"),
        ([1, 2], r"space.k.type: expected float, int, choice, in a mapping, got \[1, 2\]"),
    ],
)
def test_a_fault_says_key_and_reason(data: object, fault: str) -> None:
    with pytest.raises(ConfigError, match=f"- {fault}$"):
        parse_parameter("k", data)


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    range_ = parse_parameter("k", {"type": "float", "low": "1e-4", "high": "1e-2"})
    choice = parse_parameter("k", {"type": "choice", "options": ["1e-3", "adam"], "when": {"x": "2e-1", "y": ["a", "1e1"]}})
    assert range_.ends == (1e-4, 1e-2)
    assert choice.grid == (1e-3, "adam")
    assert choice.when == {"x": (0.2,), "y": ("a", 10.0)}


def test_named_options_stand_for_anything() -> None:
    light = [{"op": "flip"}]
    choice = parse_parameter("augment", {"type": "choice", "options": {"light": light, "no": "none"}})
    assert choice.ends == ("light", "no")
    assert choice.value_of("light") == light
    assert choice.holds("no")
    assert not choice.holds("none")


@settings(deadline=None)
@given(low=st.integers(-50, 50), count=st.integers(1, 20), step=st.sampled_from(["0.1", "0.25", "0.003", "7"]))
def test_a_grid_holds_what_optuna_may_draw(low: int, count: int, step: str) -> None:
    from decimal import Decimal

    high = float(low + count * Decimal(step))
    parameter = parse_parameter("k", {"type": "float", "low": low, "high": high, "step": float(step)})
    assert parameter.grid is not None
    assert len(parameter.grid) == count + 1
    assert (parameter.grid[0], parameter.grid[-1]) == parameter.ends
    drawn = {parameter.suggest(optuna.trial.FixedTrial({"k": value}), "k") for value in parameter.grid}
    assert drawn == set(parameter.grid)


def test_only_ranges_that_can_be_listed_have_a_grid() -> None:
    assert parse_parameter("k", {"type": "float", "low": 0, "high": 1}).grid is None
    assert parse_parameter("k", {"type": "int", "low": 1, "high": 64, "log": True}).grid is None
    assert parse_parameter("k", {"type": "int", "low": 1, "high": 7, "step": 3}).grid == (1, 4, 7)
