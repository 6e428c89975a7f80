"""Augmentation: reproducible image by image, in range, and refused with all faults at once."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cxr_ray.config import AugmentOp
from cxr_ray.data import augment
from cxr_ray.data.augment import NAMED_SETS, OPERATIONS, Augmentation, build_augmentation
from cxr_ray.errors import ConfigError


def radiographs(count: int = 12, height: int = 40, width: int = 48) -> NDArray[np.uint8]:
    """Smooth images that no operation leaves as they are, none of them symmetric."""
    noise = np.random.default_rng(0).normal(size=(count, height, width)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(image, (0, 0), 4) for image in noise])
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return (30 + 180 * smooth).astype(np.uint8)


EVERY = [*(pytest.param(ops, id=name) for name, ops in NAMED_SETS.items() if ops)]
EVERY += [pytest.param((kind(p=1.0),), id=name) for name, kind in OPERATIONS.items()]


@pytest.mark.parametrize("ops", EVERY)
def test_shape_kept_images_changed_input_untouched(ops: tuple[augment.Op, ...]) -> None:
    images = radiographs()
    before = images.copy()
    changed = Augmentation(ops).apply(images, 0, 0, range(12))
    assert changed.shape == images.shape
    assert changed.dtype == np.uint8
    assert np.array_equal(images, before)
    assert not np.array_equal(changed, images)


@pytest.mark.parametrize("ops", EVERY)
def test_an_image_is_changed_alike_in_any_batch_thread_and_global_state(ops: tuple[augment.Op, ...]) -> None:
    images = radiographs()
    whole = Augmentation(ops).apply(images, 3, 5, range(12))
    random.seed(99)
    np.random.seed(99)
    again = Augmentation(ops)
    order = np.array([7, 2, 11])
    assert np.array_equal(again.apply(images[order], 3, 5, order), whole[order])
    with ThreadPoolExecutor(3) as pool:
        single = list(pool.map(lambda row: again.apply(images[row : row + 1], 3, 5, [row])[0], range(12)))
    assert np.array_equal(np.stack(single), whole)


def test_seed_epoch_and_row_each_change_the_outcome() -> None:
    same = np.repeat(radiographs(1), 3, axis=0)
    ops = Augmentation([augment.Affine(p=1.0, shift=0.1)])
    keys = [(0, 0, [0, 1, 2]), (0, 1, [0, 1, 2]), (1, 0, [0, 1, 2])]
    changed = np.concatenate([ops.apply(same, *key) for key in keys])
    assert len({image.tobytes() for image in changed}) == len(changed)


def test_operations_are_decided_one_by_one() -> None:
    """One seed handed to every transform would apply all of them or none."""
    images = np.repeat(radiographs(1), 400, axis=0)
    ops = Augmentation([augment.Flip(p=0.5), augment.BrightnessContrast(p=0.5, contrast=0.0)])
    changed = ops.apply(images, 0, 0, range(400))
    left = images[0].astype(int)
    flipped = np.array([abs(image - left[:, ::-1]).std() < abs(image - left).std() for image in changed.astype(int)])
    lighter = np.array([image.mean() != images[0].mean() for image in changed])
    assert 0.4 < flipped.mean() < 0.6
    assert 0.4 < lighter.mean() < 0.6
    assert abs(np.corrcoef(flipped, lighter)[0, 1]) < 0.15


def test_probabilities_hold() -> None:
    images = np.repeat(radiographs(1), 500, axis=0)
    changed = Augmentation([augment.Flip(p=0.2)]).apply(images, 1, 0, range(500))
    assert 0.15 < np.mean([not np.array_equal(image, images[0]) for image in changed]) < 0.25
    assert len(Augmentation([augment.Flip(p=0.0)])) == 0


def test_flip_mirrors_left_and_right() -> None:
    images = radiographs()
    assert np.array_equal(Augmentation([augment.Flip(p=1.0)]).apply(images, 0, 0, range(12)), images[:, :, ::-1])


def test_rotation_stays_within_its_limit_and_fills_as_asked() -> None:
    images = np.full((64, 65, 65), 200, dtype=np.uint8)
    images[:, 32, 32:60] = 255  # a hand that points right
    black = Augmentation([augment.Affine(p=1.0, rotate=15.0)]).apply(images, 0, 0, range(64))
    angles = []
    for image in black:
        rows, columns = np.nonzero(image > 225)
        angles.append(np.degrees(np.arctan2(rows.mean() - 32, columns.mean() - 32)))
    assert 8 < max(np.abs(angles)) <= 16
    assert min(angles) < 0 < max(angles)
    assert (black == 0).any()
    replicated = Augmentation([augment.Affine(p=1.0, rotate=15.0, border="replicate")]).apply(images, 0, 0, range(64))
    assert replicated.min() >= 199


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_sharpness_is_that_of_torchvision(factor: float) -> None:
    from torchvision.transforms.v2.functional import adjust_sharpness

    images = np.random.default_rng(1).integers(0, 256, (4, 32, 32), dtype=np.uint8)
    ours = Augmentation([augment.Sharpness(p=1.0, low=factor, high=factor)]).apply(images, 0, 0, range(4))
    theirs = adjust_sharpness(torch.from_numpy(images)[:, None], factor)[:, 0].numpy()
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_autocontrast_is_that_of_torchvision() -> None:
    from torchvision.transforms.v2.functional import autocontrast

    images = np.concatenate([radiographs(4, 32, 32), np.full((1, 32, 32), 77, dtype=np.uint8)])
    ours = Augmentation([augment.Autocontrast(p=1.0)]).apply(images, 0, 0, range(5))
    theirs = autocontrast(torch.from_numpy(images)[:, None])[:, 0].numpy()
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    assert (ours[0].min(), ours[0].max()) == (0, 255)


def test_autocontrast_ignores_the_tails() -> None:
    image = np.full((1, 20, 20), 100, dtype=np.uint8)
    image[0, :10] = 150
    image[0, 0, 0], image[0, -1, -1] = 0, 255  # a marker and a hot pixel
    stretched = Augmentation([augment.Autocontrast(p=1.0, cutoff=1.0)]).apply(image, 0, 0, [0])
    assert set(np.unique(stretched)) == {0, 255}


def test_noise_has_about_the_standard_deviation_asked_for() -> None:
    grey = np.full((40, 32, 32), 128, dtype=np.uint8)
    deviations = Augmentation([augment.Noise(p=1.0, std=0.1)]).apply(grey, 0, 0, range(40)).std(axis=(1, 2)) / 255
    assert 0.02 < deviations.min() < deviations.max() < 0.11


def test_paper_sets() -> None:
    assert [type(op).__name__ for op in NAMED_SETS["paper-004"]] == ["Sharpness", "Autocontrast", "Flip"]
    (rotation,) = NAMED_SETS["paper-001"]
    assert rotation == augment.Affine(p=1.0, rotate=15.0, shift=0.0, scale=0.0, shear=0.0, border="replicate")


def test_a_list_of_a_recipe_gives_the_operations_it_names() -> None:
    built = build_augmentation([AugmentOp(op="affine", p=0.3, rotate=5), AugmentOp(op="noise")])
    assert built.ops == (augment.Affine(p=0.3, rotate=5.0), augment.Noise(p=0.5))


def test_pickled_augmentation_does_the_same() -> None:
    built = build_augmentation("standard")
    images = radiographs()
    wanted = built.apply(images, 0, 0, range(12))
    assert np.array_equal(pickle.loads(pickle.dumps(built)).apply(images, 0, 0, range(12)), wanted)


def test_all_faults_are_told_at_once_with_what_is_valid() -> None:
    with pytest.raises(ConfigError) as caught:
        build_augmentation([AugmentOp(op="afine"), AugmentOp(op="affine", rotat=3, shift=2), AugmentOp(op="sharpness", low=3)])
    text = str(caught.value)
    assert len(caught.value.faults) == 4
    for part in (
        "augment.0.op: unknown operation 'afine'; valid: flip, affine",
        "rotat: unknown key; valid here",
        "augment.1.affine.shift",
        "low 3",
    ):
        assert part in text


def test_unknown_set_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'heavy'; there are: none, flip, light, standard"):
        build_augmentation("heavy")


@pytest.mark.parametrize(("shape", "dtype", "rows"), [((2, 8), np.uint8, 2), ((2, 8, 8), np.float32, 2), ((2, 8, 8), np.uint8, 3)])
def test_other_arrays_are_refused(shape: tuple[int, ...], dtype: type, rows: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        build_augmentation("none").apply(np.zeros(shape, dtype), 0, 0, range(rows))
