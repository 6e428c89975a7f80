from __future__ import annotations

from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_ray.config import Recipe, load_recipe
from cxr_ray.errors import ConfigError
from cxr_ray.settings import parse_settings
from cxr_ray.tuning.parameters import parse_parameter
from cxr_ray.tuning.space import Space, nested

BASE = load_recipe("demo").model_dump()
LR = "training.optimizer.lr"
KIND, UNITS, LAYERS, READOUT = "model.rnn.kind", "model.rnn.hidden_size", "model.rnn.layers", "model.rnn.readout"


def space(entries: dict[str, Any]) -> Space:
    return Space({key: parse_parameter(key, entry) for key, entry in entries.items()}, BASE)


def choice(*options: Any, **when: Any) -> dict[str, Any]:
    return {"type": "choice", "options": list(options), "when": {key.replace("__", "."): value for key, value in when.items()}}


def whole(low: int, high: int, **when: Any) -> dict[str, Any]:
    return {"type": "int", "low": low, "high": high, "when": {key.replace("__", "."): value for key, value in when.items()}}


# --- any space ------------------------------------------------------------------------------------------------------------

POOL: dict[str, tuple[dict[str, Any], list[Any]]] = {  # key -> entry, values a condition may ask for
    KIND: (choice("lstm", "gru", "none"), ["lstm", "gru", "none"]),
    UNITS: (whole(8, 12), [8, 10]),
    LAYERS: (whole(1, 3), [1, 2, 3]),
    "model.rnn.bidirectional": (choice(True, False), [True, False]),
    "model.head.dropout": ({"type": "float", "low": 0.0, "high": 0.5, "step": 0.25}, [0.0, 0.25]),
    "training.patience": (choice(None, 3), [None, 3]),
}


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    """Some of the pool, in any order, under conditions on settings that are searched or not; no circles."""
    order = draw(st.permutations(list(POOL)))
    kept = order[: draw(st.integers(1, len(order)))]
    found: dict[str, Any] = {}
    for position, key in enumerate(kept):
        others = draw(st.lists(st.sampled_from([*order[:position], *order[len(kept) :]] or [None]), max_size=2, unique=True))
        when = {other: draw(st.lists(st.sampled_from(POOL[other][1]), min_size=1, unique=True)) for other in others if other is not None}
        found[key] = {**POOL[key][0], "when": when}
    return {key: found[key] for key in draw(st.permutations(kept))}


def setting(data: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        data = data[part]
    return data


def conditions_hold(found: dict[str, Any], point: dict[str, Any]) -> bool:
    """By the finished recipe: a parameter is in the point where, and only where, all its conditions hold there."""
    data = nested(point)
    recipe = parse_settings(Recipe, {**BASE, "model": _over(BASE["model"], data.get("model", {}))}, where="test").model_dump()
    recipe["training"] = _over(recipe["training"], data.get("training", {}))
    return all((key in point) == all(setting(recipe, other) in wanted for other, wanted in found[key]["when"].items()) for key in found)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _over(value, above[key]) if isinstance(value, dict) and key in above else above.get(key, value) for key, value in below.items()
    }


@settings(max_examples=80, deadline=None)
@given(found=entries(), seed=st.integers(0, 99))
def test_every_point_respects_the_conditions_and_is_a_valid_recipe(found: dict[str, Any], seed: int) -> None:
    try:
        built = space(found)
    except ConfigError as error:
        refused = {fault.removeprefix("space.").split(".when: never holds")[0] for fault in error.faults}
        assert refused <= set(found)
        rest = space({key: entry for key, entry in found.items() if key not in refused} or {LR: choice(1.0)})
        for key in refused:
            assert not any(conditions_hold({key: found[key]}, {**point, key: POOL[key][1][0]}) for point in rest.combinations())
        return
    assert built.conditional == any(entry["when"] for entry in found.values())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn = [built.suggest(study.ask()) for _ in range(5)]
    assert [trial.params for trial in study.trials] == drawn
    points = [*drawn, *built.endpoints(), *built.combinations()]
    assert all(conditions_hold(found, point) for point in points)
    for point in points:
        recipe = parse_settings(Recipe, built.apply(point), where="test").model_dump()
        assert all(setting(recipe, key) == value for key, value in point.items())


@settings(max_examples=80, deadline=None)
@given(found=entries())
def test_endpoints_touch_all_that_can_be_touched(found: dict[str, Any]) -> None:
    try:
        built = space(found)
    except ConfigError:
        return
    grid = built.combinations()
    assert len({tuple(sorted(point.items(), key=str)) for point in grid}) == len(grid)
    ends = {(key, end) for key, parameter in built.parameters.items() for end in parameter.ends}
    touched = {pair for point in built.endpoints() for pair in point.items()}
    assert ends <= touched
    assert {pair for point in grid for pair in point.items()} >= ends
    assert len(built.endpoints()) <= len(touched)


# --- conditions -------------------------------------------------------------------------------------------------------------


def test_conditions_chain_in_any_order() -> None:
    built = space(
        {LAYERS: whole(1, 2, model__rnn__hidden_size=10), UNITS: whole(8, 12, model__rnn__kind="gru"), KIND: choice("lstm", "gru")}
    )
    assert {frozenset(point) for point in built.combinations()} == {
        frozenset({KIND}),
        frozenset({KIND, UNITS}),
        frozenset({KIND, UNITS, LAYERS}),
    }
    assert any(point.get(UNITS) == 10 for point in built.endpoints())


def test_a_condition_looks_at_the_recipe_where_nothing_is_searched() -> None:
    assert space({UNITS: whole(8, 12, model__rnn__kind=["lstm", "gru"])}).endpoints() == [{UNITS: 8}, {UNITS: 12}]
    with pytest.raises(ConfigError, match=r"space.model.rnn.hidden_size.when: never holds"):
        space({UNITS: whole(8, 12, model__rnn__kind="gru")})


def test_a_condition_sees_what_an_option_of_a_group_sets() -> None:
    group = {"type": "choice", "options": {"recurrent": {"kind": "gru"}, "plain": {"kind": "none", "readout": "mean"}}}
    built = space({UNITS: whole(8, 9, model__rnn__kind="gru"), "model.rnn": group})
    assert built.combinations() == [{"model.rnn": "recurrent", UNITS: 8}, {"model.rnn": "recurrent", UNITS: 9}, {"model.rnn": "plain"}]
    data = built.apply({"model.rnn": "recurrent", UNITS: 9})
    assert data["model"]["rnn"] == {**BASE["model"]["rnn"], "kind": "gru", "hidden_size": 9}


def test_data_is_chosen_and_changes_nothing_of_the_recipe() -> None:
    built = space({"data": choice("a", "b"), LAYERS: whole(1, 2, data="b")})
    assert built.combinations() == [{"data": "a"}, {"data": "b", LAYERS: 1}, {"data": "b", LAYERS: 2}]
    assert built.apply({"data": "a"}) == BASE


# --- grids ------------------------------------------------------------------------------------------------------------------


def test_a_grid_is_a_product_of_its_axes() -> None:
    built = space({KIND: choice("lstm", "gru"), LAYERS: whole(1, 3)})
    expected = {(kind, layers) for kind in ("lstm", "gru") for layers in (1, 2, 3)}
    assert {(point[KIND], point[LAYERS]) for point in built.combinations()} == expected
    assert len(built.combinations()) == 6


def test_what_cannot_be_a_grid_says_why() -> None:
    smooth = {"type": "float", "low": 1e-3, "high": 1e-2}
    with pytest.raises(ConfigError, match=r"space.training.optimizer.lr: a grid needs step, or a choice of values"):
        space({LR: smooth, LAYERS: whole(1, 2)}).combinations()
    with pytest.raises(ConfigError, match=r"more than 10,000 points"):
        space({UNITS: whole(1, 200), "training.seed": whole(0, 99)}).combinations()


# --- faults -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ({"model.rnn.units": whole(1, 2)}, "space.model.rnn.units: unknown key; valid here: .*hidden_size.*"),
        ({"optimizer.lr": whole(1, 2)}, "space.optimizer.lr: unknown key; valid here: augment, data, feed, model, training"),
        ({"name": choice("a")}, "space.name: unknown key; valid here: augment, data, feed, model, training"),
        ({"training.seed.x": whole(1, 2)}, "space.training.seed.x: training.seed is no group of settings"),
        ({"training.monitor": choice("last")}, "space.training.monitor: follows from the first objective"),
        ({"model.rnn": choice("lstm", "gru")}, "space.model.rnn: is a group of settings; expected options: .*"),
        ({"data": whole(1, 2)}, "space.data: expected a choice among names that --data NAME=DATASET gives"),
        ({LAYERS: whole(1, 2, model__rnn__kin="gru")}, "space.model.rnn.layers.when.model.rnn.kin: unknown key; .*"),
        ({LAYERS: whole(1, 2, model__rnn="gru")}, "space.model.rnn.layers.when.model.rnn: is a group of settings; name one of them"),
        ({LAYERS: whole(1, 2, data="a")}, "space.model.rnn.layers.when.data: not searched"),
        (
            {KIND: choice("lstm", "gru"), LAYERS: whole(1, 2, model__rnn__kind=["gru", "rnn"])},
            "space.model.rnn.layers.when.model.rnn.kind: 'rnn' is nothing that model.rnn.kind may be",
        ),
        (
            {LAYERS: whole(1, 2, model__rnn__hidden_size=9), UNITS: whole(8, 9, model__rnn__layers=2)},
            "space: the conditions go round in a circle: model.rnn.* -> model.rnn.* -> model.rnn.*",
        ),
        (
            {"model.rnn": {"type": "choice", "options": {"a": {"layers": 2}, "b": {}}}, LAYERS: whole(1, 2)},
            "space.model.rnn.layers: is also set by option 'a' of model.rnn",
        ),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(found: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=rf"^space: 1 fault\(s\)\n  - {fault}$"):
        space(found)


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        space({"name": choice("a"), "model.rnn.units": whole(1, 2), LAYERS: whole(1, 2, training__epoch=1)})
    assert len(raised.value.faults) == 3


def test_values_outside_the_space_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.rnn.kind: 'rnn' is not in the space\n.*training.seed: 1 is not in the space"):
        space({KIND: choice("lstm", "gru")}).apply({KIND: "rnn", "training.seed": 1})


def test_dotted_keys_at_any_depth() -> None:
    assert nested({"a.b": 1, "a": {"c.d": 2}, "e": [{"f.g": 3}]}) == {"a": {"b": 1, "c": {"d": 2}}, "e": [{"f.g": 3}]}
