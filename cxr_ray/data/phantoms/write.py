"""A folder of phantoms: images, labels.csv, truth.json."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cxr_ray import storage
from cxr_ray.data.phantoms.encode import SUFFIXES, encode, encode_jpeg, encode_png
from cxr_ray.data.phantoms.findings import MULTILABEL
from cxr_ray.data.phantoms.plan import CLASSES, SOURCES, TASKS, Shot, file_name, shots, stream
from cxr_ray.data.phantoms.planted import FAULTS, Copy, corrupt_file, near_copy, plan_copies
from cxr_ray.data.phantoms.render import render_phantom
from cxr_ray.data.phantoms.shortcuts import Plant
from cxr_ray.errors import ConfigError, StorageError

SCHEMA = "cxr-ray/phantoms/1"
_BATCH = 64  # images drawn ahead of the thread that lists them


@dataclass(frozen=True)
class PhantomSummary:
    """What was written."""

    out: str
    task: str
    images: int
    """Good images, without copies."""
    patients: int
    """Of the good images."""
    near_copies: int
    exact_copies: int
    corrupt: int
    per_label: Mapping[str, int]
    """Good images a label. Multilabel: how many show it, known or blank."""
    formats: Mapping[str, int]

    @property
    def copies(self) -> int:
        """Near and exact."""
        return self.near_copies + self.exact_copies


def write_phantoms(
    out: str | Path,
    *,
    task: str = "covid",
    count: int = 600,
    seed: int = 0,
    size: int = 256,
    near_copies: int | None = None,
    exact_copies: int | None = None,
    corrupt: int | None = None,
    plant: Plant | None = None,
    threads: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> PhantomSummary:
    """Draw ``count`` radiographs and write them with their labels; the same arguments give the same bytes.

    Layout: ``images/xr-*.{png,jpg,dcm}``, ``truth.json`` (what is planted, and where the lesions are) and, last, ``labels.csv``:

    * covid, croup: ``path,label,patient_id,view,sex,age,source``;
    * multilabel: ``path``, one column of 1, 0 or blank (unknown) for each of :data:`MULTILABEL`, ``patient_id,view,sex,age,source``.

    Args:
        out: Local folder or URI; must not exist, or be empty.
        task: ``covid``, ``croup`` or ``multilabel``.
        count: Good images, before copies and corrupt files are added to the list.
        seed: Another seed, other patients.
        size: Middle of the heights and widths, pixels.
        near_copies: None: one to 25 images, at least two.
        exact_copies: None: one to 100 images, at least one.
        corrupt: Unreadable files. None: four.
        plant: A shortcut to plant. None: what goes with the label is the lesion alone.
        threads: None: one a core.
        report: Called with (done, count) now and then.

    Raises:
        ConfigError: An argument is out of range.
        StorageError: ``out`` holds files, or cannot be written.
    """
    near = max(2, count // 25) if near_copies is None else near_copies
    exact = max(1, count // 100) if exact_copies is None else exact_copies
    bad = len(FAULTS) if corrupt is None else corrupt
    _check(task, count, size, near, exact, bad, plant)
    if storage.list_files(out):
        raise StorageError(f"{out} is not empty", hint="another folder, or remove it first")
    folder = _Folder(str(out))
    copies = plan_copies(task, seed, count, near=near, exact=exact)
    writer = _Writer(folder, {copy.original: copy for copy in copies}, plant)
    plan = shots(task, count, seed, size)
    placed = plan if plant is None else map(plant.place, plan)
    rows: list[_Row] = []
    for done, made in enumerate(_in_threads(writer, placed, threads), start=1):
        rows.append(made)
        if report is not None and (done % 20 == 0 or done == count):
            report(done, count)
    spoiled = [_write_corrupt(folder, task, seed, size, number) for number in range(bad)]
    storage.write_bytes(storage.join(str(out), "truth.json"), _truth(task, count, seed, size, rows, spoiled, plant))
    storage.write_bytes(storage.join(str(out), "labels.csv"), _labels(task, rows, spoiled))
    return _summary(str(out), task, rows, near=near, exact=exact, corrupt=bad)


def _check(task: str, count: int, size: int, near: int, exact: int, corrupt: int, plant: Plant | None) -> None:
    faults = []
    if plant is not None and not 0 <= plant.strength <= 1:
        faults.append(f"strength: {plant.strength:g} is not within 0..1")
    if task not in TASKS:
        faults.append(f"task: {task!r} is unknown; valid: {', '.join(TASKS)}")
    if not 32 <= size <= 4096:
        faults.append(f"size: {size} is not within 32..4096 pixels")
    if count < 1:
        faults.append(f"count: {count} is less than 1")
    if min(near, exact, corrupt) < 0 or near + exact > count:
        faults.append(
            f"near_copies, exact_copies, corrupt: {near}, {exact}, {corrupt}; none below 0, and no more copies than images ({count})"
        )
    if faults:
        raise ConfigError(faults, where="phantoms")


@dataclass(frozen=True)
class _Row:
    """One good image as written, with its copy if it has one."""

    shot: Shot
    path: str
    phantom_size: tuple[int, int]
    lesions: tuple[Mapping[str, Any], ...]
    copy: Copy | None
    copy_path: str


class _Folder:
    """Files below one location. Plain writes: labels.csv, written whole and last, is what makes the folder readable."""

    def __init__(self, location: str) -> None:
        self.filesystem, self.root = storage.open_location(location)
        self.filesystem.create_dir(f"{self.root}/images", recursive=True)

    def write(self, path: str, data: bytes) -> None:
        try:
            with self.filesystem.open_output_stream(f"{self.root}/{path}") as stream_:
                stream_.write(data)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or type(error).__name__}") from error


class _Writer:
    """Draws and writes one image; shared by the threads, holds nothing that changes."""

    def __init__(self, folder: _Folder, copies: Mapping[int, Copy], plant: Plant | None) -> None:
        self.folder, self.copies, self.plant = folder, copies, plant

    def __call__(self, shot: Shot) -> _Row:
        phantom = render_phantom(shot)
        if self.plant is not None:
            phantom = replace(phantom, image=self.plant.draw(phantom.image, shot))
        data = encode(phantom.image, shot)
        path = f"images/{shot.name}{SUFFIXES[shot.format]}"
        self.folder.write(path, data)
        copy, copy_path = self.copies.get(shot.index), ""
        if copy is not None:
            near = copy.kind == "near"
            copy_path = f"images/{copy.name}{'.jpg' if near else SUFFIXES[shot.format]}"
            self.folder.write(copy_path, near_copy(phantom.image, copy.edits, shot.rng("copy")) if near else data)
        lesions = tuple(asdict(lesion) for lesion in phantom.lesions)
        return _Row(shot, path, (phantom.image.shape[0], phantom.image.shape[1]), lesions, copy, copy_path)


def _in_threads(work: Callable[[Shot], _Row], plan: Iterable[Shot], threads: int | None) -> Iterator[_Row]:
    """``work`` over ``plan`` in order; numpy and cv2 let go of the interpreter's lock while they draw."""
    with ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="phantoms") as pool:
        iterator = iter(plan)
        while batch := list(itertools.islice(iterator, _BATCH)):
            yield from pool.map(work, batch)


def _write_corrupt(folder: _Folder, task: str, seed: int, size: int, number: int) -> dict[str, Any]:
    """One unreadable file; its labels.csv row looks like any other."""
    fault = FAULTS[number % len(FAULTS)]
    shot = next(iter(shots(task, 1, seed + 7919 * (number + 1), min(size, 256))))
    image = render_phantom(shot).image
    suffix, data = corrupt_file(fault, encode_png(image), encode_jpeg(image, 90))
    path = f"images/{file_name(task, seed, 'corrupt', number)}{suffix}"
    folder.write(path, data)
    rng = stream(task, seed, "corrupt", number)
    person = {
        "patient_id": f"P{950001 + number}",
        "view": shot.view,
        "sex": shot.sex,
        "age": f"{shot.age:g}",
        "source": str(rng.choice(SOURCES)),
    }
    return {"path": path, "fault": fault, "row": {"path": path, **_label_cells(shot), **person}}


def _label_cells(shot: Shot) -> dict[str, str]:
    if shot.task != "multilabel":
        return {"label": shot.label}
    return {name: "" if name in shot.unknown else str(int(name in shot.findings)) for name in MULTILABEL}


def _cells(row: _Row) -> Iterator[dict[str, str]]:
    """labels.csv rows of an image and of its copy."""
    shot = row.shot
    about = {"patient_id": shot.patient_id, "view": shot.view, "sex": shot.sex, "age": f"{shot.age:g}", "source": shot.source}
    yield {"path": row.path, **_label_cells(shot), **about}
    if row.copy is not None:
        yield {"path": row.copy_path, **_label_cells(shot), **about, "patient_id": row.copy.patient_id or shot.patient_id}


def _labels(task: str, rows: list[_Row], spoiled: list[dict[str, Any]]) -> bytes:
    lines = [cells for row in rows for cells in _cells(row)] + [bad["row"] for bad in spoiled]
    labels = MULTILABEL if task == "multilabel" else ("label",)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, ["path", *labels, "patient_id", "view", "sex", "age", "source"], lineterminator="\n")
    table.writeheader()
    table.writerows(sorted(lines, key=lambda line: line["path"]))  # names are random: the order tells nothing
    return text.getvalue().encode()


def _truth(task: str, count: int, seed: int, size: int, rows: list[_Row], spoiled: list[dict[str, Any]], plant: Plant | None) -> bytes:
    images = [
        {
            "path": row.path,
            "findings": list(row.shot.findings),
            "patient_id": row.shot.patient_id,
            "visit": row.shot.visit,
            "format": row.shot.format,
            "height": row.phantom_size[0],
            "width": row.phantom_size[1],
            "lesions": list(row.lesions),
        }
        for row in rows
    ]
    copies = [
        {
            "path": row.copy_path,
            "of": row.path,
            "kind": row.copy.kind,
            "edits": list(row.copy.edits),
            "patient_id": row.copy.patient_id or row.shot.patient_id,
            "other_patient": row.copy.patient_id is not None,
        }
        for row in rows
        if row.copy is not None
    ]
    bad = [{"path": one["path"], "fault": one["fault"]} for one in spoiled]
    labels = list(MULTILABEL if task == "multilabel" else CLASSES[task])
    head = {"schema": SCHEMA, "task": task, "labels": labels, "count": count, "seed": seed, "size": size}
    head |= {} if plant is None else {"plant": asdict(plant)}
    return (json.dumps({**head, "images": images, "copies": copies, "corrupt": bad}, allow_nan=False) + "\n").encode()


def _summary(out: str, task: str, rows: list[_Row], *, near: int, exact: int, corrupt: int) -> PhantomSummary:
    names = MULTILABEL if task == "multilabel" else CLASSES[task]
    shown = Counter(name for row in rows for name in (row.shot.findings if task == "multilabel" else (row.shot.label,)))
    formats = Counter(row.shot.format for row in rows)
    return PhantomSummary(
        out=out,
        task=task,
        images=len(rows),
        patients=len({row.shot.patient for row in rows}),
        near_copies=near,
        exact_copies=exact,
        corrupt=corrupt,
        per_label={name: shown[name] for name in names},
        formats=dict(sorted(formats.items())),
    )
