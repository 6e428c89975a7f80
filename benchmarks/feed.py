"""How fast images reach a training loop: our feeds beside what a user would use instead, in one run.

Measured is the delivery of every image once an epoch as (B, H, W) uint8 batches, without augmentation:

==================== =====================================================================================================
ray_materialized     shuffled globally, gathered from the object store (``FeedConfig.mode: materialized``)
ray_streamed         Ray Data pipeline from the shards, shuffled in windows; its start is counted
dataloader           PyTorch DataLoader, 2 persistent workers, shuffled, on JPEG files that have their final size already
dataloader_original  the same on the original files (1,024 pixels) with the preprocessing that the DATASET went through
pyarrow              the shards' row groups, read and viewed as NumPy batches; no shuffle, no copy into a tensor
memory               shuffled globally, gathered from one array in this process
==================== =====================================================================================================

All take turns, several times over; each figure is the median. Run it on an idle machine:
``python benchmarks/feed.py --json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from cxr_ray import cluster
from cxr_ray.config import FeedConfig
from cxr_ray.data.batches import Feed, MemoryFeed
from cxr_ray.data.columns import IMAGE, pixels, target_field, targets_column
from cxr_ray.data.manifest import CopyInfo, DatasetManifest, ImageInfo, Normalization, PartitionInfo, PreprocessInfo, fingerprint
from cxr_ray.data.shards import Dataset, open_dataset, write_shard
from cxr_ray.imaging.preprocess import PreprocessSpec, load_image
from cxr_ray.labels import LabelSet

BATCH = 32
ORIGINAL_SIZE = 1024
DISTINCT = 256
SHARD_ROWS = 1024
Images = NDArray[np.uint8]


# --- data ---------------------------------------------------------------------------------------------------------------


def originals(folder: Path, count: int) -> list[Path]:
    """``count`` JPEG files of smooth grey images with fine noise, which compress like radiographs (some 150 KB)."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    files = []
    for number in range(count):
        file = folder / f"{number:06d}.jpg"
        files.append(file)
        if number >= DISTINCT:  # a file of its own, but not decoded into another image
            shutil.copyfile(files[number % DISTINCT], file)
            continue
        coarse = random.integers(0, 256, (8, 8)).astype(np.float32)
        image = cv2.resize(coarse, (ORIGINAL_SIZE, ORIGINAL_SIZE), interpolation=cv2.INTER_CUBIC)
        image = image + random.normal(0, 3, (ORIGINAL_SIZE, ORIGINAL_SIZE))
        cv2.imwrite(str(file), np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return files


def write_dataset(folder: Path, images: Images) -> Dataset:
    """A DATASET with all images in ``train``."""
    count, height, width = images.shape
    labels = LabelSet(("normal", "pneumonia", "covid"), "multiclass")
    shards = []
    for start in range(0, count, SHARD_ROWS):
        part = images[start : start + SHARD_ROWS]
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(height * width), len(part), [None, pa.py_buffer(part.tobytes())])
        targets = targets_column(np.arange(start, start + len(part)) % 3, labels)
        table = pa.table([column, targets], pa.schema([pa.field(IMAGE, column.type, nullable=False), target_field(labels)]))
        shards.append(write_shard(str(folder), f"train/part-{start // SHARD_ROWS:05d}.parquet", table))
    spec = PreprocessInfo.of(PreprocessSpec(height=height, width=width))
    grey = Normalization(mean=0.5, std=0.25)
    manifest = DatasetManifest(
        name="benchmark",
        task=labels.task,
        labels=labels.names,
        image=ImageInfo(height=height, width=width),
        preprocess=spec,
        normalization=grey,
        partitions={"train": PartitionInfo(images=count, patients=count, per_label={}, pixels=grey)},
        seed=0,
        policy="grouped",
        sources=(),
        shards=tuple(shards),
        index=shards[0],
        quarantined=0,
        copies=CopyInfo(),
        split={},
        request="",
        fingerprint=fingerprint(labels.task, labels.names, spec.fingerprint, shards),
    )
    return Dataset(str(folder), manifest)


def jpegs(folder: Path, images: Images) -> list[Path]:
    """The same images at their final size, as JPEG files."""
    folder.mkdir(parents=True)
    files = [folder / f"{number:06d}.jpg" for number in range(len(images))]
    for file, image in zip(files, images, strict=True):
        cv2.imwrite(str(file), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return files


class ImageFiles(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """What a user would write: a file and its label an item."""

    def __init__(self, files: Sequence[Path], spec: PreprocessSpec | None) -> None:
        self.files = [str(file) for file in files]
        self.spec = spec

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.spec is None:
            image = cv2.imread(self.files[index], cv2.IMREAD_GRAYSCALE)
        else:
            image, _ = load_image(Path(self.files[index]).read_bytes(), self.spec)
        return torch.from_numpy(image), index % 3


# --- contenders ---------------------------------------------------------------------------------------------------------


def feed_epochs(open_feed: Callable[[], Feed], epochs: int) -> Callable[[], Iterator[int]]:
    """Image counts of the batches of a feed that is opened anew in every turn, so that nothing was read ahead."""

    def run() -> Iterator[int]:
        feed = open_feed()
        for epoch in range(epochs):
            for batch in feed.epoch(epoch):
                yield len(batch.images)
        feed.close()

    return run


def loader_epoch(loader: DataLoader[Any]) -> Callable[[], Iterator[int]]:
    """Image counts of the batches of one epoch; the loader's processes stay."""

    def run() -> Iterator[int]:
        for images, _ in loader:
            yield len(images)

    return run


def pyarrow_epochs(dataset: Dataset, parts: Sequence[str], epochs: int) -> Callable[[], Iterator[int]]:
    """Image counts of the batches viewed in each row group, read with pyarrow's defaults."""
    image = dataset.manifest.image
    column = "label" if dataset.labels.task == "multiclass" else "labels"

    def run() -> Iterator[int]:
        for _ in range(epochs):
            for location in (file for part in parts for file in dataset.files(part)):
                with pq.ParquetFile(location) as file:
                    for group in range(file.num_row_groups):
                        images = pixels(file.read_row_group(group, columns=["image", column]), image.height, image.width)
                        for start in range(0, len(images), BATCH):
                            yield len(images[start : start + BATCH])

    return run


def make_loader(files: Sequence[Path], spec: PreprocessSpec | None) -> DataLoader[Any]:
    """A DataLoader as a user would set it up for speed; spawned, not forked, for this process runs Ray's threads."""
    return DataLoader(ImageFiles(files, spec), BATCH, shuffle=True, num_workers=2, persistent_workers=True, multiprocessing_context="spawn")


def measure(contenders: dict[str, Callable[[], Iterator[int]]], repeats: int) -> dict[str, list[float]]:
    """Images a second, in turns; the first turn warms up and does not count."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            gc.collect()
            start = time.perf_counter()
            images = sum(run())
            rate = images / (time.perf_counter() - start)
            if turn:
                rates[name].append(rate)
            print(f"turn {turn} {name:20s} {rate:10,.0f} images/s", file=sys.stderr)
    return rates


def ratios(rates: dict[str, float]) -> dict[str, float]:
    """Each of our feeds over each alternative."""
    named = {"dataloader": "dataloader", "original": "dataloader_original", "raw": "pyarrow", "memory": "memory"}
    found = {}
    for suffix, ours in (("", "ray_materialized"), ("_streamed", "ray_streamed")):
        for name, theirs in named.items():
            if theirs in rates:
                found[f"ratio_{name}{suffix}"] = round(rates[ours] / rates[theirs], 3)
    return found


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the data, run all contenders, and return one flat object."""
    original_files: list[Path] = []
    if options.data:
        dataset = open_dataset(options.data)
        parts = list(dataset.training_partitions(options.fold)[0])
        size = dataset.manifest.image
        images = np.concatenate([pixels(table, size.height, size.width) for part in parts for table in dataset.tables(part, ["image"])])
    else:
        parts = ["train"]
        spec = PreprocessSpec(height=options.size, width=options.size)
        original_files = originals(folder / "originals", options.images)
        distinct = np.stack([load_image(file.read_bytes(), spec)[0] for file in original_files[:DISTINCT]])
        images = distinct[np.arange(options.images) % len(distinct)]
        dataset = write_dataset(folder / "dataset", images)
    cluster.connect("local")
    start = time.perf_counter()
    from cxr_ray.data.stream import plan_feed

    materialized = plan_feed(dataset, parts, FeedConfig(mode="materialized"))
    seconds = time.perf_counter() - start
    streamed = plan_feed(dataset, parts, FeedConfig(mode="streamed"))
    targets = np.zeros(len(images), dtype=np.int64)
    contenders = {
        "ray_materialized": feed_epochs(lambda: materialized.open(batch_size=BATCH), options.epochs),
        "ray_streamed": feed_epochs(lambda: streamed.open(batch_size=BATCH), options.epochs),
        "pyarrow": pyarrow_epochs(dataset, parts, options.epochs),
        "memory": feed_epochs(lambda: MemoryFeed(images, targets, BATCH), options.epochs),
        "dataloader": loader_epoch(make_loader(jpegs(folder / "jpeg", images), None)),
    }
    if original_files and options.originals:
        slow = make_loader(original_files[: options.originals], dataset.preprocess)
        contenders["dataloader_original"] = loader_epoch(slow)
    turns = measure(contenders, options.repeats)
    rates = {name: round(statistics.median(found), 1) for name, found in turns.items()}
    return {
        **rates,
        **ratios(rates),
        **{f"{name}_turns": [round(rate) for rate in found] for name, found in turns.items()},
        "materialize_seconds": round(seconds, 2),
        "images": len(images),
        "height": images.shape[1],
        "width": images.shape[2],
        "batch_size": BATCH,
        "repeats": options.repeats,
        "epochs_a_turn": options.epochs,
        **environment(),
    }


def environment() -> dict[str, Any]:
    """Hardware, versions and date."""
    import ray

    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "ray_version": ray.__version__,
        "pyarrow_version": pa.__version__,
        "numpy_version": np.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on stdout")
    parser.add_argument("--data", help="a DATASET (its training part) instead of generated images; leaves dataloader_original out")
    parser.add_argument("--fold", type=int, help="with --data split into folds")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--originals", type=int, default=1024, help="original files a turn; 0 leaves dataloader_original out")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--epochs", type=int, default=10, help="epochs a turn (DataLoader: one)")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    options = parser.parse_args()
    cluster.prepare_environment()
    with tempfile.TemporaryDirectory(prefix="cxr-ray-feed-") as folder:
        result = run(options, Path(folder))
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:28s} {value}")


if __name__ == "__main__":
    main()
