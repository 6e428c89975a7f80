"""``audit_bundle``: every check of a trained model, ``audit.json`` and ``audit.html``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cxr_ray import storage
from cxr_ray.audit.record import SCHEMA, AuditRecord, Check, worst
from cxr_ray.bundle import MANIFEST, Bundle
from cxr_ray.data.shards import Dataset
from cxr_ray.evaluation.evaluate import check_fit, subject_of_bundle
from cxr_ray.evidence.cover import border_alone, without_lungs
from cxr_ray.evidence.probes import leave_one_source_out, source_in_features
from cxr_ray.evidence.robust import robustness
from cxr_ray.evidence.saliency import follows_weights, heat_in_lungs
from cxr_ray.evidence.sample import Sample, draw_sample
from cxr_ray.models.classifier import Classifier
from cxr_ray.models.ensemble import Ensemble
from cxr_ray.page import template

RECORD, PAGE = "audit.json", "audit.html"
MOST: Final = 2000
"""Images that the checks of features and covers look at."""
FEWER: Final = 400
"""Images that are changed in eighteen ways."""
FEWEST: Final = 120
"""Images that are explained."""
Report = Callable[[int, int, str], None]
"""Called with (checks done, checks there are, the one that comes)."""
Probe = Callable[[Classifier | Ensemble, Sample], Check]

CHECKS: Final[tuple[tuple[int, Probe], ...]] = (
    (MOST, lambda _, sample: source_in_features(sample)),
    (MOST, lambda _, sample: leave_one_source_out(sample)),
    (MOST, without_lungs),
    (MOST, border_alone),
    (FEWER, robustness),
    (FEWEST, heat_in_lungs),
    (FEWEST, follows_weights),
)
"""How many images each looks at."""


def audit_bundle(
    bundle: Bundle, dataset: Dataset, out: str, *, split: str = "val", seed: int = 0, report: Report | None = None
) -> AuditRecord:
    """Look at a trained model for what it may be right by for the wrong reasons.

    Args:
        bundle: The model.
        dataset: Images that its weights were not fitted to, through its preprocessing and with its labels.
        out: Folder to write, a local path or a URI.
        split: Part of the DATASET; what a model rests on can be seen without the test part.
        seed: Of the draw of images, the folds, the resamples and the random weights.
        report: Told of the progress.

    Raises:
        DatasetError: The part does not exist, or the data were preprocessed or labelled in another way.
        StorageError: It cannot be written.
    """
    subject = subject_of_bundle(bundle)
    check_fit(subject, dataset, split)
    sample = draw_sample(subject.model, dataset, split, most=MOST, seed=seed)
    checks = []
    for done, (count, check) in enumerate(CHECKS):
        checks.append(check(subject.model, sample.first(count)))
        if report is not None:
            report(done + 1, len(CHECKS), checks[-1].title)
    record = AuditRecord(
        schema=SCHEMA,
        subject="bundle",
        name=bundle.manifest.name,
        fingerprint=storage.sha256(storage.read_bytes(storage.join(bundle.location, MANIFEST))),
        dataset_fingerprint=dataset.manifest.fingerprint,
        seed=seed,
        images=len(sample),
        of_images=sample.whole,
        verdict=worst(check.verdict for check in checks),
        checks=tuple(checks),
    )
    page = template(__file__, "audit.html").render(
        record=record,
        data=f"{dataset.manifest.name}, part {split}",
        learned=split in subject.trained_on.get(dataset.manifest.fingerprint, ()),
    )
    storage.write_bytes(storage.join(out, PAGE), page.encode())
    storage.write_json(storage.join(out, RECORD), record.model_dump(mode="json", by_alias=True))
    return record
