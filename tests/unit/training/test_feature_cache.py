from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cxr_ray.config import Recipe, TrainingConfig
from cxr_ray.errors import ConfigError, RunError
from cxr_ray.models.classifier import Classifier
from cxr_ray.settings import parse_settings
from cxr_ray.training.feature_cache import FeatureCache
from cxr_ray.training.loop import fit

Network = Callable[..., Classifier]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_kept_features_train_the_same_network(problem: Any, network: Network) -> None:
    settings = TrainingConfig(epochs=4, batch_size=8, monitor="val_loss")
    plain, kept = network(freeze_stages=-1, dropout=0.3), network(freeze_stages=-1, dropout=0.3)
    slow = fit(plain, problem.train(), problem.validation(), settings, labels=problem.labels)
    quick_settings = settings.model_copy(update={"cache_features": True})
    quick = fit(kept, problem.train(), problem.validation(), quick_settings, labels=problem.labels)
    assert torch.allclose(weights(plain), weights(kept), atol=1e-6)
    assert [record.val_loss for record in quick.history] == pytest.approx([record.val_loss for record in slow.history], abs=1e-6)


def test_the_backbone_sees_each_image_once(problem: Any, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(freeze_stages=-1)
    seen: list[int] = []
    compute = model.feature_map
    monkeypatch.setattr(model, "feature_map", lambda images: seen.append(len(images)) or compute(images))
    settings = TrainingConfig(epochs=5, batch_size=8, monitor="val_loss", cache_features=True)
    fit(model, problem.train(), problem.validation(), settings, labels=problem.labels)
    assert sum(seen) == 2 * len(problem.images)  # the training feed and the validation feed


def test_what_learns_cannot_be_kept(network: Network) -> None:
    with pytest.raises(RunError, match=r"frozen for the whole run(?s:.)*freeze_stages=-1"):
        FeatureCache(network(freeze_stages=2), 10)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"backbone": {"freeze_stages": 3}}}, "freeze_stages -1"),
        ({"model": {"backbone": {"freeze_stages": -1, "train_norms": True}}}, "freeze_stages -1"),
        ({"augment": "light"}, "augment 'none'"),
        ({"training": {"cache_features": True, "mixup_alpha": 0.2}}, "no mixup"),
    ],
)
def test_settings_that_change_what_the_backbone_sees_are_refused(changes: dict[str, Any], said: str) -> None:
    whole = {"name": "x", "model": {"backbone": {"freeze_stages": -1}}, "training": {"cache_features": True}, **changes}
    with pytest.raises(ConfigError, match=said):
        parse_settings(Recipe, whole, where="test")


def test_maps_larger_than_the_memory_are_refused(problem: Any, network: Network) -> None:
    cache = FeatureCache(network(freeze_stages=-1), 10**12)
    batch = next(problem.train().epoch(0))
    with pytest.raises(RunError, match=r"GiB; this machine has(?s:.)*cache_features=false"):
        cache.maps(batch, torch.device("cpu"))
