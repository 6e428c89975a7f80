"""Are planted copies found across parts, are different images left alone, and how does the search grow?

    python benchmarks/copies.py DATA/darkcovid DATA/kermany_train DATA/nih64 --json

Every folder's images are decoded as ``ingest`` does. Copies of random ones are planted in another part: mirrored, cut by 5 % on each side,
saved again as JPEG of quality 50, with other contrast, at half the size. ``false_pairs`` are pairs among the folders' own images that bear
two patients' names; some of them are copies that the collections do hold, so their share is an upper limit. ``--grow`` measures the search
alone on so many images; where the folders hold fewer, the rest are means of two of them. Prints one flat object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_ray import storage
from cxr_ray.data.grouping import CopyPairs, exact_copies, near_copies, thumbnail
from cxr_ray.data.phantoms.encode import encode_jpeg
from cxr_ray.data.sources import read_source
from cxr_ray.imaging.decode import decode
from cxr_ray.training.run import hardware, versions

Image = NDArray[np.uint8]
CUT, QUALITY = 0.05, 50


def _cut(image: Image, generator: np.random.Generator) -> Image:
    rows, columns = (round(CUT * side) for side in image.shape)
    return np.asarray(image[rows : image.shape[0] - rows, columns : image.shape[1] - columns])


def _jpeg(image: Image, generator: np.random.Generator) -> Image:
    return np.asarray(decode(encode_jpeg(np.ascontiguousarray(image), QUALITY)).pixels)


def _contrast(image: Image, generator: np.random.Generator) -> Image:
    gain, middle = generator.choice([0.6, 1.4]), float(image.mean())
    return np.asarray(np.clip((image - middle) * gain + middle, 0, 255), dtype=np.uint8)


def _half(image: Image, generator: np.random.Generator) -> Image:
    return np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), dtype=np.uint8)


EDITS: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "flip": lambda image, _: np.ascontiguousarray(image[:, ::-1]),
    "crop": _cut,
    "jpeg": _jpeg,
    "contrast": _contrast,
    "resize": _half,
}


def read(folders: list[str], most: int, generator: np.random.Generator) -> tuple[list[str], list[str]]:
    """Location and patient of up to ``most`` different images that can be read; those without a patient are patients of their own."""
    rows = [(folder, row) for folder in folders for row in read_source(folder).rows]
    chosen = [rows[place] for place in np.sort(generator.permutation(len(rows))[:most])]
    locations = [row.location for _, row in chosen]
    patients = [f"{folder} {row.patient or row.location}" for folder, row in chosen]
    digests = [storage.sha256_file(location) for location in locations]
    distinct = np.setdiff1d(np.arange(len(digests)), exact_copies(digests).second)
    return [locations[row] for row in distinct], [patients[row] for row in distinct]


def plant(locations: list[str], share: float, generator: np.random.Generator) -> tuple[NDArray[np.uint8], dict[int, tuple[int, str]]]:
    """Thumbnails of the images and, behind them, of copies of a ``share`` of them: row of the copy -> (row of the original, its edit)."""
    images: list[Image] = []
    copies: list[Image] = []
    of: dict[int, tuple[int, str]] = {}
    chosen = {int(row) for row in generator.permutation(len(locations))[: round(share * len(locations))]}
    for row, location in enumerate(locations):
        pixels = decode(storage.read_bytes(location)).pixels
        images.append(thumbnail(pixels))
        if row in chosen:
            edit = list(EDITS)[len(copies) % len(EDITS)]
            of[len(locations) + len(copies)] = (row, edit)
            copies.append(thumbnail(EDITS[edit](pixels, generator)))
    return np.stack([*images, *copies]), of


def found_share(pairs: CopyPairs, of: dict[int, tuple[int, str]]) -> dict[str, float]:
    """Of each edit, and of all, the share of copies that are paired with their original, which stands in another part."""
    known = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    hits = {edit: [(original, copy) in known for copy, (original, kind) in of.items() if kind == edit] for edit in EDITS}
    every = [hit for kind in hits.values() for hit in kind]
    return {f"found_{edit}": round(float(np.mean(kind)), 4) for edit, kind in hits.items()} | {"found": round(float(np.mean(every)), 4)}


def false_pairs(pairs: CopyPairs, patients: list[str]) -> int:
    """Pairs among the images themselves that bear two patients' names."""
    own = pairs.second < len(patients)
    return sum(patients[one] != patients[other] for one, other in zip(pairs.first[own], pairs.second[own], strict=True))


def enlarged(thumbnails: NDArray[np.uint8], count: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """``count`` thumbnails: those there are, then means of two."""
    if count <= len(thumbnails):
        return thumbnails[:count]
    one, other = generator.integers(0, len(thumbnails), (2, count - len(thumbnails)))
    mixed = thumbnails[one] // 2 + thumbnails[other] // 2
    return np.concatenate([thumbnails, mixed])


def main() -> None:
    """Plant, search, count; then the growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="folders that `cxr-ray ingest` reads")
    parser.add_argument("--most", type=int, default=100_000, help="images to read")
    parser.add_argument("--share", type=float, default=0.25, help="of them that get a copy")
    parser.add_argument("--grow", type=int, nargs="*", default=[1_000, 10_000, 40_000], help="images to time the search on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one flat object on stdout")
    arguments = parser.parse_args()
    generator = np.random.default_rng(arguments.seed)
    locations, patients = read(arguments.folders, arguments.most, generator)
    thumbnails, of = plant(locations, arguments.share, generator)
    start = time.monotonic()
    pairs = near_copies(thumbnails)
    seconds = time.monotonic() - start
    wrong = false_pairs(pairs, patients)
    facts: dict[str, Any] = {
        "images": len(locations),
        "copies": len(of),
        **found_share(pairs, of),
        "false_pairs": wrong,
        "false_pairs_an_image": round(wrong / len(locations), 6),
        "false_share_of_pairs": wrong / (len(locations) * (len(locations) - 1) / 2),
        "seconds": round(seconds, 2),
    }
    for count in arguments.grow:
        many = enlarged(thumbnails, count, generator)
        start = time.monotonic()
        near_copies(many)
        facts[f"seconds_{count}"] = round(time.monotonic() - start, 2)
    facts |= {"date": time.strftime("%Y-%m-%d"), **hardware(), **{f"{name}_version": found for name, found in versions().items()}}
    print(json.dumps(facts) if arguments.json else "\n".join(f"{key:22} {value}" for key, value in facts.items()))


if __name__ == "__main__":
    main()
