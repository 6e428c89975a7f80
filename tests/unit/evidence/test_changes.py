"""The changes of the picture are what they say, and the checks that use them ask the model again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cxr_ray.evidence.cover import border_alone, without_lungs
from cxr_ray.evidence.robust import CHANGES, changed, robustness
from cxr_ray.evidence.saliency import follows_weights, heat_in_lungs
from cxr_ray.evidence.sample import Sample

Make = Callable[..., Sample]


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_keeps_the_shape_grows_with_its_severity_and_is_repeatable(kind: str) -> None:
    images = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (2, 96, 1))
    images[:, 12:40, 12:40] = 255 - images[:, 12:40, 12:40]
    far = [np.abs(changed(images, kind, severity, 0).astype(int) - images).mean() for severity in (1, 2, 3)]
    assert changed(images, kind, 1, 0).shape == images.shape
    assert 0 < far[0] < far[2]
    np.testing.assert_array_equal(changed(images, kind, 2, 5), changed(images, kind, 2, 5))


def test_every_check_gives_a_figure_or_says_why_not(sample: Make, classifier: Any) -> None:
    few = sample(24)
    for check in (without_lungs(classifier, few), border_alone(classifier, few), robustness(classifier, few)):
        assert check.value is not None
        assert check.ci95 is not None
        assert check.ci95[0] <= check.value <= check.ci95[1]
    assert len(robustness(classifier, few).details["table"]) == 3 * len(CHANGES)
    blind = sample(24, probabilities=np.full((24, 2), 0.5))
    assert border_alone(classifier, blind).value is None


def test_heat_is_weighed_by_area_and_follows_the_weights(sample: Make, classifier: Any) -> None:
    few = sample(8)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    found = follows_weights(classifier, few)
    assert [row["random_from_the_head_to"] for row in found.details["cascade"]][:2] == ["head", "RNN and readout"]
    assert found.value is not None
    assert 0 <= found.value <= 1
    weighed = heat_in_lungs(classifier, few)
    assert weighed.value is None or weighed.value >= 0
    assert all((tensor == before[name]).all() for name, tensor in classifier.state_dict().items())
