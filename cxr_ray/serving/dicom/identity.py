"""Whose image it is: the elements of a DICOM file that tie an answer to its patient and study.

Source: DICOM PS3.3 C.7.1.1 (Patient), C.7.2.1 (General Study), C.7.2.2 (Patient Study). Decided here:

- The file is read by ``imaging.dicom_header``, within its bounds, and never by pydicom, which untrusted bytes can keep busy for minutes.
- Values are copied byte for byte, with Specific Character Set, and never decoded: what goes back is what the archive already has, and no
  fault of an encoding can put a name into a warning. For the same reason highdicom never sees them (it logs odd names in full).
- Not copied: sequences (other patient IDs, issuers with qualifiers), and Timezone Offset From UTC, which would move our own times.
- Nothing of it is logged, and ``repr`` shows nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pydicom.charset import convert_encodings, default_encoding, python_encoding
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from cxr_ray.errors import ImageError
from cxr_ray.imaging.decode import sniff
from cxr_ray.imaging.dicom_header import read_dicom

IMAGE_CLASSES: Final = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
"""SOP classes whose images are answered: plain radiographs, and films photographed into secondary captures."""

_COPIED: Final = (
    "SpecificCharacterSet",
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight"),
    *("PatientIdentityRemoved", "DeidentificationMethod"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber", "StudyDescription"),
)
_NEEDED: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_OTHERS: Final = ("InstanceNumber", "BurnedInAnnotation")
_MAX_BYTES: Final = 1024
"""Of one value: three times 64 characters (VR PN) of up to five bytes."""
_UID: Final = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")


@dataclass(frozen=True, slots=True)
class Identity:
    """What an answer takes over from its image, and how it refers to it.

    Args:
        sop_class: Of the image, one of ``IMAGE_CLASSES``.
        instance: Its SOP Instance UID.
        series: Its Series Instance UID.
        study: Its Study Instance UID.
        number: Its Instance Number, at least 1 (1 where it has none).
        burned_in: Its Burned In Annotation: ``YES``, ``NO``, or empty where the file does not say.
        copied: Tag -> bytes as they stand in the file.
    """

    sop_class: str
    instance: str = field(repr=False)
    series: str = field(repr=False)
    study: str = field(repr=False)
    number: int
    burned_in: str
    copied: Mapping[int, bytes] = field(repr=False)

    def reference(self) -> Dataset:
        """The image as highdicom wants it, to refer to: its UIDs, and of the patient nothing."""
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = self.sop_class, self.instance
        image.StudyInstanceUID, image.SeriesInstanceUID = self.study, self.series
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            setattr(image, keyword, "")
        image.StudyDate = image.StudyTime = None
        return image

    def stamp(self, answer: Dataset) -> None:
        """Give ``answer`` the patient and the study of the image; last, for nothing may read it afterwards but what writes it."""
        for tag, raw in self.copied.items():
            value = raw + b" " * (len(raw) % 2)
            answer[tag] = RawDataElement(Tag(tag), dictionary_VR(tag), len(value), value, 0, False, True)
        written_as(answer, ExplicitVRLittleEndian)

    def derive(self, *what: str, of: str) -> UID:
        """A UID that follows from ``of`` (a UID of the image) and ``what``: the same question has the same answer object.

        A digest (PS3.5 B): the UID it was made from cannot be read off it.
        """
        return generate_uid(entropy_srcs=["cxr_ray", of, *(hashlib.sha256(part.encode()).hexdigest() for part in what)])


def written_as(answer: Dataset, syntax: UID) -> None:
    """Have pydicom write a stamped object in this uncompressed transfer syntax with the copied values as they are, unparsed.

    It does so where it believes that the object was read in the encoding it is written in.
    """
    terms = answer.get("SpecificCharacterSet")
    encodings = convert_encodings(terms) if terms else default_encoding
    answer.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian, encodings)


def read_identity(data: bytes) -> Identity:
    """Find the elements in a DICOM file.

    Raises:
        ImageError: ``not-dicom``, ``unsupported-class``, ``no-identity`` (the message names the elements, never their values), or as
            :func:`~cxr_ray.imaging.dicom_header.read_dicom`.
    """
    if sniff(data) != "dicom":
        raise ImageError("not-dicom", "an answer can go back to a study only where the image is a DICOM")
    tags = {keyword: _tag(keyword) for keyword in (*_COPIED, *_NEEDED, *_OTHERS)}
    elements = read_dicom(data, frozenset(tags.values())).elements
    copied = {tags[keyword]: elements.raw(tags[keyword]) for keyword in _COPIED if tags[keyword] in elements}
    uids = {keyword: elements.text(tags[keyword]) for keyword in _NEEDED}
    faults = [keyword for keyword, uid in uids.items() if not _UID.fullmatch(uid)]
    faults += [keyword_for_tag(tag) for tag, raw in copied.items() if len(raw) > _MAX_BYTES]
    charset = elements.raw(tags["SpecificCharacterSet"])
    if any(term.strip(b" \0").decode("latin-1") not in python_encoding for term in charset.split(b"\\")):
        faults.append("SpecificCharacterSet")
    if faults:
        raise ImageError("no-identity", f"the DICOM lacks what ties an answer to its study: {', '.join(faults)} absent or not valid")
    if uids["SOPClassUID"] not in IMAGE_CLASSES:
        raise ImageError("unsupported-class", "the DICOM is no CR, DX or secondary capture image")
    number, burned_in = elements.decimal(tags["InstanceNumber"]) or 1, elements.text(tags["BurnedInAnnotation"])
    return Identity(
        sop_class=uids["SOPClassUID"],
        instance=uids["SOPInstanceUID"],
        series=uids["SeriesInstanceUID"],
        study=uids["StudyInstanceUID"],
        number=int(number) if 1 <= number < 2**31 else 1,
        burned_in=burned_in if burned_in in {"YES", "NO"} else "",
        copied=copied,
    )


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return tag
