"""``audit_dataset``: every check of a DATASET, and the record of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from threadpoolctl import threadpool_limits

from cxr_ray.audit.chance import Draws
from cxr_ray.audit.noise import Doubt, check_noise
from cxr_ray.audit.parts import check_copies, check_patients
from cxr_ray.audit.probes import PROBES, check_probe, make_folds
from cxr_ray.audit.record import SCHEMA, AuditRecord, Check, worst
from cxr_ray.audit.sample import MOST, Sample, draw_sample
from cxr_ray.audit.tables import FACETS, check_facet
from cxr_ray.data.shards import Dataset

QUICK_MOST: Final = 1_500
"""Images of a quick audit."""
RESAMPLES: Final = 400
Step = Callable[[], Check]
Report = Callable[[int, int, str], None]
"""Called with (checks done, checks there are, the one that comes)."""


@dataclass(frozen=True)
class DatasetAudit:
    """What was found, and the pictures that go with it."""

    record: AuditRecord
    sample: Sample
    doubts: tuple[Doubt, ...]


def audit_dataset(dataset: Dataset, *, seed: int = 0, quick: bool = False, report: Report | None = None) -> DatasetAudit:
    """Look at a DATASET for whatever a model could be right by for the wrong reasons.

    Args:
        dataset: The DATASET.
        seed: Of the draw, the folds, the resamples and the shuffles.
        quick: At most 1,500 images instead of 5,000, and copies as ingest counted them.
        report: Told of the progress.

    Raises:
        DatasetError: It cannot be read.
    """
    index = dataset.index()
    told = _Teller(report)
    checks = [told("patients", partial(check_patients, index))]
    checks.append(told("copies", partial(check_copies, dataset, index, search=not quick)))
    sample = draw_sample(dataset, most=QUICK_MOST if quick else MOST, seed=seed)
    found, doubts = check_sample(sample, seed=seed, told=told)
    checks += found
    record = AuditRecord(
        schema=SCHEMA,
        subject="dataset",
        name=dataset.manifest.name,
        fingerprint=dataset.manifest.fingerprint,
        dataset_fingerprint=dataset.manifest.fingerprint,
        seed=seed,
        images=len(sample),
        of_images=sample.whole,
        quick=quick,
        verdict=worst(check.verdict for check in checks),
        checks=tuple(checks),
    )
    return DatasetAudit(record, sample, tuple(doubts))


def check_sample(sample: Sample, *, seed: int, told: Callable[[str, Step], Check] | None = None) -> tuple[list[Check], list[Doubt]]:
    """Every check that asks for no more than some images: facets, probes and doubtful labels, with the most doubtful images."""
    told = told or _Teller(None)
    with threadpool_limits(limits=1, user_api="blas"):  # matrices this small are faster on one core
        draws = Draws.of(sample.groups, count=RESAMPLES, seed=seed)
        folds = make_folds(sample, seed)
        checks = [told(facet.title, partial(check_facet, facet, sample, draws)) for facet in FACETS]
        checks += [told(probe.title, partial(check_probe, probe, sample, folds, draws)) for probe in PROBES]
        noise, doubts = check_noise(sample, folds, draws)
    return [*checks, noise], doubts


class _Teller:
    """Runs a check and says before which one it is."""

    def __init__(self, report: Report | None) -> None:
        self._report, self._done = report, 0

    def __call__(self, title: str, step: Step) -> Check:
        if self._report is not None:
            self._report(self._done, len(FACETS) + len(PROBES) + 3, title)
        self._done += 1
        return step()
