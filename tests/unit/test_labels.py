"""Label sets refuse what no classifier could answer."""

from __future__ import annotations

import pytest

from cxr_ray.errors import DatasetError
from cxr_ray.labels import LabelSet, Task


@pytest.mark.parametrize(
    ("names", "task"),
    [(("one",), "multiclass"), ((), "multilabel"), (("a", "a"), "multiclass"), (("a", " "), "multiclass")],
    ids=["one class", "no label", "twice", "blank"],
)
def test_refused(names: tuple[str, ...], task: Task) -> None:
    with pytest.raises(DatasetError):
        LabelSet(names, task)


def test_an_unknown_label_lists_the_known() -> None:
    labels = LabelSet(("covid", "normal"), "multiclass")
    assert labels.index("normal") == 1
    with pytest.raises(DatasetError, match="covid, normal"):
        labels.index("Covid")
