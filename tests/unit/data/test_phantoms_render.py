"""One phantom: anatomy where it belongs, findings where the truth says, nothing to be read from the histogram."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cxr_ray.data.phantoms import CLASSES, MULTILABEL, TASKS, Phantom, Shot, render_phantom, shots
from cxr_ray.data.phantoms import render as render_module
from cxr_ray.data.phantoms.anatomy import draw_chest, sample_chest
from cxr_ray.data.phantoms.canvas import Frame
from cxr_ray.data.phantoms.exposure import give_histogram
from cxr_ray.data.phantoms.neck import air_column, draw_neck, sample_neck

SIZE = 128


def first(task: str, **changes: object) -> Shot:
    return dataclasses.replace(next(iter(shots(task, 1, 5, SIZE))), **changes)


def region(phantom: Phantom, finding: str) -> np.ndarray:
    mask = np.zeros(phantom.image.shape, bool)
    for lesion in phantom.lesions:
        if lesion.finding == finding:
            left, top, right, bottom = lesion.box
            mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("task", TASKS)
def test_the_same_shot_gives_the_same_pixels(task: str) -> None:
    shot = first(task)
    one, two = render_phantom(shot), render_phantom(shot)
    assert np.array_equal(one.image, two.image)
    assert one.lesions == two.lesions
    assert one.image.dtype == np.uint8
    assert one.image.shape == (shot.height, shot.width)
    assert one.image.std() > 15


def test_chest_is_dense_where_it_should_be() -> None:
    rng = np.random.default_rng(0)
    frame = Frame(SIZE, SIZE, SIZE / 40)
    chest = sample_chest(rng, "M", 50)
    layers = draw_chest(chest, frame, supine=False)
    water = render_module._chest_water(layers, render_module.Changes.none(layers), render_module.heart(chest, frame))
    x, y = frame.grid

    def mean(where: np.ndarray) -> float:
        return float(water[where].mean())

    lung = mean((np.abs(np.abs(x) - 8) < 2) & (np.abs(y) < 4))
    mediastinum = mean((np.abs(x) < 1.5) & (np.abs(y) < 4))
    belly = mean((np.abs(x) < 6) & (y > 16))
    outside = mean((np.abs(x) > 18) & (y < -17))
    assert outside < lung < 0.7 * mediastinum
    assert lung < 0.6 * belly
    left, right = (mean((x * side > 3) & (x * side < 9) & (np.abs(y - 6) < 3)) for side in (1, -1))
    assert left > right  # the heart lies on the patient's left, the right of the image


@pytest.mark.parametrize("finding", [*MULTILABEL, "covid", "pneumonia"])
def test_a_finding_changes_its_region_most(finding: str) -> None:
    task = "multilabel" if finding in MULTILABEL else "covid"
    shot = first(task, findings=(), decoy=(), view="PA", source="harbour")
    healthy, ill = render_phantom(shot), render_phantom(dataclasses.replace(shot, findings=(finding,)))
    assert healthy.lesions == ()
    assert {lesion.finding for lesion in ill.lesions} == {finding}
    inside = region(ill, finding)
    change = np.abs(ill.image.astype(float) - healthy.image)
    assert change[inside].mean() > 2 * change[~inside].mean()
    for lesion in ill.lesions:
        left, top, right, bottom = lesion.box
        assert 0 <= left < right <= shot.width
        assert 0 <= top < bottom <= shot.height
        assert all(left <= x < right and top <= y < bottom for outline in lesion.polygons for x, y in outline)


def test_ground_glass_is_on_both_sides_and_lobar_consolidation_on_one() -> None:
    for shot in (shot for shot in shots("covid", 24, 0, 96) if shot.findings):
        middle = (shot.width - 1) / 2
        centers = [(lesion.box[0] + lesion.box[2]) / 2 - middle for lesion in render_phantom(shot).lesions]
        assert len(centers) == (2 if shot.label == "covid" else 1)
        if shot.label == "covid":
            assert min(centers) < 0 < max(centers)


def test_croup_narrows_the_air_below_the_cords_only() -> None:
    neck = sample_neck(np.random.default_rng(1), "F", 2.0)
    layers = draw_neck(neck, Frame(256, 256, 256 / 14))
    healthy, steeple = (air_column(layers, np.random.default_rng(2), croup=croup)[0] for croup in (False, True))
    _, y = layers.frame.grid
    below = (y > neck.cords + 0.45) & (y < neck.cords + 0.8)
    assert steeple[below].sum() < 0.75 * healthy[below].sum()
    for same in (y < neck.cords - 0.2, (y > neck.cords + 3) & (y < neck.cords + 5)):
        assert steeple[same].sum() == pytest.approx(healthy[same].sum(), rel=0.1)


def test_visits_share_the_anatomy_but_not_the_picture() -> None:
    shot = first("covid", findings=(), decoy=())
    again = dataclasses.replace(shot, visit=1)
    other = dataclasses.replace(shot, patient=77)
    chests = [sample_chest(each.rng("anatomy", visit=False), "M", 50.0) for each in (shot, again, other)]
    assert chests[0] == chests[1] != chests[2]
    assert not np.array_equal(render_phantom(shot).image, render_phantom(again).image)


def test_the_histogram_is_that_of_the_decoy() -> None:
    rng = np.random.default_rng(0)
    image, other = rng.normal(size=(40, 50)).astype(np.float32), rng.random((40, 50), dtype=np.float32)
    given = give_histogram(image, other)
    assert np.array_equal(np.sort(given, axis=None), np.sort(other, axis=None))
    assert np.corrcoef(given.ravel().argsort().argsort(), image.ravel().argsort().argsort())[0, 1] > 0.9999


@pytest.mark.parametrize(("task", "ill"), [("covid", "covid"), ("covid", "pneumonia"), ("croup", "croup")])
def test_a_healthy_and_an_ill_picture_of_one_shot_have_one_histogram(task: str, ill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ill in CLASSES[task]
    # Markers and borders hide other pixels of the two pictures; without them the histograms are the same to the pixel.
    monkeypatch.setattr(render_module, "lay_over", lambda image, rng, **_: image)
    shot = first(task, decoy=(ill,))
    healthy, sick = (render_phantom(dataclasses.replace(shot, findings=what)).image for what in ((), (ill,)))
    assert not np.array_equal(healthy, sick)
    assert np.array_equal(np.bincount(healthy.ravel(), minlength=256), np.bincount(sick.ravel(), minlength=256))
