"""``synthesize``: DATASET -> GAN of a rare class -> images -> their quality and whether they are copies -> DATASET with them.

What was trained stays in the run directory, whose pictures and report are written before the DATASET: who gets the one has the other.
Killed at any moment, the same call goes on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cxr_ray import __version__, storage
from cxr_ray.data.shards import Dataset, open_dataset
from cxr_ray.errors import ConfigError, DatasetError
from cxr_ray.synthesis.config import GanConfig, GanRequest, work_size
from cxr_ray.synthesis.enlarge import enlarge, standing
from cxr_ray.synthesis.extractor import build_extractor
from cxr_ray.synthesis.memorisation import find_memorised
from cxr_ray.synthesis.quality import images_needed, measure_quality
from cxr_ray.synthesis.rare import count_class, read_class, resize
from cxr_ray.synthesis.report import write_report
from cxr_ray.synthesis.sample import make_images
from cxr_ray.synthesis.state import REPORT
from cxr_ray.synthesis.trainer import Report, train_gan

_VERSION = 1
"""Raised with any change of what is made of the same request."""


@dataclass(frozen=True)
class Synthesis:
    """What ``synthesize`` did."""

    dataset: Dataset
    record: dict[str, Any]
    """``{"label", "count", "kid", "memorisation", …}``, as in ``dataset.json`` and ``report.json``."""
    run: str
    already_finished: bool
    """The DATASET stood there; nothing was done."""


def synthesize(
    dataset: str,
    label: str,
    count: int,
    out: str,
    *,
    config: GanRequest | None = None,
    run: str | None = None,
    workers: int = 1,
    use_gpu: bool = False,
    extractor: str | None = None,
    address: str | None = None,
    report: Report | None = None,
) -> Synthesis:
    """Enlarge the training part of a DATASET by GAN images of one class.

    Args:
        dataset: DATASET, of one label an image and split into parts.
        label: The class; at least 16 real training images.
        count: Images to add.
        out: DATASET to write.
        config: Of the GAN. None: its defaults.
        run: Run directory of the GAN. None: ``OUT.gan``.
        workers: Training processes.
        use_gpu: One GPU a worker.
        extractor: See :func:`cxr_ray.synthesis.extractor.build_extractor`.
        address: Ray cluster; see :func:`cxr_ray.cluster.connect`.
        report: Called in a thread of this process after each checkpoint.

    Raises:
        ConfigError: ``count`` is below 1, or ``extractor`` names nothing.
        DatasetError: The data, the label or their sizes do not fit, or something stands at ``out``.
        CxrRayError: The GAN cannot be trained, or something cannot be written.
    """
    if count < 1:
        raise ConfigError([f"{count}: expected at least 1 image"], where="--count")
    data, out = open_dataset(dataset), storage.absolute(out)
    run = storage.absolute(run) if run is not None else default_run(out)
    _apart(data.location, out, run)
    height, width = data.preprocess.height, data.preprocess.width
    asked = config or GanRequest()
    size = work_size(height, width, asked.size)
    settled = asked.settle(count_class(data, label))
    request = request_hash(data, label, count, settled, extractor)
    there = standing(out, request)
    if there is not None:
        return Synthesis(there, there.manifest.synthesis[-1], run, already_finished=True)
    rare = read_class(data, label)
    measure = build_extractor(extractor, rare.images_NHW, data.preprocess)  # before the training: a wrong name is told at once

    trained = train_gan(data, rare, settled, run, workers=workers, use_gpu=use_gpu, address=address, report=report)
    generator, weights = trained.load_generator()
    more = max(count, images_needed(len(rare)))
    made = resize(make_images(generator, more, seed=settled.seed), height, width)
    added = made[:count]
    quality = measure_quality(rare.images_NHW, made, measure, seed=settled.seed)
    memorisation = find_memorised(added, rare.images_NHW, rare.groups, measure.measure(added), measure.measure(rare.images_NHW))
    record = {
        "label": label,
        "count": count,
        "real_images": len(rare),
        "size": size,
        "epochs": trained.epochs,
        "base": {"name": data.manifest.name, "fingerprint": data.manifest.fingerprint},
        "generator": weights,
        "config": settled.model_dump(mode="json"),
        "kid": quality.as_dict(),
        "memorisation": memorisation.as_dict(),
        "cxr_ray": __version__,
    }
    write_report(
        storage.join(run, REPORT),
        title=f"{label}: images made for {data.manifest.name}",
        facts=record,
        made=added,
        real=rare.images_NHW,
        memorisation=memorisation,
        history=trained.history(),
    )
    enlarged = enlarge(data, out, label, added, request=request, record=record, seed=settled.seed)
    return Synthesis(enlarged, record, run, already_finished=False)


def default_run(out: str) -> str:
    """``OUT.gan``; a URI's query stays at the end."""
    base, mark, query = out.partition("?") if storage.is_uri(out) else (out, "", "")
    return f"{base.rstrip('/')}.gan{mark}{query}"


def request_hash(data: Dataset, label: str, count: int, config: GanConfig, extractor: str | None) -> str:
    """SHA-256 of all that was asked for: asked again, there is nothing to do."""
    asked = {
        "version": [_VERSION, __version__],
        "base": data.manifest.fingerprint,
        "label": label,
        "count": count,
        "config": config.model_dump(mode="json", exclude={"checkpoint_every"}),
        "extractor": extractor,
    }
    return storage.sha256(json.dumps(asked, sort_keys=True).encode())


def _apart(dataset: str, out: str, run: str) -> None:
    """None of the three may lie in another: what is written to one would be taken for a part of it."""
    named = (("DATASET", dataset), ("--out", out), ("--run", run))
    for one, where in named:
        for other, place in named:
            if one != other and (where.rstrip("/") + "/").startswith(place.rstrip("/") + "/"):
                raise DatasetError(f"{one} ({where}) lies in {other} ({place})", hint="folders beside each other")
