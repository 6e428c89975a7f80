"""Shared by all tests: markers by folder, the hostile files, and where the real data lie."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cxr_ray.cluster import prepare_environment

prepare_environment()  # before anything imports ray

TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in {"unit", "integration", "e2e", "golden", "recipes"}:
            item.add_marker(folder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real X-rays; the test is skipped where it is absent."""
    folder = Path(os.environ.get("CXR_RAY_DATA") or TESTS.parent.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real X-rays are absent: no folder at CXR_RAY_DATA or {folder}")
    return folder


@pytest.fixture(scope="session")
def hostile() -> ModuleType:
    """``tests/hostile.py``: makers of good and of hostile image files."""
    specification = importlib.util.spec_from_file_location("hostile", TESTS / "hostile.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def classifier() -> Any:
    """A tiny CNN-LSTM for 32 x 32 images and two labels, its random weights always the same."""
    return tiny_classifier()


def tiny_classifier() -> Any:
    """The network of :func:`classifier`."""
    import torch

    from cxr_ray.models.classifier import build_classifier

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_classifier(tiny_model(), 2, mean=0.5, std=0.25, image_size=(32, 32))


def tiny_model() -> Any:
    """The settings of :func:`classifier`."""
    from cxr_ray.config import BackboneConfig, ModelConfig, RnnConfig

    return ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(hidden_size=8))


@pytest.fixture
def bundle(tmp_path: Path, classifier: Any) -> Any:
    """A bundle of :func:`classifier`."""
    return write_tiny(tmp_path / "bundle", classifier)


@pytest.fixture(scope="session")
def session_bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """:func:`bundle`, for services that several tests share."""
    return write_tiny(tmp_path_factory.mktemp("bundle") / "bundle", tiny_classifier())


def write_tiny(location: Path, classifier: Any) -> Any:
    """A bundle of :func:`classifier`."""
    from cxr_ray.bundle import Provenance, write_bundle
    from cxr_ray.imaging.preprocess import PreprocessSpec
    from cxr_ray.labels import LabelSet

    provenance = Provenance(
        cxr_ray="0", recipe="tiny", seed=0, epoch=0, dataset="none", dataset_fingerprint="d" * 64, run_fingerprint="r" * 64, versions={}
    )
    return write_bundle(
        str(location),
        model=classifier,
        name="tiny",
        model_config=tiny_model(),
        labels=LabelSet(("covid", "normal"), "multiclass"),
        preprocess=PreprocessSpec(height=32, width=32),
        mean=0.5,
        std=0.25,
        provenance=provenance,
        card="# tiny\n",
    )


@pytest.fixture(scope="session")
def write_noise() -> Callable[..., Any]:
    """``write_noise(folder, labels, {"train": 20, "val": 12}, size=16)``: a DATASET of noise, one patient an image."""
    import numpy as np
    import pyarrow as pa

    from cxr_ray.data import columns, manifest, shards
    from cxr_ray.imaging.preprocess import PreprocessSpec

    def write(location: Path, labels: Any, parts: dict[str, int], *, size: int = 16, seed: int = 0) -> Any:
        generator = np.random.default_rng(seed)
        found, facts, tables = [], {}, []
        schema = columns.shard_schema(labels, size, size)
        for part, count in parts.items():
            images = generator.integers(0, 256, (count, size, size), dtype=np.uint8)
            targets: Any = np.arange(count) % len(labels)
            if labels.task == "multilabel":
                targets = generator.integers(0, 2, (count, len(labels))).astype(np.float32)
                targets[0, 0] = np.nan
            names = pa.array([f"{part}-{row}" for row in range(count)])
            known: dict[str, Any] = dict.fromkeys(("image_id", "patient_id", "group_id"), names)
            known |= {"source": pa.array(["noise"] * count), "synthetic": pa.array([True] * count)}
            known |= {"image": pa.array([image.tobytes() for image in images], pa.binary(size * size))}
            known[columns.target_field(labels).name] = columns.targets_column(targets, labels)
            table = pa.table([known.get(field.name, pa.nulls(count, field.type)) for field in schema], schema=schema)
            found.append(shards.write_shard(str(location), f"{part}/part-00000.parquet", table))
            tables.append(table.drop_columns(["image"]).add_column(0, "partition", pa.array([part] * count)))
            pixels = manifest.Normalization(mean=float(images.mean() / 255), std=float(images.std() / 255))
            facts[part] = manifest.PartitionInfo(images=count, patients=count, per_label={}, pixels=pixels)
        preprocess = manifest.PreprocessInfo.of(PreprocessSpec(height=size, width=size))
        described = manifest.DatasetManifest(
            name="noise",
            task=labels.task,
            labels=labels.names,
            image=manifest.ImageInfo(height=size, width=size),
            preprocess=preprocess,
            normalization=manifest.pooled(list(facts.values())),
            partitions=facts,
            seed=seed,
            policy="grouped",
            sources=(),
            shards=tuple(found),
            index=shards.write_shard(str(location), manifest.INDEX, pa.concat_tables(tables)),
            quarantined=0,
            copies=manifest.CopyInfo(searched=False),
            split={},
            request="0" * 64,
            fingerprint=manifest.fingerprint(labels.task, labels.names, preprocess.fingerprint, found),
        )
        return shards.seal(str(location), described)

    return write


@pytest.fixture(scope="session")
def png() -> bytes:
    """A grey PNG of 48 x 40 pixels."""
    import io

    import numpy as np
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def key_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """PEM files of a certificate for 127.0.0.1, good for a day, and of its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    pair = folder / "tls.crt", folder / "tls.key"
    pair[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pair[1].touch(0o600)
    pair[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return pair
