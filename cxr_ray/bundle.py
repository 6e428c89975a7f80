"""The BUNDLE: all that serving gets. A directory of ``bundle.json``, the weights of one or several models, and a model card.

Weights lie in ``model.safetensors``, or with several members in ``model-0.safetensors``, ``model-1.safetensors`` …; the input gate, where
there is one, in ``gate.safetensors``. Written whole or not at all (``bundle.json`` comes last) and refused on reading when the schema is
another, a checksum is missing or wrong, or the preprocessing is one this version cannot do. Holds no pickle.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from cxr_ray import __version__, storage
from cxr_ray.config import ModelConfig
from cxr_ray.errors import BundleError, ConfigError, ModelError, StorageError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet, Task
from cxr_ray.models.calibration import Calibration
from cxr_ray.models.gate import Gate
from cxr_ray.models.record import GATE_FILE, WEIGHT_FILE, GateRecord, Member, Normalization, Provenance, ThresholdOrigin
from cxr_ray.settings import Settings, parse_settings

if TYPE_CHECKING:
    from cxr_ray.models.classifier import Classifier
    from cxr_ray.models.ensemble import Ensemble

logger = logging.getLogger(__name__)

SCHEMA: Final = "cxr-ray/bundle/2"
MANIFEST, WEIGHTS, CARD = "bundle.json", "model.safetensors", "README.md"


class FileRecord(Settings):
    """One file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class PreprocessRecord(Settings):
    """The preprocessing and its fingerprint, which must agree."""

    spec: PreprocessSpec
    fingerprint: str


class BundleManifest(Settings):
    """``bundle.json``."""

    schema_: Literal["cxr-ray/bundle/2"] = Field(default=SCHEMA, alias="schema")
    name: str
    task: Task
    labels: tuple[str, ...]
    preprocess: PreprocessRecord
    members: tuple[Member, ...] = Field(min_length=1)
    """The models; the bundle's answer is the weighted mean of their probabilities. They may differ in the network alone."""
    thresholds: tuple[float | None, ...] | None
    """A label is called at or above its own (:mod:`cxr_ray.models.decision`). None: multiclass, and the largest probability decides."""
    threshold_origin: ThresholdOrigin | None = None
    calibration: Calibration | None = None
    """What makes of the models' probabilities those that are answered; None: they are answered as they are."""
    metrics: dict[str, Any] | None
    """``metrics.json`` of the evaluation it was exported with; None: not evaluated."""
    unsound: str | None = None
    """Why these models must not be used; None: nothing is known against them."""
    gate: GateRecord | None = None
    """What tells which images the models may judge; None: they judge whatever they are shown."""
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        cuts = self.thresholds
        if cuts is None and self.task == "multilabel":
            raise ValueError("a multilabel model needs thresholds")
        if cuts is not None and len(cuts) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels and {len(cuts)} thresholds: one each is needed")
        if cuts is not None and sum(cut is not None for cut in cuts) != (1 if self.task == "multiclass" else len(cuts)):
            raise ValueError("thresholds: a multilabel model has one for every label, a multiclass model for one label or none at all")
        if cuts is not None and not all(0.0 <= cut <= 1.0 for cut in cuts if cut is not None):
            raise ValueError("thresholds must be in 0..1")
        if self.calibration is not None and not self.calibration.fits(self.task, len(self.labels)):
            raise ValueError("the calibration is of another number of labels")
        if len({member.weights for member in self.members}) < len(self.members):
            raise ValueError("two members name one file of weights")
        return self


@dataclass(frozen=True)
class NewMember:
    """A model on its way into a bundle.

    Args:
        load: Gives the network whose weights are written, in fp32; called when its turn comes, so that no two need be in memory.
        model_config: What rebuilds it; ``backbone.weights`` is recorded as ``none``, for the weights are in the bundle.
        mean: Of its training part's pixels, 0..1.
        std: Of the same, 0..1.
        provenance: Where it comes from.
        weight: Its say in the mean, above 0.
    """

    load: Callable[[], Classifier]
    model_config: ModelConfig
    mean: float
    std: float
    provenance: Provenance
    weight: float = 1.0


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
        """12 hex digits of a SHA-256 over all that answers follow from: the members' weights and say, calibration, thresholds, gate."""
        manifest = self.manifest
        members = [[manifest.files[member.weights].sha256, member.weight] for member in manifest.members]
        gate = [] if manifest.gate is None else [manifest.files[GATE_FILE].sha256, sorted(manifest.gate.thresholds.items())]
        calibration = [] if manifest.calibration is None else [manifest.calibration.model_dump(include={"temperatures", "knots"})]
        return storage.sha256(json.dumps([members, manifest.thresholds, *gate, *calibration]).encode())[:12]

    @property
    def dataset_fingerprints(self) -> tuple[str, ...]:
        """Of the data the members were trained on, each once."""
        return tuple(dict.fromkeys(member.provenance.dataset_fingerprint for member in self.manifest.members))

    def answers(self, probabilities_NK: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, K) probabilities of :meth:`load_model` -> those that are answered: calibrated, where the bundle is."""
        calibration = self.manifest.calibration
        return probabilities_NK if calibration is None else calibration.apply(probabilities_NK, self.manifest.task)

    def load_model(self, device: str = "cpu") -> Classifier | Ensemble:
        """The network of a bundle of one member, else the ensemble of all; see :meth:`load_member`."""
        from cxr_ray.models.ensemble import Ensemble

        members = [self.load_member(index, device) for index in range(len(self.manifest.members))]
        if len(members) == 1:
            return members[0]
        weights = [member.weight for member in self.manifest.members]
        return Ensemble(members, task=self.manifest.task, weights=weights).to(device).eval()

    def load_member(self, index: int, device: str = "cpu") -> Classifier:
        """One member's network, in evaluation mode on ``device``.

        Raises:
            BundleError: The weights do not fit the network that ``bundle.json`` describes.
        """
        from cxr_ray.models.classifier import build_classifier

        member = self.manifest.members[index]
        model = build_classifier(
            member.model,
            len(self.manifest.labels),
            mean=member.normalization.mean,
            std=member.normalization.std,
            image_size=(self.preprocess.height, self.preprocess.width),
            load_weights=False,
        )
        from safetensors.torch import load as load_tensors

        tensors = load_tensors(_verified(self.location, member.weights, self.manifest.files[member.weights]))
        try:
            model.load_state_dict(tensors)
        except RuntimeError:
            raise BundleError(f"{self.location}: {member.weights} does not fit the network that {MANIFEST} describes") from None
        return model.to(device).eval()

    def load_gate(self) -> Gate | None:
        """The input gate; None where the bundle has none.

        Raises:
            BundleError: Its tensors are not those of the gate that ``bundle.json`` describes.
        """
        if self.manifest.gate is None:
            return None
        try:
            return Gate(self.manifest.gate, load_arrays(_verified(self.location, GATE_FILE, self.manifest.files[GATE_FILE])))
        except ModelError:
            raise BundleError(f"{self.location}: {GATE_FILE} does not fit the gate that {MANIFEST} describes") from None

    def warn_if_unsound(self) -> None:
        """A line in the log where the bundle says that it must not be used."""
        if self.manifest.unsound is not None:
            logger.warning("%s must not be used: %s", self.location, self.manifest.unsound)


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
    """Write a bundle of one model; see :class:`NewMember` and :func:`write_members`."""
    members = [NewMember(lambda: model, model_config, mean, std, provenance)]
    return write_members(out, members, name=name, labels=labels, preprocess=preprocess, card=card, thresholds=thresholds, metrics=metrics)


def write_members(
    out: str,
    members: Sequence[NewMember],
    *,
    name: str,
    labels: LabelSet,
    preprocess: PreprocessSpec,
    card: str,
    thresholds: tuple[float | None, ...] | None = None,
    threshold_origin: ThresholdOrigin | None = None,
    calibration: Calibration | None = None,
    metrics: Mapping[str, Any] | None = None,
    unsound: str | None = None,
    gate: Gate | None = None,
) -> Bundle:
    """Write a bundle of one or several models to ``out``; its manifest comes last.

    Args:
        out: Directory to create, a local path or a URI.
        members: The models.
        name: Of the whole.
        labels: What every member answers.
        preprocess: What every member's images have been through.
        card: The model card, Markdown.
        thresholds: One a label for multilabel (default 0.5 each). Multiclass: of one label, None for the others; or None.
        threshold_origin: How they were chosen. None: ``fixed`` for multilabel.
        calibration: Of the probabilities.
        metrics: ``metrics.json`` of its evaluation.
        unsound: Why it must not be used, if so.
        gate: Its input gate.

    Raises:
        BundleError: ``out`` holds something already, there are no members, or one does not fit the labels or the image size.
        StorageError: It cannot be written.
    """
    check_target(out, overwrite=False)
    if labels.task == "multilabel":
        thresholds = thresholds or (0.5,) * len(labels)
        threshold_origin = threshold_origin or ThresholdOrigin(policy="fixed")
    if not members:
        raise BundleError("a bundle needs at least one model")
    names = [WEIGHTS] if len(members) == 1 else [f"model-{index}.safetensors" for index in range(len(members))]
    files = {file: _write_weights(out, file, member, labels, preprocess) for file, member in zip(names, members, strict=True)}
    files[CARD] = _write(out, CARD, card.encode())
    if gate is not None:
        files[GATE_FILE] = _write(out, GATE_FILE, save_arrays(dict(gate.tensors)))
    manifest = BundleManifest(
        schema=SCHEMA,
        name=name,
        task=labels.task,
        labels=labels.names,
        preprocess=PreprocessRecord(spec=preprocess, fingerprint=preprocess.fingerprint),
        members=tuple(_record(member, file) for file, member in zip(names, members, strict=True)),
        thresholds=thresholds,
        threshold_origin=threshold_origin,
        calibration=calibration,
        metrics=dict(metrics) if metrics is not None else None,
        unsound=unsound,
        gate=gate.record if gate is not None else None,
        files=files,
    )
    storage.write_json(storage.join(out, MANIFEST), manifest.model_dump(mode="json", by_alias=True))
    return read_bundle(out)


def _write(out: str, file: str, data: bytes) -> FileRecord:
    storage.write_bytes(storage.join(out, file), data)
    return FileRecord(sha256=storage.sha256(data), bytes=len(data))


def _write_weights(out: str, file: str, member: NewMember, labels: LabelSet, preprocess: PreprocessSpec) -> FileRecord:
    model, size = member.load(), (preprocess.height, preprocess.width)
    if model.num_outputs != len(labels) or model.image_size != size:
        raise BundleError(
            f"{file}: a network of {model.num_outputs} labels for {model.image_size[0]}x{model.image_size[1]} images; "
            f"the bundle has {len(labels)} labels and {size[0]}x{size[1]} images"
        )
    state = {key: value.detach().to("cpu").contiguous().clone() for key, value in model.state_dict().items()}
    from safetensors.torch import save as save_tensors

    return _write(out, file, save_tensors(state))


def _record(member: NewMember, file: str) -> Member:
    backbone = member.model_config.backbone.model_copy(update={"weights": "none"})
    return Member(
        weights=file,
        model=member.model_config.model_copy(update={"backbone": backbone}),
        normalization=Normalization(mean=member.mean, std=member.std),
        weight=member.weight,
        provenance=member.provenance,
    )


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
    would, was = manifest.preprocess.spec.fingerprint, manifest.preprocess.fingerprint
    if would != was:
        raise BundleError(
            f"{location}: its preprocessing has fingerprint {was[:12]}, this version would do {would[:12]}",
            hint="serve it with the version that exported it, or export the run again",
        )
    for needed in (*(member.weights for member in manifest.members), CARD, *([GATE_FILE] if manifest.gate is not None else [])):
        if needed not in manifest.files:
            raise BundleError(f"{location}: {MANIFEST} has no checksum of {needed}")
        _verified(location, needed, manifest.files[needed])
    LabelSet(manifest.labels, manifest.task)
    return Bundle(location, manifest)


def _verified(location: str, name: str, record: FileRecord) -> bytes:
    try:
        data = storage.read_bytes(storage.join(location, name))
    except StorageError:
        raise BundleError(f"{location}: {name} is missing or cannot be read") from None
    if storage.sha256(data) != record.sha256:
        raise BundleError(f"{location}: {name} is not the file that was exported (checksum differs)", hint="export the run again")
    return data


def check_target(out: str, *, overwrite: bool) -> None:
    """Make sure that a bundle may be written to ``out``, before any work is done for it.

    Raises:
        BundleError: ``out`` holds something that is not a bundle, or ``overwrite`` was not asked for.
    """
    there = storage.list_files(out)
    if there and not overwrite:
        raise BundleError(f"{out} is not empty", hint="another --out, or --overwrite")
    if not all(name in (MANIFEST, CARD, GATE_FILE) or re.fullmatch(WEIGHT_FILE, name) for name in there):
        raise BundleError(f"{out} holds other files than a bundle's; it is left alone", hint="another --out")


def overwrite_guard(out: str, *, overwrite: bool) -> None:
    """Remove what an earlier export left at ``out`` if asked to and if it is a bundle; never anything else.

    Raises:
        BundleError: As :func:`check_target`.
    """
    check_target(out, overwrite=overwrite)
    if storage.list_files(out):
        storage.remove(storage.join(out, MANIFEST))  # first: without it, what is left does not read as a bundle
        storage.remove(out)
