"""The answer as a Structured Report: Comprehensive SR with the template of measurement reports, which archives and viewers know.

Source: DICOM PS3.3 A.35.3, PS3.16 TID 1500 with a TID 1501 group a label. In each group: probability (122157, DCM) and, where there is
one, threshold (122411, DCM), both without unit (UCUM ``1``), and the decision. A label is the name that a model was trained with and no
term of SNOMED CT, so labels and decisions stand in a private coding scheme: "called" is what a program did, not the presence of a disease.
"""

from __future__ import annotations

import datetime
from typing import Any, Final

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.sr.codedict import codes

from cxr_ray import __version__
from cxr_ray.serving.dicom.identity import Identity
from cxr_ray.serving.dicom.reading import NOTICE, Finding, Reading

SCHEME: Final = "99CXRRAY"
SERIES_NUMBER: Final = 9801
_DECISION: Final = CodedConcept("DECISION", SCHEME, "Decision of the model")
_DECISIONS: Final = {
    True: CodedConcept("CALLED", SCHEME, "Called by the model"),
    False: CodedConcept("NOT-CALLED", SCHEME, "Not called by the model"),
}
_CHEST: Final = CodedConcept("399208008", "SCT", "Plain chest X-ray")


def build_report(identity: Identity, reading: Reading, *, now: datetime.datetime) -> ComprehensiveSR:
    """The report of one image, in the image's study, unverified.

    Args:
        identity: Of the image.
        reading: What is said of it.
        now: When, in local time.
    """
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(identity, reading)),
        procedure_reported=_CHEST,
        imaging_measurements=[_group(identity, reading, finding) for finding in reading.findings],
        title=codes.DCM.ImagingMeasurementReport,
    )
    for sentence in (NOTICE, *reading.remarks, _summary(reading)):
        text = TextContentItem(codes.DCM.Comment, plain(sentence, 1024), relationship_type=RelationshipTypeValues.CONTAINS)
        content[0].ContentSequence.append(text)
    report = ComprehensiveSR(
        evidence=[identity.reference()],
        content=content[0],
        series_instance_uid=identity.derive("SR", reading.model, reading.version, of=identity.study),
        series_number=SERIES_NUMBER,
        sop_instance_uid=identity.derive("SR", reading.digest, __version__, of=identity.instance),
        instance_number=identity.number,
        series_description=f"cxr_ray {plain(reading.model, 40)}: report",
        is_complete=True,
        content_date=now.date(),
        content_time=now.time(),
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="Labels and decisions of cxr_ray", responsible_organization="cxr_ray")],
        **equipment(reading),
    )
    identity.stamp(report)
    return report


def equipment(reading: Reading) -> dict[str, Any]:
    """Who made an object (PS3.3 C.7.5.1): the model, its version, and this software's."""
    return {
        "manufacturer": "cxr_ray",
        "manufacturer_model_name": plain(reading.model, 64),
        "device_serial_number": reading.version,
        "software_versions": __version__,
    }


def plain(text: str, length: int) -> str:
    """ASCII of at most ``length`` characters, without what separates DICOM values.

    The answer carries the character set of its image, of which only ASCII is certain; others become ``&#…;``.
    """
    ascii_only = text.encode("ascii", "xmlcharrefreplace").decode().replace("\\", "/")
    return "".join(character if character.isprintable() else " " for character in ascii_only)[:length]


def _observer(identity: Identity, reading: Reading) -> ObserverContext:
    device = DeviceObserverIdentifyingAttributes(
        uid=identity.derive("device", reading.model, of=reading.version),
        name="cxr_ray",
        manufacturer_name="cxr_ray",
        model_name=plain(reading.model, 64),
        serial_number=reading.version,
    )
    return ObserverContext(codes.DCM.Device, device)


def _group(identity: Identity, reading: Reading, finding: Finding) -> MeasurementsAndQualitativeEvaluations:
    numbers = [(codes.DCM.Probability, finding.probability), (codes.DCM.ThresholdValue, finding.threshold)]
    label = plain(finding.label, 64)
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=identity.derive("label", finding.label, reading.digest, of=identity.instance), identifier=label
        ),
        finding_type=CodedConcept(label, SCHEME, label),
        algorithm_id=AlgorithmIdentification(plain(reading.model, 64), reading.version, manufacturer="cxr_ray"),
        measurements=[Measurement(name, round(value, 4), codes.UCUM.NoUnits) for name, value in numbers if value is not None],
        qualitative_evaluations=[QualitativeEvaluation(_DECISION, _DECISIONS[finding.called])],
        source_images=[SourceImageForMeasurementGroup(identity.sop_class, identity.instance)],
    )


def _summary(reading: Reading) -> str:
    """For viewers that show text alone."""
    said = "; ".join(f"{finding.label} {finding.probability:.3f}{' (called)' if finding.called else ''}" for finding in reading.findings)
    return f"{reading.model} {reading.version}: {said}"
