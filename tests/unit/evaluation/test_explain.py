"""Heat stands where the evidence was planted, follows the weights, and costs the model nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cxr_ray.config import BackboneConfig, ModelConfig, RnnConfig
from cxr_ray.errors import ModelError
from cxr_ray.evaluation.explain import METHODS, explain, grey_png, overlay_png
from cxr_ray.models.classifier import Classifier, build_classifier
from cxr_ray.models.ensemble import Ensemble

SIZE, SQUARE = 64, 16
RNN = RnnConfig(kind="lstm", hidden_size=16, readout="mean")


def build(seed: int = 0, *, rnn: RnnConfig = RNN, **backbone: Any) -> Classifier:
    config = ModelConfig(backbone=BackboneConfig(**{"name": "croup_cnn", **backbone}), rnn=rnn)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_classifier(config, 2, mean=0.35, std=0.2, image_size=(SIZE, SIZE)).eval()


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise; in every other image a brighter square. Images, labels, and (top, left) of the squares."""
    generator = np.random.default_rng(seed)
    images = generator.integers(40, 140, (count, SIZE, SIZE))
    labels = np.arange(count) % 2
    corners = generator.integers(0, SIZE - SQUARE + 1, (count, 2))
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        image[top : top + SQUARE, left : left + SQUARE] += 100 * label
    return images.astype(np.uint8), labels, corners


@dataclass(frozen=True)
class Planted:
    model: Classifier
    images: np.ndarray
    corners: np.ndarray

    def concentration(self, model: Classifier, method: str) -> float:
        """Mean share of the heat inside the square, over the square's share of the area."""
        found = []
        for image, (top, left) in zip(self.images, self.corners, strict=True):
            heat = explain(model, image, 1, method).heat_HW
            found.append(heat[top : top + SQUARE, left : left + SQUARE].sum() / max(heat.sum(), 1e-9))
        return float(np.mean(found)) / (SQUARE / SIZE) ** 2


@pytest.fixture(scope="module")
def planted() -> Planted:
    """A CNN-LSTM that has learned to find bright squares, and 20 images with one."""
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # of the dropout
        for step in range(200):
            images, labels, _ = draw(16, seed=step)
            loss = F.cross_entropy(model(torch.from_numpy(images)), torch.from_numpy(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    images, labels, corners = draw(40, seed=1000)
    with torch.inference_mode():
        assert (model(torch.from_numpy(images)).argmax(1).numpy() == labels).mean() >= 0.9
    return Planted(model, images[labels == 1], corners[labels == 1])


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "eigencam"])
def test_heat_stands_where_the_evidence_is(planted: Planted, method: str) -> None:
    assert len(planted.images) == 20
    assert planted.concentration(planted.model, method) >= 3.0


def test_it_follows_the_weights(planted: Planted) -> None:
    """A map that a network without knowledge gives as well would be an edge detector (Adebayo 2018)."""
    random = build(seed=7)
    assert planted.concentration(random, "gradcam") < planted.concentration(planted.model, "gradcam") / 2
    likeness = []
    for image in planted.images:
        one, other = (explain(model, image, 1).heat_HW.ravel() for model in (planted.model, random))
        likeness.append(np.corrcoef(one, other)[0, 1] if other.std() else 0.0)
    assert np.mean(likeness) < 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: build(rnn=RnnConfig(kind="gru", hidden_size=8, layers=2, bidirectional=True, readout="attention")),
        lambda: build(rnn=RnnConfig(kind="none", readout="mean"), freeze_stages=-1),
        lambda: build(name="small_cnn", freeze_stages=2),
        lambda: Ensemble([build(0), build(1)], task="multilabel", weights=[3, 1]),
    ],
    ids=["gru", "frozen", "partly-frozen", "ensemble"],
)
@pytest.mark.parametrize("method", METHODS)
def test_any_network_and_none_is_changed(make: Callable[[], Classifier | Ensemble], method: str) -> None:
    model, image = make(), draw(2, seed=3)[0][1]
    model.train()
    learning = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = explain(model, image, method=method)
    assert found.heat_HW.shape == image.shape
    assert found.heat_HW.dtype == np.float32
    assert 0.0 <= found.heat_HW.min() <= found.heat_HW.max() <= 1.0
    model.eval()
    with torch.inference_mode():
        assert found.label == int(model(torch.from_numpy(image[None])).argmax())
    model.train()
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_ensemble_is_the_mean_of_its_members(planted: Planted) -> None:
    members = [planted.model, build(seed=1)]
    image = planted.images[0]
    one, other = (explain(member, image, 1).heat_HW for member in members)
    both = explain(Ensemble(members, task="multiclass", weights=[3, 1]), image, 1).heat_HW
    np.testing.assert_allclose(both, 0.75 * one + 0.25 * other, atol=1e-5)


def test_threads_do_not_disturb_each_other(planted: Planted) -> None:
    alone = [explain(planted.model, image, 1).heat_HW for image in planted.images[:8]]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: explain(planted.model, image, 1).heat_HW, planted.images[:8]))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_eigencam_asks_for_no_label(planted: Planted) -> None:
    one, other = (explain(planted.model, planted.images[0], label, "eigencam").heat_HW for label in (0, 1))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"method": "lime"}, "gradcam, gradcam"),
        ({"label_index": 2}, "the model has 2"),
        ({"image_HW": np.zeros((3, 64, 64), np.uint8)}, "one"),
    ],
)
def test_what_cannot_be_explained_is_refused(planted: Planted, arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        explain(planted.model, **{"image_HW": planted.images[0], **arguments})


def test_pictures() -> None:
    image = np.tile(np.arange(SIZE, dtype=np.uint8), (SIZE, 1))
    heat = np.zeros((SIZE, SIZE), np.float32)
    heat[:8] = 1.0
    overlay = cv2.imdecode(np.frombuffer(overlay_png(image, heat), np.uint8), cv2.IMREAD_UNCHANGED)
    assert overlay.shape == (SIZE, SIZE, 3)
    assert np.array_equal(overlay[8:], np.repeat(image[8:, :, None], 3, axis=2))  # no heat, no colour
    assert (overlay[:8, :, 2] > overlay[:8, :, 0]).all()  # hot is red
    for array in (image, heat):
        read = cv2.imdecode(np.frombuffer(grey_png(array), np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(read, array if array is image else heat * 255)
