"""Score a model on one part of a DATASET, once, and write the REPORT: ``metrics.json``, ``predictions.parquet``, ``report.html``.

Nothing is fitted or chosen on what is read here: `evaluate` and `report` alone score a test part.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cxr_ray import storage
from cxr_ray.data.columns import pixels, targets_of
from cxr_ray.data.shards import Dataset
from cxr_ray.errors import DatasetError
from cxr_ray.evaluation.decision_curve import decision_curve
from cxr_ray.evaluation.delong import auroc_of_labels
from cxr_ray.evaluation.metrics import compute_metrics
from cxr_ray.evaluation.prevalence import at_prevalence, reweighted
from cxr_ray.evaluation.reliability import reliability, what_calibration_changed
from cxr_ray.evaluation.report import choose_samples, describe, render_report
from cxr_ray.evaluation.subgroups import ATTRIBUTES, attributes, subgroups
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet
from cxr_ray.models.calibration import Calibration
from cxr_ray.models.inference import predict_probabilities
from cxr_ray.models.record import ThresholdOrigin

if TYPE_CHECKING:
    from cxr_ray.bundle import Bundle
    from cxr_ray.models.classifier import Classifier
    from cxr_ray.models.ensemble import Ensemble

logger = logging.getLogger(__name__)

METRICS, PREDICTIONS, REPORT = "metrics.json", "predictions.parquet", "report.html"


@dataclass(frozen=True)
class Subject:
    """A model under test and what is known of it.

    Args:
        name: For the heading.
        model: In evaluation mode.
        labels: Its outputs.
        preprocess: What its images must have been through.
        trained_on: Fingerprint of each DATASET of its training -> partitions it learned or was chosen on; evaluating them is warned of.
        identity: What ``metrics.json`` keeps of it: version of a bundle, fingerprint of a run.
        thresholds: Operating points, see :func:`cxr_ray.models.decision.called`.
        threshold_origin: How they were chosen.
        calibration: Of the probabilities; None: as the model says them.
        unsound: Why it must not be used; the report says so first.
        cautions: What the audit of its training data warns of.
        history: A record an epoch; empty where not at hand.
        best_epoch: The epoch kept.
        provenance: Further rows of the report's last table.
    """

    name: str
    model: Classifier | Ensemble
    labels: LabelSet
    preprocess: PreprocessSpec
    trained_on: Mapping[str, Sequence[str]]
    identity: Mapping[str, str] = field(default_factory=dict)
    thresholds: tuple[float | None, ...] | None = None
    threshold_origin: ThresholdOrigin | None = None
    calibration: Calibration | None = None
    unsound: str | None = None
    cautions: Sequence[str] = ()
    history: Sequence[Mapping[str, Any]] = ()
    best_epoch: int | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)


def subject_of_bundle(bundle: Bundle, device: str = "cpu") -> Subject:
    """The bundle's model, or the ensemble of its members, ready to be evaluated."""
    manifest = bundle.manifest
    trained_on: dict[str, list[str]] = {}
    for member in manifest.members:
        known = trained_on.setdefault(member.provenance.dataset_fingerprint, [])
        known += [part for part in member.provenance.trained_on if part not in known]
    alone = len(manifest.members) == 1
    rows = {"Model": f"{manifest.name} {bundle.version}"}
    for index, member in enumerate(manifest.members):
        origin = member.provenance
        told = f"{origin.recipe}, training seed {origin.seed}, epoch {origin.epoch + 1}, run {origin.run_fingerprint[:12]}"
        rows["Trained by" if alone else f"Member {index}"] = told if alone else f"{told}, weight {member.weight:g}"
    rows["Calibration"] = manifest.calibration.told() if manifest.calibration is not None else "none"
    if manifest.threshold_origin is not None:
        rows["Thresholds"] = manifest.threshold_origin.told()
    return Subject(
        name=manifest.name,
        model=bundle.load_model(device),
        labels=bundle.labels,
        preprocess=bundle.preprocess,
        trained_on=trained_on,
        identity={"name": manifest.name, "bundle": bundle.version},
        thresholds=manifest.thresholds,
        threshold_origin=manifest.threshold_origin,
        calibration=manifest.calibration,
        unsound=manifest.unsound,
        cautions=tuple(dict.fromkeys(told for member in manifest.members for told in member.provenance.cautions)),
        best_epoch=manifest.members[0].provenance.epoch if alone else None,
        provenance=rows,
    )


def evaluate(
    subject: Subject,
    dataset: Dataset,
    out: str,
    *,
    split: str = "test",
    part: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
    prevalence: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Score ``subject`` on ``split`` of ``dataset`` and write the REPORT directory ``out``.

    Args:
        subject: The model.
        dataset: Images and truth.
        out: REPORT.
        split: Part of the DATASET.
        part: What the report calls it; None: its name.
        seed: Of the bootstrap.
        resamples: How many samples of patients are drawn.
        prevalence: Assumed share of labels elsewhere; see :mod:`cxr_ray.evaluation.prevalence`.
        notes: What a reader must know of the data before the figures.

    Returns:
        What ``metrics.json`` holds: :func:`compute_metrics`, :func:`tables`, ``model``, ``dataset`` and ``warnings``.

    Raises:
        DatasetError: The part does not exist or is empty, or the data were preprocessed or labelled in another way.
    """
    check_fit(subject, dataset, split)
    warnings = [*_warnings(subject, dataset, split), *notes]
    for warning in warnings:
        logger.warning(warning)
    table, raw = _score(subject, dataset, split)
    probabilities = raw if subject.calibration is None else subject.calibration.apply(raw, dataset.labels.task)
    targets = targets_of(table, dataset.labels)
    scored = probabilities, targets, table.column("patient_id").to_pylist(), dataset.labels
    metrics = compute_metrics(*scored, split=part or split, thresholds=subject.thresholds, seed=seed, resamples=resamples)
    metrics |= tables(subject, table, *scored, raw=raw, seed=seed, resamples=resamples)
    adjusted = None
    if prevalence:
        metrics["prevalence"] = at_prevalence(*scored, prevalence, thresholds=subject.thresholds, seed=seed, resamples=resamples)
        adjusted = reweighted(probabilities, targets, dataset.labels, prevalence)
    metrics["model"] = dict(subject.identity)
    metrics["dataset"] = {"name": dataset.manifest.name, "fingerprint": dataset.manifest.fingerprint}
    metrics["warnings"] = warnings
    page = _page(subject, dataset, split, metrics, probabilities, targets, seed=seed)
    write_predictions(storage.join(out, PREDICTIONS), table, probabilities, targets, dataset.labels, adjusted=adjusted)
    storage.write_bytes(storage.join(out, REPORT), page.encode())
    storage.write_json(storage.join(out, METRICS), metrics)
    return metrics


def _page(
    subject: Subject,
    dataset: Dataset,
    split: str,
    metrics: dict[str, Any],
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    *,
    seed: int,
) -> str:
    """``report.html``; the pixels of the few images that it shows are read again."""
    cuts = subject.thresholds
    chosen = choose_samples(probabilities, targets, dataset.labels, thresholds=cuts, seed=seed)
    shown = _pixels_of(dataset, split, {row for rows in chosen.values() for row in rows})
    samples = {
        kind: [describe(row, shown[row], probabilities, targets, dataset.labels, thresholds=cuts) for row in rows]
        for kind, rows in chosen.items()
    }
    return render_report(
        title=f"{subject.name} on {dataset.manifest.name}",
        metrics=metrics,
        probabilities=probabilities,
        targets=targets,
        labels=dataset.labels,
        samples=samples,
        history=subject.history,
        best_epoch=subject.best_epoch,
        provenance={
            **subject.provenance,
            "Data": f"{dataset.manifest.name}, fingerprint {dataset.manifest.fingerprint}",
            "Split policy": dataset.manifest.policy,
            "Preprocessing": dataset.manifest.preprocess_fingerprint,
        },
        warnings=metrics["warnings"],
    )


def tables(
    subject: Subject,
    table: pa.Table,
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    patients: Sequence[str],
    labels: LabelSet,
    *,
    raw: NDArray[Any],
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """What ``metrics.json`` says beyond its figures.

    Returns:
        ``calibration`` (what it changed; None: the model has none), ``reliability``, ``delong``, ``operating_points``, ``subgroups`` and
        ``decision_curve``.
    """
    draws: dict[str, Any] = {"seed": seed, "resamples": resamples}
    scored = probabilities, targets, patients, labels
    facts = {name: table.column(name).to_pylist() for name in ATTRIBUTES}
    calibration = None
    if subject.calibration is not None:
        calibration = {"method": subject.calibration.told(), **what_calibration_changed(raw, *scored, **draws)}
    return {
        "calibration": calibration,
        "reliability": reliability(*scored),
        "delong": auroc_of_labels(*scored),
        "operating_points": {
            "policy": subject.threshold_origin.told() if subject.threshold_origin is not None else None,
            "thresholds": dict(zip(labels.names, subject.thresholds, strict=True)) if subject.thresholds is not None else None,
        },
        "subgroups": subgroups(*scored, attributes(facts), thresholds=subject.thresholds, **draws),
        "decision_curve": decision_curve(*scored, **draws),
    }


def _score(subject: Subject, dataset: Dataset, split: str) -> tuple[pa.Table, NDArray[np.float32]]:
    """The part's rows without pixels, and (N, K) probabilities; one shard's pixels in memory at a time."""
    device = str(next(subject.model.parameters()).device)
    tables, scores = [], []
    for table in dataset.tables(split):
        images = pixels(table, dataset.preprocess.height, dataset.preprocess.width)
        scores.append(predict_probabilities(subject.model, images, dataset.labels.task, device=device))
        tables.append(table.drop_columns(["image"]))
    return pa.concat_tables(tables), np.concatenate(scores)


def _pixels_of(dataset: Dataset, split: str, rows: set[int]) -> dict[int, NDArray[np.uint8]]:
    """Copies of the pixels of a few rows of a part."""
    found: dict[int, NDArray[np.uint8]] = {}
    start = 0
    for table in dataset.tables(split, ["image"]):
        images = pixels(table, dataset.preprocess.height, dataset.preprocess.width)
        found |= {row: images[row - start].copy() for row in rows if start <= row < start + len(images)}
        start += len(images)
    return found


def write_predictions(
    location: str,
    table: pa.Table,
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    labels: LabelSet,
    *,
    adjusted: NDArray[Any] | None = None,
) -> None:
    """A row an image: ``image_id``, ``patient_id``, truth and a ``p_<label>`` column a label; no pixels.

    ``adjusted``: (N, K) probabilities at an assumed prevalence, as ``adjusted_<label>``.
    """
    columns: dict[str, Any] = {name: table.column(name) for name in ("image_id", "patient_id")}
    if labels.task == "multiclass":
        columns["label"] = [labels.names[int(index)] for index in targets]
    else:
        columns |= {f"y_{name}": targets[:, index].astype(np.float32) for index, name in enumerate(labels.names)}
    for prefix, values in (("p", probabilities), ("adjusted", adjusted)):
        if values is not None:
            columns |= {f"{prefix}_{name}": values[:, index].astype(np.float32) for index, name in enumerate(labels.names)}
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    storage.write_bytes(location, stream.getvalue())


def check_fit(subject: Subject, dataset: Dataset, split: str) -> None:
    """Raise DatasetError where the part does not exist, or the data were preprocessed or labelled otherwise than the model expects."""
    if split not in dataset.partitions:
        raise DatasetError(f"{dataset.location} has no part {split!r}; it has {', '.join(dataset.partitions)}", hint="--split NAME")
    if dataset.labels != subject.labels:
        raise DatasetError(
            f"the model answers {', '.join(subject.labels.names)} ({subject.labels.task}); "
            f"the data are labelled {', '.join(dataset.labels.names)} ({dataset.labels.task})"
        )
    if dataset.preprocess.fingerprint != subject.preprocess.fingerprint:
        raise DatasetError(
            f"the data went through preprocessing {dataset.preprocess.fingerprint[:12]}, "
            f"the model expects {subject.preprocess.fingerprint[:12]}",
            hint="ingest the images again with the size, equalisation and blur of the model's training data",
        )


def _warnings(subject: Subject, dataset: Dataset, split: str) -> list[str]:
    found = []
    if subject.unsound is not None:
        found.append(f"This model must not be used: {subject.unsound}")
    found += subject.cautions
    here = dataset.manifest.fingerprint
    if here not in subject.trained_on:
        found.append("The data are not those of the training run: this is an external test, and copies across the two were not looked for.")
    elif len(subject.trained_on) > 1:
        found.append("Some members were trained on other data: copies across the two were not looked for.")
    if split in subject.trained_on.get(here, ()):
        found.append(f"The model learned from, or was chosen on, part {split!r}: these figures say nothing about new patients.")
    if dataset.manifest.synthesis and split == "train":
        found.append("Part 'train' holds images made by a GAN: these figures are not of patients alone.")
    if dataset.manifest.policy == "image":
        found.append("The split is image by image: one patient can stand in several parts, and the figures are too good.")
    if subject.labels.task == "multilabel" and subject.thresholds is None:
        found.append("Every label was called from 0.5 on. `cxr-ray export` fits a threshold a label on the validation part.")
    return found
