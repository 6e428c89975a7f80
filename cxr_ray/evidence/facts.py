"""What the artefacts know of a study, each fact as a sentence; None where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxr_ray import __version__
from cxr_ray.audit.record import AuditRecord, Check
from cxr_ray.bundle import BundleManifest
from cxr_ray.config import ModelConfig, TrainingConfig
from cxr_ray.data.manifest import DatasetManifest
from cxr_ray.training.run import RunManifest

_POLICIES = {
    "grouped": "no patient, and no near copy of an image, stands in two parts",
    "image": "image by image: one patient can stand in several parts, and the figures are too good",
    "official": "the split that came with the source",
}


@dataclass(frozen=True)
class Known:
    """The artefacts at hand.

    Args:
        name: Of the model.
        dataset: That it is evaluated on.
        split: The part.
        bundle: The model as exported; None: a RUN is evaluated.
        run: Its training; None: only the bundle is at hand.
    """

    name: str
    dataset: DatasetManifest
    split: str
    bundle: BundleManifest | None = None
    run: RunManifest | None = None

    @property
    def networks(self) -> list[ModelConfig]:
        """Of the members."""
        if self.bundle is not None:
            return [member.model for member in self.bundle.members]
        return [self.run.recipe.model] if self.run is not None else []

    @property
    def trained_on(self) -> dict[str, tuple[str, ...]]:
        """Fingerprint of the data -> parts the model has learned from or was chosen on."""
        if self.bundle is not None:
            return {member.provenance.dataset_fingerprint: member.provenance.trained_on for member in self.bundle.members}
        return {self.run.dataset.fingerprint: (*self.run.dataset.train, *self.run.dataset.validation)} if self.run is not None else {}


def facts(known: Known, metrics: Mapping[str, Any], audits: Sequence[AuditRecord]) -> dict[str, str | None]:
    """Every fact that a checklist may ask for, by name."""
    checks = {check.name: check for record in audits for check in record.checks if check.value is not None}
    found = {**_of_data(known.dataset), **_of_model(known), **_of_training(known.run), **_of_evaluation(known, metrics, checks)}
    both = [found["model"], found["training"], found["selected"]]
    found["model_and_training"] = " ".join(one for one in both if one is not None) or None
    return found


def _of_data(data: DatasetManifest) -> dict[str, str | None]:
    image, spec, copies = data.image, data.preprocess, data.copies
    parts = "; ".join(f"{name}: {part.images} images of {part.patients} patients" for name, part in data.partitions.items())
    labels = "; ".join(
        f"{name}: " + ", ".join(f"{label} {count}" for label, count in part.per_label.items()) for name, part in data.partitions.items()
    )
    return {
        "sources": "; ".join(f"{source.name}, {source.images} images" for source in data.sources)
        + f" (data set {data.name}, fingerprint {data.fingerprint[:12]})."
        if data.sources
        else None,
        "excluded": f"{data.quarantined} files could not be used; its quarantine.csv has each reason. "
        "What was left out before that: to be filled in by the authors.",
        "preprocessing": f"Grey, {image.height}×{image.width} pixels; equalisation {spec.equalize}, blur {spec.blur or 'none'}, aspect "
        f"ratio {'kept' if spec.keep_aspect else 'not kept'}; brought to mean 0 and deviation 1 by the training part's statistics "
        f"(fingerprint {spec.fingerprint[:12]}).",
        "deidentified": "The data set holds no header, and patients as keyed hashes. Text within the pixels was not looked for.",
        "missing": "Unknown labels are left out of loss and figures, label by label."
        if data.task == "multilabel"
        else "Images without a label are not in the data set; none was filled in.",
        "partitions": f"{parts}. Seed {data.seed}; {_POLICIES[data.policy]}.",
        "level": f"{_POLICIES[data.policy][0].upper()}{_POLICIES[data.policy][1:]}. Copies across parts: {copies.across_parts}"
        + ("." if copies.searched else "; near copies were not looked for."),
        "numbers": f"{parts}; {data.quarantined} files could not be used. With each label: {labels}.",
        "predictors": "The pixels of one X-ray, and nothing else.",
        "data_available": None,
    }


def _of_model(known: Known) -> dict[str, str | None]:
    networks = [_network(model) for model in known.networks]
    bundle, run = known.bundle, known.run
    versions = run.versions if run is not None else bundle.members[0].provenance.versions if bundle is not None else {}
    labels = ", ".join(known.dataset.labels)
    kind = "a probability for each label, summing to 1" if known.dataset.task == "multiclass" else "a probability for each label by itself"
    output = f"For {labels}: {kind}."
    if bundle is not None and bundle.threshold_origin is not None:
        output += f" Thresholds: {bundle.threshold_origin.told()}."
    elif known.dataset.task == "multiclass":
        output += " The most probable label is called."
    calibration = gate = None
    if bundle is not None:
        calibration = f"Calibrated: {bundle.calibration.told()}." if bundle.calibration is not None else "The model is not recalibrated."
        gate = "Nothing is refused: the model answers whatever it is shown."
        if bundle.gate is not None:
            gate = (
                f"An input gate refuses images unlike the training's, inverted or turned; on held-out images it refuses "
                f"{bundle.gate.false_alarms['any']:.1%} (docs/gate.md)."
            )
    return {
        "technology": f"Deep learning: {networks[0]}." if networks else None,
        "model": f"{'; '.join(dict.fromkeys(networks))}. Input: one grey X-ray. {output}" if networks else None,
        "ensemble": None if not networks else f"The mean of {len(networks)} models." if len(networks) > 1 else "One model, not combined.",
        "software": f"cxr_ray {__version__}"
        + "".join(f", {name} {version}" for name, version in versions.items() if name != "cxr_ray")
        + ".",
        "output": output,
        "calibration": calibration,
        "gate": gate,
        "details": "bundle.json holds network, preprocessing, labels, thresholds and provenance; model.safetensors the weights; the RUN's "
        "config.yaml every setting.",
        "available": "Software: cxr_ray, Apache-2.0. Whether this model and these data can be had: to be filled in by the authors.",
    }


def _network(model: ModelConfig) -> str:
    return f"{model.backbone.name} → {model.sequence.order} sequence → {model.rnn.kind} → head"


def _of_training(run: RunManifest | None) -> dict[str, str | None]:
    if run is None:
        return dict.fromkeys(("initialised", "training", "selected", "imbalance"))
    config, weights = run.recipe.training, run.recipe.model.backbone.weights
    start = "at random" if weights == "none" else "with the published ImageNet weights" if weights == "default" else "from a weight file"
    chosen = "the last epoch; no choice was made" if config.monitor == "last" else f"the epoch with the best {config.monitor}"
    balanced = "Classes are weighted by their inverse frequency in the loss." if config.class_weights == "balanced" else "Nothing was done."
    return {
        "initialised": f"The backbone {start}, the rest at random (seed {run.seed})."
        + (f" It started from another run ({run.initial[:12]})." if run.initial is not None else ""),
        "training": f"{_trained(config)}; augmentation {_augmentation(run)}; {run.epochs} epochs trained.",
        "selected": f"Of {run.epochs} epochs, {chosen}; the test part took no part in it.",
        "imbalance": balanced,
    }


def _trained(config: TrainingConfig) -> str:
    return (
        f"{config.optimizer.name}, learning rate {config.optimizer.lr:g}, weight decay {config.optimizer.weight_decay:g}, schedule "
        f"{config.schedule.name}, batches of {config.batch_size}, label smoothing {config.label_smoothing:g}"
    )


def _augmentation(run: RunManifest) -> str:
    augment = run.recipe.augment
    return augment if isinstance(augment, str) else ", ".join(type(op).__name__.lower() for op in augment) or "none"


def _of_evaluation(known: Known, metrics: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, str | None]:
    part, trained = f"part {known.split} of {known.dataset.name}", known.trained_on
    size = f"{metrics['n']} images of {metrics['patients']} patients"
    own = known.dataset.fingerprint in trained
    seen = known.split in trained.get(known.dataset.fingerprint, ())
    groups = list((metrics.get("subgroups") or {}).get("attributes") or {})
    draws = metrics["bootstrap"]
    per_label = metrics["per_label"]
    diagnostic = "; ".join(
        f"{label}: sensitivity {_figure(per_label[label]['sensitivity'])}, specificity {_figure(per_label[label]['specificity'])}, "
        f"AUROC {_figure(per_label[label]['auroc'])}"
        for label in metrics["labels"]
    )
    sanity = checks.get("heat-follows-weights")
    return {
        "metrics": "Accuracy, macro F1, AUROC, average precision, sensitivity, specificity, precision; calibration error and reliability"
        + ("; decision curves" if metrics.get("decision_curve") else "")
        + ".",
        "uncertainty": f"95 % intervals from {draws['resamples']} resamples of patients (seed {draws['seed']})"
        + (", and DeLong's for AUROC" if metrics.get("delong") else "")
        + ".",
        "robustness": _checked(checks, "robustness", "Contrast, noise, blur, rotation, JPEG, crop at three severities"),
        "explained": "Heat maps of the errors in report.html."
        + (f" With random weights the map changes: rank correlation {sanity.value:.2f}." if sanity is not None else ""),
        "internal": None if not own else f"{part[0].upper()}{part[1:]}: {size}" + ("; the model LEARNED from it." if seen else "."),
        "external": None if own else f"{part[0].upper()}{part[1:]}: {size}; the model was not trained on this data set.",
        "patients": f"By {', '.join(groups)}: table of subgroups in metrics.json." if groups else None,
        "performance": f"Accuracy {_figure(metrics['accuracy'])}, macro F1 {_figure(metrics['macro_f1'])}, macro AUROC "
        f"{_figure(metrics['macro_auroc'])} on {size}" + (f"; by {', '.join(groups)} in metrics.json." if groups else "."),
        "diagnostic": f"{diagnostic}.",
        "failures": "The surest false alarms and misses of each label stand with heat maps in report.html. What they have in common: to be "
        "filled in by the authors.",
        "clusters": _checked(checks, "leave-one-source-out", "A head trained without one source, tested on it"),
        "fairness": f"Figures by {', '.join(groups)}, each against the rest." if groups else None,
        "computed": f"In one pass over {part}, in evaluation mode, with the preprocessing and weights that the bundle or run holds.",
    }


def _figure(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "undefined"
    interval = figure["ci95"]
    return f"{figure['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _checked(checks: Mapping[str, Check], name: str, what: str) -> str | None:
    check = checks.get(name)
    if check is None or check.value is None:
        return None
    interval = f" [{check.ci95[0]:.3f}, {check.ci95[1]:.3f}]" if check.ci95 is not None else ""
    return f"{what}: {check.unit} {check.value:.3f}{interval}; {check.advice}."
