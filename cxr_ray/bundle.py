"""The BUNDLE: all that serving gets. A directory of ``bundle.json``, ``model.safetensors`` and a model card.

Written whole or not at all (``bundle.json`` comes last) and refused on reading when the schema is another, a checksum is
missing or wrong, or the preprocessing is one this version cannot do. Holds no pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cxr_ray import __version__, storage
from cxr_ray.config import ModelConfig
from cxr_ray.errors import BundleError, ConfigError, StorageError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet, Task
from cxr_ray.settings import Settings, parse_settings

if TYPE_CHECKING:
    from cxr_ray.models.classifier import Classifier

SCHEMA: Final = "cxr-ray/bundle/1"
MANIFEST, WEIGHTS, CARD = "bundle.json", "model.safetensors", "README.md"


class FileRecord(Settings):
    """One file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class PreprocessRecord(Settings):
    """The preprocessing and its fingerprint, which must agree."""

    spec: PreprocessSpec
    fingerprint: str


class Normalization(Settings):
    """Mean and standard deviation of the training part's pixels, in 0..1 (pixel / 255)."""

    mean: float = Field(ge=0.0, le=1.0)
    std: float = Field(gt=0.0)


class Provenance(Settings):
    """Where the model comes from: enough to find the run and the data again."""

    cxr_ray: str
    recipe: str
    seed: int
    epoch: int
    """The epoch whose weights these are (0 is the first)."""
    dataset: str
    dataset_fingerprint: str
    run_fingerprint: str
    """SHA-256 of the run's resolved recipe and data."""
    versions: dict[str, str]


class BundleManifest(Settings):
    """``bundle.json``."""

    schema_: Literal["cxr-ray/bundle/1"] = Field(default=SCHEMA, alias="schema")
    name: str
    task: Task
    labels: tuple[str, ...]
    preprocess: PreprocessRecord
    normalization: Normalization
    model: ModelConfig
    thresholds: tuple[float, ...] | None
    """Multilabel: a label is called present at or above its threshold. None for multiclass, where the largest probability decides."""
    metrics: dict[str, Any] | None
    """``metrics.json`` of the evaluation it was exported with; None: not evaluated."""
    provenance: Provenance
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Args:
        location: Directory, a local path or a URI.
        manifest: Its ``bundle.json``.
    """

    location: str
    manifest: BundleManifest

    @cached_property
    def labels(self) -> LabelSet:
        """Names in the order of the outputs."""
        return LabelSet(self.manifest.labels, self.manifest.task)

    @property
    def preprocess(self) -> PreprocessSpec:
        """Bytes -> (height, width) uint8: what ingest did, serving does."""
        return self.manifest.preprocess.spec

    @property
    def version(self) -> str:
        """First 12 hex digits of the weights' SHA-256."""
        return self.manifest.files[WEIGHTS].sha256[:12]

    def load_model(self, device: str = "cpu") -> Classifier:
        """The network in evaluation mode on ``device``.

        Raises:
            BundleError: The weights do not fit the network that ``bundle.json`` describes.
        """
        from cxr_ray.models.classifier import build_classifier

        manifest = self.manifest
        model = build_classifier(
            manifest.model,
            len(manifest.labels),
            mean=manifest.normalization.mean,
            std=manifest.normalization.std,
            image_size=(self.preprocess.height, self.preprocess.width),
            load_weights=False,
        )
        tensors = load_tensors(_verified(self.location, WEIGHTS, manifest.files[WEIGHTS]))
        try:
            model.load_state_dict(tensors)
        except RuntimeError:
            raise BundleError(f"{self.location}: the weights do not fit the network that {MANIFEST} describes") from None
        return model.to(device).eval()


def write_bundle(
    out: str,
    *,
    model: Classifier,
    name: str,
    model_config: ModelConfig,
    labels: LabelSet,
    preprocess: PreprocessSpec,
    mean: float,
    std: float,
    provenance: Provenance,
    card: str,
    thresholds: tuple[float, ...] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle to ``out``; its manifest comes last.

    Args:
        out: Directory to create, a local path or a URI.
        model: The network whose weights are written, in fp32.
        model_config: What rebuilds the network; ``backbone.weights`` is recorded as ``none``, for the weights are here.
        mean: Of the training part's pixels, 0..1.
        std: Of the same, 0..1.
        card: The model card, Markdown.
        thresholds: One a label for multilabel (default 0.5 each); None for multiclass.

    Raises:
        BundleError: ``out`` holds something already.
        StorageError: It cannot be written.
    """
    if storage.exists(out) and storage.list_files(out):
        raise BundleError(f"{out} is not empty", hint="another --out, or --overwrite")
    if labels.task == "multilabel" and thresholds is None:
        thresholds = (0.5,) * len(labels)
    state = {key: value.detach().to("cpu").contiguous().clone() for key, value in model.state_dict().items()}
    contents = {WEIGHTS: save_tensors(state), CARD: card.encode()}
    manifest = BundleManifest(
        schema=SCHEMA,
        name=name,
        task=labels.task,
        labels=labels.names,
        preprocess=PreprocessRecord(spec=preprocess, fingerprint=preprocess.fingerprint),
        normalization=Normalization(mean=mean, std=std),
        model=model_config.model_copy(update={"backbone": model_config.backbone.model_copy(update={"weights": "none"})}),
        thresholds=thresholds,
        metrics=dict(metrics) if metrics is not None else None,
        provenance=provenance,
        files={name: FileRecord(sha256=storage.sha256(data), bytes=len(data)) for name, data in contents.items()},
    )
    for file, data in contents.items():
        storage.write_bytes(storage.join(out, file), data)
    storage.write_json(storage.join(out, MANIFEST), manifest.model_dump(mode="json", by_alias=True))
    return read_bundle(out)


def read_bundle(location: str) -> Bundle:
    """Open a bundle and check every file against its checksum.

    Raises:
        BundleError: No bundle there, another schema, a file missing or changed, or preprocessing that this version cannot do.
    """
    if not storage.exists(storage.join(location, MANIFEST)):
        raise BundleError(f"{location} is not a BUNDLE: it has no {MANIFEST}", hint="cxr-ray export RUN --out BUNDLE")
    try:
        data = storage.read_json(storage.join(location, MANIFEST))
    except StorageError as error:
        raise BundleError(f"{location}: {error.message}") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise BundleError(
            f"{location}: schema {found!r}; cxr_ray {__version__} reads {SCHEMA!r}", hint="export the run again with this version"
        )
    try:
        manifest = parse_settings(BundleManifest, data, where=f"{location}/{MANIFEST}")
    except ConfigError as error:
        raise BundleError(error.message) from None
    _check_preprocessing(location, manifest.preprocess)
    for needed in (WEIGHTS, CARD):
        if needed not in manifest.files:
            raise BundleError(f"{location}: {MANIFEST} has no checksum of {needed}")
        _verified(location, needed, manifest.files[needed])
    LabelSet(manifest.labels, manifest.task)
    return Bundle(location, manifest)


def _check_preprocessing(location: str, record: PreprocessRecord) -> None:
    if record.spec.fingerprint != record.fingerprint:
        raise BundleError(
            f"{location}: its preprocessing has fingerprint {record.fingerprint[:12]}, "
            f"this version would do {record.spec.fingerprint[:12]}",
            hint="serve it with the version that exported it, or export the run again",
        )


def _verified(location: str, name: str, record: FileRecord) -> bytes:
    try:
        data = storage.read_bytes(storage.join(location, name))
    except StorageError:
        raise BundleError(f"{location}: {name} is missing or cannot be read") from None
    if storage.sha256(data) != record.sha256:
        raise BundleError(f"{location}: {name} is not the file that was exported (checksum differs)", hint="export the run again")
    return data


def overwrite_guard(out: str, *, overwrite: bool) -> None:
    """Remove what an earlier export left at ``out`` if asked to and if it is a bundle; never anything else.

    Raises:
        BundleError: ``out`` holds something that is not a bundle, or ``overwrite`` was not asked for.
    """
    if not storage.exists(out) or not storage.list_files(out):
        return
    known = {MANIFEST, WEIGHTS, CARD}
    if not overwrite:
        raise BundleError(f"{out} is not empty", hint="another --out, or --overwrite")
    if not set(storage.list_files(out)) <= known:
        raise BundleError(f"{out} holds other files than a bundle's; it is left alone", hint="another --out")
    storage.remove(storage.join(out, MANIFEST))  # first: without it, what is left does not read as a bundle
    storage.remove(out)
