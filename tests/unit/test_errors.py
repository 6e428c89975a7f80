"""Errors say what came and what to type, and survive the way between Ray processes."""

from __future__ import annotations

import pickle

import pytest

from cxr_ray.errors import ConfigError, CxrRayError, DatasetError, ImageError


@pytest.mark.parametrize(
    "error",
    [
        CxrRayError("what came", hint="what to type"),
        DatasetError("no shards"),
        ImageError("truncated", "the file ends too early"),
        ConfigError(["a: wrong", "b: unknown"], where="x.yaml"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error: CxrRayError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert back.__dict__ == error.__dict__
    assert str(back) == str(error)


def test_the_hint_stands_on_its_own_line() -> None:
    assert str(CxrRayError("no", hint="yes")).splitlines() == ["no", "  try: yes"]
