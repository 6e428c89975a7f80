"""Claimed | as released | honest: the outcomes of a plan as Markdown and as one HTML page, from the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

from cxr_ray.config import Claim
from cxr_ray.page import template
from cxr_ray.reproduction.plan import NotRun

NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """One system.

    Args:
        title: Its name.
        paper: Key of the paper.
        claim: What the paper says; None: nothing for these data.
        arms: Kind -> facts of ``arms.run_arm``.
        failed: Kind -> why it did not run.
        difference: Outcome of the paired comparison of ``honest`` with ``control``; None: not run.
        changes: In what the runs differ from the paper.
    """

    title: str
    paper: str | None
    claim: Claim | None
    arms: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str] = field(default_factory=dict)
    difference: Mapping[str, Any] | None = None
    changes: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, what stands below it, and a table.

    Args:
        title: Heading.
        text: One paragraph.
        header: Of the columns.
        rows: Cells.
    """

    title: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def sections(rows: Sequence[Row], not_run: Sequence[NotRun], made_by: Mapping[str, str]) -> list[Section]:
    """The page's tables."""
    found = [_claims(rows), _does_the_rnn_help(rows), _cost(rows), _changes(rows)]
    failed = [[f"{row.title} ({kind})", why] for row in rows for kind, why in row.failed.items()]
    found.append(
        Section(
            "Not run",
            "Systems of the papers that this plan leaves out, and arms that failed.",
            ["system", "why"],
            [*([item.systems, item.why] for item in not_run), *failed],
        )
    )
    found.append(_data(rows, made_by))
    return [section for section in found if section.rows]


def _claims(rows: Sequence[Row]) -> Section:
    header = [
        "system",
        "data",
        "claimed",
        "as released (unsound)",
        "image by image, as published (too good)",
        "honest: patients kept apart",
    ]
    cells = []
    for row in rows:
        honest = row.arms.get("honest")
        where = f"{honest['dataset']['name']}, {honest['n']} images, {honest['patients']} patients" if honest else NOTHING
        cells.append([row.title, where, _claim(row.claim), *(_figures(row.arms.get(kind)) for kind in ("released", "published", "honest"))])
    text = (
        "Claims are the papers' own, on their data and networks at full size. Figures of ours: value [95 % interval from 1,000 resamples "
        "of patients]. They are of the data and the changes named below, so a gap to the claim has several causes."
    )
    return Section("Claimed and measured", text, header, cells)


def _does_the_rnn_help(rows: Sequence[Row]) -> Section:
    header = ["system", "figure", "with RNN", "without RNN", "difference", "McNemar, exact"]
    cells: list[list[str]] = []
    for row in rows:
        if row.difference is None:
            continue
        for name in ("accuracy", "macro_f1", "macro_auroc"):
            pair = row.difference["figures"].get(name)
            if pair is None or pair["difference"]["value"] is None:
                continue
            test = row.difference["mcnemar"].get("accuracy") if name == "accuracy" else None
            told = f"{test['only_a_right']} v. {test['only_b_right']}, p = {test['p']:.3g}" if test else ""
            values = [f"{pair[side]['value']:.4f}" for side in ("a", "b")]
            cells.append([row.title, _words(name), *values, _interval(pair["difference"], signed=True), told])
    text = (
        "The same backbone, budget, seed and images, its feature map read with and without the RNN. The interval is of the paired "
        "difference: patients are drawn together for both. McNemar: images that only one of the two calls right."
    )
    return Section("Does the RNN help?", text, header, cells)


def _cost(rows: Sequence[Row]) -> Section:
    header = [
        "system",
        "arm",
        "pixels",
        "parameters",
        "of these learning",
        "GFLOP an image",
        "s an epoch",
        "images/s",
        "epochs",
        "epoch of the best loss",
    ]
    cells = []
    for row in rows:
        for kind, arm in row.arms.items():
            size = "×".join(map(str, arm["image_size"]))
            best = arm["best_loss_epoch"]
            cells.append(
                [
                    row.title,
                    kind,
                    size,
                    f"{arm['parameters']:,}",
                    f"{arm['parameters_learning']:,}",
                    f"{arm['flops'] / 1e9:.2f}",
                    f"{arm['seconds_per_epoch']:.1f}",
                    f"{arm['images_per_second']:.0f}",
                    f"{arm['epochs']}" + (f" × {arm['runs']}" if arm["runs"] > 1 else ""),
                    str(best) if best is not None else NOTHING,
                ]
            )
    text = "Times are of the machine named above, validation included; images/s are of training alone. The best epoch is of the first run."
    return Section("Cost", text, header, cells)


def _changes(rows: Sequence[Row]) -> Section:
    return Section(
        "What differs from the papers",
        "Beside the data themselves.",
        ["system", "changes"],
        [[row.title, row.changes] for row in rows if row.changes],
    )


def _data(rows: Sequence[Row], made_by: Mapping[str, str]) -> Section:
    used = {arm["key"]: arm["dataset"] for row in rows for arm in row.arms.values()}
    return Section(
        "Data",
        "How each data set was made; DATA is the folder of public image sets. The fingerprint is of the pixels, labels and parts.",
        ["key", "made by", "split", "fingerprint"],
        [[key, made_by[key], facts["policy"], facts["fingerprint"][:12]] for key, facts in sorted(used.items())],
    )


def _claim(claim: Claim | None) -> str:
    if claim is None:
        return NOTHING
    figures = ", ".join(f"{_words(name)} {_plain(name, value)}" for name, value in claim.figures.items())
    return f"{figures} ({claim.data})" + (f". {claim.note}" if claim.note else "")


def _plain(name: str, value: float) -> str:
    return f"{value:g}" if name in {"seconds_per_epoch", "best_epoch", "images_per_second"} else f"{value:.4f}"


def _figures(arm: Mapping[str, Any] | None) -> str:
    if arm is None:
        return NOTHING
    found = [f"{_words(name)} {_interval(figure)}" for name, figure in arm["figures"].items() if figure["value"] is not None]
    return "; ".join(found)


def _interval(figure: Mapping[str, Any], *, signed: bool = False) -> str:
    form = "{:+.4f}" if signed else "{:.4f}"
    low, high = figure["ci95"] or (None, None)
    if low is None or high is None:
        return form.format(figure["value"])
    return f"{form.format(figure['value'])} [{form.format(low)}, {form.format(high)}]"


def _words(name: str) -> str:
    return {"macro_f1": "macro F1", "macro_auroc": "macro AUROC", "auroc": "AUROC", "f1": "F1"}.get(name, name.replace("_", " "))


def markdown(title: str, notes: Sequence[str], found: Sequence[Section]) -> str:
    """The page as Markdown."""
    lines = [f"# {title}", "", *(line for note in notes for line in (note, ""))]
    for section in found:
        lines += [f"## {section.title}", "", section.text, ""]
        lines += ["| " + " | ".join(section.header) + " |", "|" + "---|" * len(section.header)]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in section.rows]
        lines.append("")
    return "\n".join(lines)


def _code(text: str) -> Markup:
    """Escaped, with what stands between backticks as code."""
    parts = [str(escape(part)) for part in text.split("`")]
    return Markup("".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)))


def html(title: str, notes: Sequence[str], found: Sequence[Section]) -> str:
    """The page as one HTML file that needs no network."""
    return template(__file__, "table.html", code=_code).render(title=title, notes=notes, sections=found)
