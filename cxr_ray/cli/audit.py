"""``audit``: DATASET, or BUNDLE and DATASET, in; ``audit.json`` and ``audit.html`` out."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_ray import storage
from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import ConfigError, DatasetError, StorageError

if TYPE_CHECKING:
    from cxr_ray.audit.record import AuditRecord, Check
    from cxr_ray.data.shards import Dataset
    from cxr_ray.training.run import AuditNote

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
SHOWN = 3
"""Findings that a training prints; all are in its ``run.json``."""


class Audit(StrEnum):
    """Whether a training looks at its data first."""

    auto = "auto"
    skip = "skip"


AuditOption = Annotated[
    Audit, typer.Option(help="auto: take the audit of the data, or make a quick one. skip: none; run, model card and reports say so.")
]


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(audit)


def audit(
    subject: Annotated[str, typer.Argument(help="DATASET, or BUNDLE with --data.")],
    data: Annotated[str | None, typer.Option(help="With a BUNDLE: the DATASET to look at it with.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder to write; default: audit, within the DATASET or beside the BUNDLE.")] = None,
    split: Annotated[str, typer.Option(help="With a BUNDLE: part to look at; the test part is for `evaluate`.")] = "val",
    quick: Annotated[bool, typer.Option("--quick", help="Of a DATASET: 1,500 images, not 5,000; copies as ingest counted them.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find what data, or a model, could be right by for the wrong reasons: a verdict a check, the number behind it, what to do.

    Example: cxr-ray audit dataset --out audit
    """
    from cxr_ray.audit.report import PAGE
    from cxr_ray.data.manifest import MANIFEST

    is_dataset = storage.exists(storage.join(subject, MANIFEST))
    if is_dataset and data is not None:
        raise ConfigError(["--data is for a BUNDLE"], where="audit", hint=f"cxr-ray audit {subject}")
    if is_dataset:
        record, out = _audit_dataset(subject, out, quick=quick, seed=seed)
    else:
        record, out = _audit_bundle(subject, data, out, split=split, seed=seed)
    show(record)
    page = storage.join(out, PAGE)
    console.say(f"wrote {page}")
    told = {**record.model_dump(mode="json", by_alias=True), "out": out}
    console.result(told, next_step=f"open {page}")


def _audit_dataset(subject: str, out: str | None, *, quick: bool, seed: int) -> tuple[AuditRecord, str]:
    from cxr_ray.audit.dataset import audit_dataset
    from cxr_ray.audit.kept import kept_beside
    from cxr_ray.audit.report import write_audit
    from cxr_ray.data.shards import open_dataset

    dataset = open_dataset(subject)
    with console.progress("audit") as meter:
        found = audit_dataset(dataset, seed=seed, quick=quick, report=meter.update)
    out = out or kept_beside(dataset)
    write_audit(found, out)
    return found.record, out


def _audit_bundle(subject: str, data: str | None, out: str | None, *, split: str, seed: int) -> tuple[AuditRecord, str]:
    if data is None:
        raise DatasetError(f"{subject} is no DATASET", hint="cxr-ray audit DATASET, or cxr-ray audit BUNDLE --data DATASET")
    from cxr_ray.bundle import read_bundle
    from cxr_ray.data.shards import open_dataset
    from cxr_ray.evidence.audit import audit_bundle

    out = out or subject.rstrip("/") + "-audit"
    return audit_bundle(read_bundle(subject), open_dataset(data), out, split=split, seed=seed), out


def show(record: AuditRecord) -> None:
    """The verdict and its checks, as a table for people."""
    from cxr_ray.audit.report import figure

    rows = [
        [check.title, f"[{_COLOURS[check.verdict]}]{check.verdict if check.value is not None else 'n/a'}[/]", figure(check), check.unit]
        for check in record.checks
    ]
    console.table(f"audit of {record.name}: {record.verdict}", ["check", "verdict", "value [95 %]", "unit"], rows)
    for check in record.checks:
        if check.verdict != "ok":
            console.say(f"[bold {_COLOURS[check.verdict]}]{check.verdict}[/] {check.title}: {check.advice}")


def audited(data: str, run: str, *, skip: bool, overwrite: bool) -> AuditNote:
    """What the audit of a DATASET says: as its RUN recorded it, as it lies beside the DATASET, or made now in its quick form.

    Args:
        data: DATASET.
        run: RUN to be written, or a folder of RUNs; where one stands there that goes on, its note is taken.
        skip: Asked for by the user, and recorded as such.
        overwrite: What stands at ``run`` is to be replaced.

    Raises:
        DatasetError: It cannot be read.
    """
    from cxr_ray.data.shards import open_dataset
    from cxr_ray.training.run import AuditNote

    dataset = open_dataset(data)
    known = None if overwrite else _noted(run, dataset.manifest.fingerprint)
    if known is not None:
        return known
    if skip:
        console.say("[bold yellow]note:[/] the audit of the data is skipped; run, model card and reports will say so")
        return AuditNote(verdict="skipped")
    record = _kept_or_made(dataset)
    found = sorted((check for check in record.checks if check.verdict != "ok"), key=lambda check: check.verdict)  # fail before warn
    console.say(
        f"audit of {record.name}: [bold {_COLOURS[record.verdict]}]{record.verdict}[/]" + (f" ({len(found)} checks)" if found else "")
    )
    for check in found[:SHOWN]:
        console.say(f"  [{_COLOURS[check.verdict]}]{check.verdict}[/] {finding(check)}")
    return AuditNote(verdict=record.verdict, findings=tuple(finding(check) for check in found))


def finding(check: Check) -> str:
    """A check that is not ok, in a sentence."""
    from cxr_ray.audit.report import figure

    return f"{check.title}: {check.unit} {figure(check)}; {check.advice}."


def _noted(location: str, fingerprint: str) -> AuditNote | None:
    """What a RUN of the same data at ``location``, or its first fold, has recorded."""
    from cxr_ray.training.run import RUN, open_run

    for place in (location, storage.join(location, "fold-0")):
        if storage.exists(storage.join(place, RUN)):
            manifest = open_run(place).manifest
            return manifest.audit if manifest.dataset.fingerprint == fingerprint else None
    return None


def _kept_or_made(dataset: Dataset) -> AuditRecord:
    """The audit beside the DATASET; else a quick one, left there where that can be written."""
    from cxr_ray.audit.dataset import audit_dataset
    from cxr_ray.audit.kept import kept_beside, read_kept
    from cxr_ray.audit.report import write_audit

    kept = read_kept(dataset)
    if kept is not None:
        return kept
    with console.progress("audit") as meter:
        made = audit_dataset(dataset, quick=True, report=meter.update)
    try:
        write_audit(made, kept_beside(dataset))
    except StorageError as error:
        console.say(f"the audit is not kept: {error.message}")
    return made.record
