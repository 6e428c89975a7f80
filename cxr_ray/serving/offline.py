"""``predict``: score a folder, or a bucket, of images with Ray Data; every file gets a row, readable or not."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cxr_ray import storage
from cxr_ray.bundle import Bundle, read_bundle
from cxr_ray.cpu import use_cores
from cxr_ray.errors import BundleError, ConfigError, ImageError, SourceError, StorageError
from cxr_ray.serving.predictor import Prediction, Predictor

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", "")
"""What is offered to the decoder, which decides by content; other files of a folder are not images."""


@dataclass(frozen=True, slots=True)
class PredictSummary:
    """What was done.

    Args:
        scored: Images with probabilities.
        refused: Files with a reason instead.
        seconds: Wall time.
        model: Version of the bundle.
    """

    scored: int
    refused: int
    seconds: float
    model: str


@lru_cache(maxsize=1)
def _predictor(bundle: str, version: str) -> Predictor:
    """The model of this worker process, kept between its tasks; ``version`` tells an overwritten bundle from the old one."""
    use_cores(1)  # tasks run side by side, one a CPU
    predictor = Predictor(read_bundle(bundle))
    if predictor.bundle.version != version:
        raise BundleError(f"{bundle} changed while it was in use")
    return predictor


def _score(batch: dict[str, Any], bundle: str, version: str, root: str) -> pa.Table:
    """A Ray Data task: file locations -> answers, or reasons."""
    predictor = _predictor(bundle, version)
    files = [str(name) for name in batch["file"]]
    images: list[NDArray[np.uint8]] = []
    reasons: list[str | None] = []
    for name in files:
        try:
            images.append(predictor.decode(storage.read_bytes(storage.join(root, name) if name else root)))
            reasons.append(None)
        except ImageError as error:
            reasons.append(error.reason)
        except StorageError:
            reasons.append("unreadable")
    scored = iter(zip(*predictor.predict_checked(np.stack(images)), strict=True) if images else ())
    answers: list[Prediction | None] = []
    gate: list[str | None] = []
    for reason in reasons:
        probabilities, verdict = next(scored) if reason is None else (None, None)
        answers.append(predictor.call(probabilities) if probabilities is not None else None)
        gate.append(verdict.reason or "ok" if verdict is not None else None)
    return _rows(files, answers, reasons, gate, predictor.bundle)


def _rows(files: list[str], answers: list[Any], reasons: list[str | None], gate: list[str | None], bundle: Bundle) -> pa.Table:
    columns = {
        "file": pa.array(files, pa.string()),
        "labels": pa.array(["|".join(answer.labels) if answer else None for answer in answers], pa.string()),
        "error": pa.array(reasons, pa.string()),
        "gate": pa.array(gate, pa.string()),
        "model_version": pa.array([bundle.version] * len(files), pa.string()),
    }
    for name in bundle.labels.names:
        columns[f"p_{name}"] = pa.array([answer.probabilities[name] if answer else None for answer in answers], pa.float32())
    return pa.table(columns)


def predict_folder(
    bundle: str, source: str, out: str, *, batch_size: int = 64, report: Callable[[int, int], None] | None = None
) -> PredictSummary:
    """Score every image below ``source`` and write one table, sorted by file.

    Args:
        bundle: BUNDLE that every worker can read.
        source: Folder, searched to any depth, or one file; a local path or a URI.
        out: ``.parquet`` or ``.csv``: columns ``file`` (below ``source``), ``labels`` (``A|B``), ``error`` (reason, or empty), ``gate``
            (``ok``, or why the bundle's input gate would refuse the image; empty without a gate), ``model_version``, ``p_<label>`` (0..1).
        batch_size: Images a forward pass.
        report: Called with images done and in all.

    Raises:
        SourceError: Nothing there.
        ConfigError: ``out`` has another ending.
        BundleError: The bundle is not usable.
    """
    import ray.data

    if not out.endswith((".parquet", ".csv")):
        raise ConfigError([f"{out!r} must end in .parquet or .csv"], where="--out")
    opened = read_bundle(bundle)
    opened.warn_if_unsound()
    files = _images_below(source)
    start = time.monotonic()
    score: Any = _score  # Ray's own types know only functions of one argument
    scored = (
        ray.data.from_arrow(pa.table({"file": files}))
        .repartition(-(-len(files) // batch_size))
        .map_batches(score, fn_kwargs={"bundle": bundle, "version": opened.version, "root": source}, batch_size=batch_size)
    )
    tables: list[pa.Table] = []
    done = 0
    for table in cast("Iterable[pa.Table]", scored.iter_batches(batch_size=None, batch_format="pyarrow")):
        tables.append(table)
        done += table.num_rows
        if report:
            report(done, len(files))
    whole = pa.concat_tables(tables).sort_by("file")
    storage.write_bytes(out, _encoded(whole, out))
    refused = whole.num_rows - whole.column("error").null_count
    return PredictSummary(whole.num_rows - refused, refused, time.monotonic() - start, opened.version)


def _images_below(source: str) -> list[str]:
    if not storage.exists(source):
        raise SourceError(f"nothing stands at {source}", hint="a folder of images, or one image")
    files = [name for name in storage.list_files(source) if _looks_like_image(name)] if _is_folder(source) else [""]
    if not files:
        raise SourceError(f"no images below {source}; looked for {', '.join(suffix or 'no ending' for suffix in SUFFIXES)}")
    return files


def _is_folder(source: str) -> bool:
    filesystem, path = storage.open_location(source)
    return bool(filesystem.get_file_info(path).type.name == "Directory")


def _looks_like_image(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    stem, dot, ending = base.rpartition(".")
    return not base.startswith(".") and (f".{ending}".lower() if dot and stem else "") in SUFFIXES


def _encoded(table: pa.Table, out: str) -> bytes:
    stream = io.BytesIO()
    if out.endswith(".csv"):
        pacsv.write_csv(table, stream)
    else:
        pq.write_table(table, stream)
    return stream.getvalue()
