"""A small DATASET with a rare class, and a GAN small enough to train in a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from cxr_ray.data import columns, manifest
from cxr_ray.data.shards import Dataset, open_dataset, seal, write_shard
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet
from cxr_ray.synthesis.config import GanConfig

HEIGHT, WIDTH = 32, 36
SIZES = {"train": 40, "val": 9, "test": 10}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small() -> GanConfig:
    """Five steps an epoch for 40 images."""
    return GanConfig(epochs=4, batch_size=8, latent_size=8, generator_width=4, discriminator_width=4, checkpoint_every=2)


@pytest.fixture(scope="session")
def halves() -> npt.NDArray[np.uint8]:
    """40 images of 16 x 16, dark on the left and bright on the right, no two the same."""
    random = np.random.default_rng(3)
    images = random.integers(20, 60, (40, 16, 16))
    images[:, :, 8:] += random.integers(120, 180, (40, 1, 1))
    return images.astype(np.uint8)


def _write(
    folder: Path, labels: LabelSet, sizes: dict[str, int], *, rare: int = 20, synthetic: int = 0, height: int = HEIGHT, width: int = WIDTH
) -> Dataset:
    random = np.random.default_rng(11)
    schema = columns.shard_schema(labels, height, width)
    shards, indices, parts = [], [], {}
    for name, count in sizes.items():
        images = random.integers(0, 256, (count, height, width), dtype=np.uint8)
        targets: Any = (np.arange(count) < rare).astype(np.int64)
        if labels.task == "multilabel":
            targets = np.stack([targets, 1 - targets], axis=1).astype(np.float32)
        names = [f"{name}-{row:03d}" for row in range(count)]
        flags = (np.arange(count) < synthetic).tolist()
        facts = {
            "file_format": "PNG",
            "file_mode": "L",
            "file_bits": 8,
            "file_height": 90,
            "file_width": 80,
            "file_bytes": 7,
            "file_remarks": "",
        }
        about: dict[str, Any] = {field: [value] * count for field, value in facts.items()}
        about |= {"image_id": names, "patient_id": names, "group_id": [f"{name}-{row // 2}" for row in range(count)]}
        about |= {"source": ["lab"] * count, "view": ["PA"] * count, "synthetic": flags, "partition": [name] * count}
        index = columns.index_schema(labels)
        known = {field.name: pa.array(about[field.name], field.type) for field in index if field.name in about}
        known[columns.target_field(labels).name] = columns.targets_column(targets, labels)
        rows = pa.table([known.get(field.name, pa.nulls(count, field.type)) for field in index], schema=index)
        pixels = pa.array([image.tobytes() for image in images], pa.binary(height * width))
        table = rows.append_column(schema.field("image"), pixels).select(schema.names)
        cut = count // 3
        for number, piece in enumerate((table[:cut], table[cut:])):
            shards.append(write_shard(str(folder), f"{name}/part-{number:05d}.parquet", piece))
        indices.append(rows)
        grey = manifest.Normalization(mean=float(images.mean() / 255), std=float(images.std() / 255))
        per_label = {label: int((targets == place).sum()) for place, label in enumerate(labels.names)} if targets.ndim == 1 else {}
        parts[name] = manifest.PartitionInfo(images=count, patients=count, per_label=per_label, pixels=grey)
    (folder / "quarantine.csv").write_text("file,reason\n")
    preprocess = manifest.PreprocessInfo.of(PreprocessSpec(height=height, width=width))
    described = manifest.DatasetManifest(
        name="tiny",
        task=labels.task,
        labels=labels.names,
        image=manifest.ImageInfo(height=height, width=width),
        preprocess=preprocess,
        normalization=next(iter(parts.values())).pixels,
        partitions=parts,
        seed=0,
        policy="grouped",
        sources=(manifest.SourceInfo(name="lab", images=sum(sizes.values())),),
        shards=tuple(shards),
        index=write_shard(str(folder), manifest.INDEX, pa.concat_tables(indices)),
        quarantined=0,
        copies=manifest.CopyInfo(),
        split={},
        request="0" * 64,
        fingerprint=manifest.fingerprint(labels.task, labels.names, preprocess.fingerprint, shards),
    )
    return open_dataset(seal(str(folder), described).location, verify=True)


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Dataset]:
    """Maker of a DATASET of noise: labels ``normal`` and ``rare``, two shards a part, every two images one group."""

    def write(folder: Path, sizes: dict[str, int] | None = None, *, task: Any = "multiclass", **options: Any) -> Dataset:
        folder.mkdir(parents=True, exist_ok=True)
        return _write(folder, LabelSet(("normal", "rare"), task), sizes or SIZES, **options)

    return write


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, write_dataset: Callable[..., Dataset]) -> Dataset:
    """20 rare images among 40 in ``train``; nothing may write to it."""
    return write_dataset(tmp_path_factory.mktemp("tiny") / "dataset")
