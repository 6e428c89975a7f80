from __future__ import annotations

import pytest

from cxr_ray.errors import ConfigError, DatasetError
from cxr_ray.settings import parse_settings
from cxr_ray.synthesis.config import GanRequest, work_size


@pytest.mark.parametrize(
    ("height", "width", "asked", "expected"),
    [(32, 32, None, 32), (64, 64, None, 64), (100, 90, None, 64), (224, 224, None, 128), (256, 40, None, 32), (224, 224, 64, 64)],
)
def test_the_square_the_gan_works_on(height: int, width: int, asked: int | None, expected: int) -> None:
    assert work_size(height, width, asked) == expected


@pytest.mark.parametrize(("height", "width"), [(31, 64), (64, 16), (257, 64), (512, 512)])
def test_sizes_it_is_not_made_for(height: int, width: int) -> None:
    with pytest.raises(DatasetError, match=f"{height}x{width}"):
        work_size(height, width)


def test_faults_of_settings_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(GanRequest, {"epochs": 0, "size": 48, "changes": ["flip"], "learning_rate": 1}, where="synthesize")
    faults = "\n".join(caught.value.faults)
    for name in ("epochs", "size", "changes.0", "learning_rate: unknown key"):
        assert name in faults


@pytest.mark.parametrize(("images", "epochs"), [(16, 2000), (82, 400), (108, 334), (5000, 7)])
def test_epochs_that_make_two_thousand_steps(images: int, epochs: int) -> None:
    settled = GanRequest().settle(images)
    assert settled.epochs == epochs
    assert settled.checkpoint_every == max(1, epochs // 20)
    assert GanRequest(epochs=3, checkpoint_every=2).settle(images).epochs == 3
