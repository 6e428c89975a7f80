"""``cxr-ray report``: an evaluation with everything that takes longer: features on a plane, errors under their heat, figures as files,
checklists. The page is one file that opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray import storage
from cxr_ray.audit.record import AuditRecord
from cxr_ray.data.shards import Dataset
from cxr_ray.errors import StorageError
from cxr_ray.evaluation.evaluate import REPORT, Subject, evaluate
from cxr_ray.evaluation.explain import OCCLUSION
from cxr_ray.evaluation.figures import Picture, pictures_of
from cxr_ray.evaluation.paired import read_scored
from cxr_ray.evaluation.report import Section, render_report
from cxr_ray.evidence.checklist import write_checklists
from cxr_ray.evidence.embedding import embeddings
from cxr_ray.evidence.facts import Known
from cxr_ray.evidence.gallery import error_gallery
from cxr_ray.evidence.probes import classes_of
from cxr_ray.evidence.sample import Sample, draw_sample

FIGURES: Final = "figures"
MOST: Final = 1000
"""Images whose features are laid out, and among which errors are looked for."""
LARGEST: Final = 10_000_000
"""Bytes of the page."""


def write_report(
    subject: Subject,
    dataset: Dataset,
    out: str,
    known: Known,
    *,
    split: str = "test",
    seed: int = 0,
    resamples: int = 1000,
    method: str,
    audits: Sequence[AuditRecord] = (),
) -> dict[str, Any]:
    """Evaluate a model and write the whole REPORT below ``out``.

    Args:
        subject: The model.
        dataset: Images it has not learned from.
        out: Folder, a local path or a URI: what ``evaluate`` writes, ``figures/`` and ``checklists/``.
        known: What the checklists are filled from, beside the figures.
        split: Part of the DATASET.
        seed: Of the bootstrap, the draw of images and the layouts.
        resamples: Of the bootstrap.
        method: Of the heat maps.
        audits: Of the data and of the model, to be summed up on the page.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        DatasetError: As :func:`cxr_ray.evaluation.evaluate.evaluate`.
        StorageError: It cannot be written, or the page is larger than 10 MB.
    """
    metrics = evaluate(subject, dataset, out, split=split, seed=seed, resamples=resamples)
    scored = read_scored(out)
    sample = draw_sample(subject.model, dataset, split, most=MOST, seed=seed)
    plots = pictures_of(metrics, scored.probabilities, scored.targets, scored.labels, subject.history, subject.best_epoch)
    features = list(embeddings(sample, classes_of(sample)))
    page = render_report(
        title=f"{subject.name} on {dataset.manifest.name}",
        metrics=metrics,
        probabilities=scored.probabilities,
        targets=scored.targets,
        labels=scored.labels,
        samples={"random": [], "errors": []},
        history=subject.history,
        best_epoch=subject.best_epoch,
        provenance=_provenance(subject, dataset),
        warnings=metrics["warnings"],
        sections=_sections(subject, sample, features, method, audits),
        pictures=plots,
    ).encode()
    if len(page) > LARGEST:
        raise StorageError(
            f"the report has {len(page) / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}", hint="fewer labels, or smaller images"
        )
    for picture in (*plots, *features):
        for name, data in picture.files().items():
            storage.write_bytes(storage.join(out, FIGURES, name), data)
    write_checklists(out, known, metrics, audits)
    storage.write_bytes(storage.join(out, REPORT), page)
    return metrics


def _sections(subject: Subject, sample: Sample, features: Sequence[Picture], method: str, audits: Sequence[AuditRecord]) -> list[Section]:
    found = []
    if audits:
        rows = [
            [check.title, check.verdict if check.value is not None else "n/a", _value(check), check.advice]
            for record in audits
            for check in record.checks
        ]
        words = "Could this model, or any of these data, be right for the wrong reasons? A line is a question, its answer, and what to do."
        found.append(Section("Audit", words, columns=("Question", "Verdict", "Value", "What it says, what to do"), rows=rows))
    gallery = error_gallery(subject, sample, _calibrated(subject, sample), method)
    found.append(
        Section(
            "Errors, and where the model looked",
            f"The errors it was surest of, among {len(sample)} X-rays; beside each, in warm colours, where it saw the label named above it "
            f"({'by covering parts of the image' if method == OCCLUSION else method}). A heat map says where evidence stood, "
            "not whether it is right." + ("" if gallery else " There were no errors."),
            gallery=gallery,
        )
    )
    if features:
        words = f"What {len(sample)} X-rays look like to the network, from its last feature map."
        found.append(Section("What looks alike to the network", words, pictures=features))
    return found


def _value(check: Any) -> str:
    if check.value is None:
        return "–"
    interval = f" [{check.ci95[0]:.3f}, {check.ci95[1]:.3f}]" if check.ci95 is not None else ""
    return f"{check.value:.3f}{interval} {check.unit}"


def _calibrated(subject: Subject, sample: Sample) -> NDArray[np.float64]:
    if subject.calibration is None:
        return sample.probabilities.astype(np.float64)
    return np.asarray(subject.calibration.apply(sample.probabilities, sample.labels.task), dtype=np.float64)


def _provenance(subject: Subject, dataset: Dataset) -> dict[str, str]:
    return {
        **subject.provenance,
        "Data": f"{dataset.manifest.name}, fingerprint {dataset.manifest.fingerprint}",
        "Split policy": dataset.manifest.policy,
        "Preprocessing": dataset.manifest.preprocess_fingerprint,
    }
