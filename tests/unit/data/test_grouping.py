"""Copies are found whatever was done to them, different images are not joined, and groups hold together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from cxr_ray.data.grouping import CopyPairs, exact_copies, find_copies, group_ids, near_copies, thumbnail

Pixels = npt.NDArray[np.uint8]


def jpeg(image: Pixels, quality: int) -> Pixels:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE))


def cut(image: Pixels, top: float, bottom: float, left: float, right: float) -> Pixels:
    height, width = image.shape
    part = image[round(top * height) : height - round(bottom * height), round(left * width) : width - round(right * width)]
    return np.ascontiguousarray(part)


def brighter(image: Pixels) -> Pixels:
    return np.clip(image * 0.8 + 35.0, 0, 255).astype(np.uint8)


EDITS: dict[str, Callable[[Pixels], Pixels]] = {
    "jpeg-50": lambda image: jpeg(image, 50),
    "half-size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "brightness-and-contrast": brighter,
    "equalised": cv2.equalizeHist,
    "cut-5-percent": lambda image: cut(image, 0.025, 0.025, 0.025, 0.025),
    "cut-5-percent-a-side": lambda image: cut(image, 0.05, 0.05, 0.05, 0.05),
    "cut-at-one-corner": lambda image: cut(image, 0.05, 0.0, 0.0, 0.05),
    "cut-unevenly": lambda image: cut(image, 0.01, 0.04, 0.03, 0.0),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "all-of-these": lambda image: cut(brighter(jpeg(np.ascontiguousarray(image[:, ::-1]), 50)), 0.02, 0.03, 0.03, 0.02),
}


@pytest.fixture(scope="module")
def images() -> list[Pixels]:
    """40 images of one anatomy: the coarse structure is shared, as in radiographs, the finer one is each image's own."""
    rng = np.random.default_rng(7)
    fields = [cv2.GaussianBlur(rng.standard_normal((256, 224)), (0, 0), sigma) * sigma for sigma in (24.0, 10.0)]
    made = []
    for _ in range(40):
        own = [
            cv2.GaussianBlur(rng.standard_normal((256, 224)), (0, 0), sigma) * sigma * weight for sigma, weight in ((10.0, 0.8), (4.0, 0.5))
        ]
        field = fields[0] * 2 + fields[1] + own[0] + own[1] + rng.standard_normal((256, 224)) * 0.02
        made.append(np.clip(128 + 60 * field, 0, 255).astype(np.uint8))
    return made


def thumbnails(images: list[Pixels]) -> Pixels:
    return np.stack([thumbnail(image) for image in images])


def test_different_images_of_one_anatomy_are_no_copies(images: list[Pixels]) -> None:
    stacked = thumbnails(images).reshape(len(images), -1)
    assert np.median(np.corrcoef(stacked)) > 0.5, "the images must look alike for this test to say anything"
    assert len(near_copies(thumbnails(images))) == 0


@pytest.mark.parametrize("edit", EDITS)
def test_edited_copies_are_found(images: list[Pixels], edit: str) -> None:
    pairs = near_copies(thumbnails(images + [EDITS[edit](image) for image in images]))
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert found == {(row, row + len(images)) for row in range(len(images))}
    assert pairs.mirrored.all() == pairs.mirrored.any() == (edit in {"mirrored", "all-of-these"})
    assert (pairs.score <= 1.0001).all()


def test_copies_of_copies_are_all_joined(images: list[Pixels]) -> None:
    rows = [images[0], *images, jpeg(images[0], 60), EDITS["mirrored"](images[0])]
    pairs = near_copies(thumbnails(rows))
    groups = group_ids([str(row) for row in range(len(rows))], pairs)
    same = np.flatnonzero(groups == groups[0])
    assert same.tolist() == [0, 1, len(rows) - 2, len(rows) - 1]


def test_many_copies_of_one_image_are_one_group_without_all_their_pairs(images: list[Pixels]) -> None:
    copies = [jpeg(images[0], 30 + number // 2) for number in range(120)]
    pairs = near_copies(thumbnails(copies))
    assert len(set(group_ids([str(row) for row in range(120)], pairs))) == 1
    assert 119 <= len(pairs) <= 120 * (24 + 8)


@pytest.mark.parametrize("flat", [np.zeros((64, 64), np.uint8), np.full((64, 64), 255, np.uint8)])
def test_flat_images_are_copies_of_nothing(flat: Pixels) -> None:
    assert len(near_copies(np.stack([flat, flat, flat]))) == 0


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_to_compare(images: list[Pixels], rows: int) -> None:
    assert len(near_copies(thumbnails(images)[:rows])) == 0


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="64"):
        near_copies(np.zeros((2, 32, 32), np.uint8))


def test_blocks_may_be_searched_anywhere_and_in_any_order(images: list[Pixels], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxr_ray.data.grouping.BLOCK_ROWS", 7)
    stacked = thumbnails(images + [EDITS["jpeg-50"](image) for image in images])

    def backwards(search: Any, blocks: Any) -> Any:
        return [search(block) for block in reversed(blocks)]

    here, there = near_copies(stacked), near_copies(stacked, apply=backwards)
    assert here.first.tolist() == there.first.tolist()
    assert here.second.tolist() == there.second.tolist()
    assert len(here) == len(images)


def test_exact_copies_are_counted_beside_the_first() -> None:
    pairs = exact_copies(["a", "b", "a", "c", "a", "b"])
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(0, 2), (0, 4), (1, 5)]
    assert pairs.score.tolist() == [1.0, 1.0, 1.0]


def test_exact_copies_are_not_searched_again(images: list[Pixels]) -> None:
    rows = [images[0], images[1], images[0], jpeg(images[0], 60)]
    exact, near = find_copies(["a", "b", "a", "d"], thumbnails(rows))
    assert list(zip(exact.first, exact.second, strict=True)) == [(0, 2)]
    assert list(zip(near.first, near.second, strict=True)) == [(0, 3)]
    groups = group_ids(["p", "q", "r", "s"], exact, near)
    assert groups[0] == groups[2] == groups[3] != groups[1]


def pairs_of(*rows: tuple[int, int]) -> CopyPairs:
    first, second = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    return CopyPairs(first, second, np.ones(len(rows), np.float32), np.zeros(len(rows), bool))


def test_groups_join_patients_and_copies_transitively() -> None:
    groups = group_ids(["ann", "ann", "bob", "cid", "dan"], pairs_of((1, 2), (2, 3)))
    assert len(set(groups[:4])) == 1
    assert groups[4] != groups[0]


def test_a_group_is_named_by_its_patients_not_by_the_order_of_rows() -> None:
    patients = ["ann", "bob", "cid", "bob", "dan"]
    order = [4, 2, 0, 3, 1]
    before = group_ids(patients, pairs_of((0, 2)))
    after = group_ids([patients[row] for row in order], pairs_of((1, 2)))
    assert after.tolist() == before[order].tolist()
    assert "ann" not in "".join(before)


def test_real_radiographs(real_data: Path) -> None:
    """Nine in ten and more of planted copies, and no false pair, among 1,000 real images with many repeat visits."""
    files = sorted((real_data / "nih64" / "images").glob("*.png"))
    assert len(files) == 1000
    originals = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files]
    kinds = ["jpeg-50", "brightness-and-contrast", "cut-5-percent", "mirrored"]
    planted = [(row, EDITS[kinds[row % len(kinds)]](originals[row])) for row in range(0, 1000, 5)]
    pairs = near_copies(thumbnails(originals + [image for _, image in planted]))
    wanted = {(row, 1000 + number) for number, (row, _) in enumerate(planted)}
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert len(found & wanted) >= 0.95 * len(wanted)
    assert len(found - wanted) <= 0.001 * len(found) + 1
