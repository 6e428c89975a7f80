"""Whether a prediction can be traced back: data → run → bundle → report, or → prediction. Nothing is believed that can be computed again.

Links are checked in that order, and the checking stops at the first that is broken: what hangs on it proves nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cxr_ray import storage
from cxr_ray.bundle import Bundle, read_bundle
from cxr_ray.data.columns import pixels
from cxr_ray.data.shards import Dataset, open_dataset
from cxr_ray.errors import ConfigError, CxrRayError
from cxr_ray.evaluation.evaluate import METRICS, PREDICTIONS
from cxr_ray.evaluation.metrics import bootstrap
from cxr_ray.evaluation.paired import FIGURES, Scored, read_scored
from cxr_ray.models.decision import called
from cxr_ray.models.inference import predict_probabilities
from cxr_ray.serving.predictor import Predictor
from cxr_ray.training.run import Run, open_run, run_fingerprint

ROWS: Final = 8
"""Images that are predicted again, evenly among those there are."""
CLOSE: Final = 1e-4
"""So far may a probability that is computed again be off: other processors round otherwise."""

_AS_TEXT = pacsv.ConvertOptions(column_types={name: pa.string() for name in ("file", "labels", "error", "gate", "model_version")})

Floats = NDArray[np.float64]


class BrokenLinkError(CxrRayError):
    """Two artefacts do not belong together, or one has been changed."""


@dataclass(frozen=True, slots=True)
class Link:
    """One thing that was checked.

    Args:
        name: What must hold.
        holds: None: not checked, for an earlier link is broken.
        detail: What was found.
    """

    name: str
    holds: bool | None
    detail: str


@dataclass(frozen=True)
class Chain:
    """What is to be verified; each but the bundle may be left out. What was read is kept: ask a new one after a change.

    Args:
        bundle: BUNDLE.
        run: RUN that it, or one of its members, was exported from.
        data: DATASET of the training, or of the report.
        report: REPORT.
        prediction: ``predict``'s table, or the answer of the service as JSON.
        images: Folder that the table's files lie in, or that the answer's image lies in.
    """

    bundle: str
    run: str | None = None
    data: str | None = None
    report: str | None = None
    prediction: str | None = None
    images: str | None = None

    def verify(self) -> tuple[Link, ...]:
        """Check every link up to the first broken one."""
        found: list[Link] = []
        broken = False
        for name, check in self._links():
            if broken:
                found.append(Link(name, None, "not checked"))
                continue
            try:
                found.append(Link(name, True, check()))
            except CxrRayError as error:
                found.append(Link(name, False, error.message))
                broken = True
        return tuple(found)

    def _links(self) -> Iterator[tuple[str, Callable[[], str]]]:
        if self.data is not None:
            yield "data: files have their checksums", self._data
        if self.run is not None:
            yield "run: its fingerprint follows from recipe and data", self._run
        yield "bundle: files have their checksums", self._bundle
        if self.data is not None:
            yield "data → bundle: it was trained, or is judged, on these data", self._data_to_bundle
        if self.run is not None:
            yield "run → bundle: the weights are those of the run's best epoch", self._run_to_bundle
        if self.report is not None:
            yield "report: its figures follow from its predictions", self._report
            yield "bundle → report: it is of this model", self._bundle_to_report
            if self.data is not None:
                yield "data → report: images predicted again", self._data_to_report
        if self.prediction is not None:
            yield "bundle → prediction: it is of this model", self._bundle_to_prediction
            if self.images is not None:
                yield "images → prediction: images predicted again", self._images_to_prediction

    # --- artefacts ----------------------------------------------------------------------------------------------------

    @cached_property
    def _opened(self) -> Bundle:
        return read_bundle(self.bundle)

    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self._opened)

    @cached_property
    def _dataset(self) -> Dataset:
        assert self.data is not None
        return open_dataset(self.data, verify=True)

    @cached_property
    def _trained(self) -> Run:
        assert self.run is not None
        return open_run(self.run)

    @cached_property
    def _scored(self) -> Scored:
        assert self.report is not None
        return read_scored(self.report)

    @cached_property
    def _metrics(self) -> dict[str, Any]:
        assert self.report is not None
        metrics: dict[str, Any] = storage.read_json(storage.join(self.report, METRICS))
        return metrics

    @cached_property
    def _said(self) -> _Said:
        assert self.prediction is not None
        return read_prediction(self.prediction, self._opened)

    # --- links --------------------------------------------------------------------------------------------------------

    def _data(self) -> str:
        manifest = self._dataset.manifest
        return f"{manifest.name}, {len(manifest.shards)} shards, fingerprint {manifest.fingerprint[:12]}"

    def _run(self) -> str:
        manifest = self._trained.manifest
        computed = run_fingerprint(manifest.recipe, manifest.dataset, manifest.initial)
        _same("the fingerprint of recipe and data", computed, "run.json", manifest.fingerprint)
        return f"{manifest.recipe.name}, seed {manifest.seed}, fingerprint {computed[:12]}"

    def _bundle(self) -> str:
        return f"{self._opened.manifest.name}, version {self._opened.version}, {len(self._opened.manifest.files)} files"

    def _data_to_bundle(self) -> str:
        manifest, known = self._dataset.manifest, self._opened.dataset_fingerprints
        if self.run is not None:
            _same(self._dataset.location, manifest.fingerprint, "the run's data", self._trained.manifest.dataset.fingerprint)
        if manifest.preprocess.fingerprint != self._opened.manifest.preprocess.fingerprint:
            raise BrokenLinkError(f"{manifest.name} went through other preprocessing than the bundle asks for")
        if manifest.fingerprint in known:
            return "trained on them"
        if self.report is not None and self._metrics.get("dataset", {}).get("fingerprint") == manifest.fingerprint:
            return "judged on them, trained on others"
        raise BrokenLinkError(f"{manifest.fingerprint[:12]} is none of {', '.join(each[:12] for each in known)}")

    def _run_to_bundle(self) -> str:
        run, members = self._trained, self._opened.manifest.members
        mine = [index for index, member in enumerate(members) if member.provenance.run_fingerprint == run.manifest.fingerprint]
        if not mine:
            raise BrokenLinkError(f"no member of the bundle is of run {run.manifest.fingerprint[:12]}")
        trained = run.load_model().state_dict()
        for index in mine:
            exported = self._opened.load_member(index).state_dict()
            if trained.keys() == exported.keys() and all(bool((trained[key] == exported[key]).all()) for key in trained):
                return f"member {index}, epoch {members[index].provenance.epoch + 1}, {len(trained)} tensors alike"
        raise BrokenLinkError("the weights differ from those of the run's best epoch")

    def _report(self) -> str:
        scored = self._scored
        facts = scored.probabilities, scored.targets, scored.patients, scored.labels
        point, _ = bootstrap(*facts, thresholds=scored.thresholds, resamples=1)
        for name in FIGURES:
            computed, said = float(point[name][0]), self._metrics[name]["value"]
            if not np.isclose(computed, np.nan if said is None else said, atol=1e-6, equal_nan=True):
                raise BrokenLinkError(f"{name} is {computed:.6f} by {PREDICTIONS}, {said} in {METRICS}")
        return f"{len(scored.image_ids)} predictions, {', '.join(FIGURES)}"

    def _bundle_to_report(self) -> str:
        judged, opened = self._metrics.get("model", {}), self._opened
        if judged.get("bundle") == opened.version:
            return f"version {opened.version}"
        if judged.get("run") in {member.provenance.run_fingerprint for member in opened.manifest.members}:
            return f"of its run {judged['run'][:12]}, before the export"
        told = (
            f"version {judged['bundle']}"
            if "bundle" in judged
            else f"run {judged['run'][:12]}"
            if "run" in judged
            else "a model it does not name"
        )
        raise BrokenLinkError(f"the report is of {told}, the bundle is version {opened.version}")

    def _data_to_report(self) -> str:
        manifest, part = self._dataset.manifest, self._metrics["split"]
        _same("the report's data", self._metrics["dataset"]["fingerprint"], "the DATASET", manifest.fingerprint)
        table = self._dataset.read(part)
        if table.column("image_id").to_pylist() != self._scored.image_ids.tolist():
            raise BrokenLinkError(f"the report's images are not those of part {part}")
        rows = _evenly(len(table))
        images = pixels(table.take(rows).combine_chunks(), manifest.image.height, manifest.image.width)
        answers = self._predictor.predict_arrays(images)
        if "run" in self._metrics["model"]:  # a run's probabilities are not calibrated
            answers = predict_probabilities(self._predictor.model, images, self._opened.labels.task)
        return _close(answers, self._scored.probabilities[rows])

    def _bundle_to_prediction(self) -> str:
        said, labels = self._said, self._opened.labels
        for version in said.versions:
            _same("the prediction's model", version, "the bundle", self._opened.version)
        decided = called(said.probabilities, labels.task, self._opened.manifest.thresholds)
        for row, name in enumerate(said.names):
            expected = tuple(label for label, yes in zip(labels.names, decided[row], strict=True) if yes)
            if expected != said.labels[row]:
                raise BrokenLinkError(f"{name}: called {said.labels[row]}, its probabilities say {expected}")
        return f"{len(said.names)} answers, version {', '.join(said.versions) or 'not recorded'}"

    def _images_to_prediction(self) -> str:
        assert self.images is not None
        said, rows = self._said, _evenly(len(self._said.names))
        found = {storage.sha256(data): data for data in self._files(self.images)} if said.by_hash else {}
        images = []
        for row in rows:
            name = said.names[row]
            if said.by_hash and name not in found:
                raise BrokenLinkError(f"no file below {self.images} has checksum {name[:12]}")
            images.append(self._predictor.decode(found[name] if said.by_hash else storage.read_bytes(storage.join(self.images, name))))
        return _close(self._predictor.predict_arrays(np.stack(images)), said.probabilities[rows])

    @staticmethod
    def _files(location: str) -> Iterator[bytes]:
        for name in storage.list_files(location):
            yield storage.read_bytes(storage.join(location, name))


@dataclass(frozen=True, slots=True)
class _Said:
    """What a prediction says: of N images their file or checksum, labels, and (N, K) probabilities."""

    names: tuple[str, ...]
    by_hash: bool
    labels: tuple[tuple[str, ...], ...]
    probabilities: Floats
    versions: tuple[str, ...]


def read_prediction(location: str, bundle: Bundle) -> _Said:
    """A table of ``predict`` (.csv or .parquet; rows with an error are left out), or an answer, or answers, of the service (.json).

    Raises:
        ConfigError: Another ending.
        BrokenLinkError: It is not one of this bundle's labels, or holds no answer.
    """
    data = storage.read_bytes(location)
    try:
        if location.endswith(".json"):
            return _answers(json.loads(data), bundle)
        if location.endswith((".csv", ".parquet")):
            stream = io.BytesIO(data)
            return _rows(pacsv.read_csv(stream, convert_options=_AS_TEXT) if location.endswith(".csv") else pq.read_table(stream), bundle)
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise BrokenLinkError(f"{location} is no prediction of a model of {', '.join(bundle.labels.names)}: {error}") from None
    raise ConfigError([f"{location!r} must end in .csv, .parquet or .json"], where="--prediction")


def _answers(said: dict[str, Any], bundle: Bundle) -> _Said:
    answers = [answer for answer in said.get("answers", [said]) if "probabilities" in answer]
    if not answers:
        raise ValueError("it holds no answer")
    return _Said(
        names=tuple(answer["image_sha256"] for answer in answers),
        by_hash=True,
        labels=tuple(tuple(answer["labels"]) for answer in answers),
        probabilities=np.array([[answer["probabilities"][name] for name in bundle.labels.names] for answer in answers]),
        versions=tuple(dict.fromkeys(answer["model_version"] for answer in answers)),
    )


def _rows(table: pa.Table, bundle: Bundle) -> _Said:
    whole = table.filter(pc.is_valid(table.column(f"p_{bundle.labels.names[0]}")))
    if not len(whole):
        raise ValueError("it holds no answer")
    return _Said(
        names=tuple(whole.column("file").to_pylist()),
        by_hash=False,
        labels=tuple(tuple(name for name in (said or "").split("|") if name) for said in whole.column("labels").to_pylist()),
        probabilities=np.column_stack([whole.column(f"p_{name}").to_numpy() for name in bundle.labels.names]).astype(np.float64),
        versions=tuple(dict.fromkeys(whole.column("model_version").to_pylist())) if "model_version" in whole.column_names else (),
    )


def _same(one: str, value: str, other: str, expected: str) -> None:
    if value != expected:
        raise BrokenLinkError(f"{one} is {value[:12]}, {other} says {expected[:12]}")


def _evenly(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(ROWS, count)).astype(np.int64))


def _close(again: NDArray[Any], said: NDArray[Any]) -> str:
    worst = float(np.abs(again - said).max())
    if worst > CLOSE:
        raise BrokenLinkError(f"of {len(said)} images predicted again, a probability is {worst:.4f} off")
    return f"{len(said)} images, at most {worst:.1e} off"
