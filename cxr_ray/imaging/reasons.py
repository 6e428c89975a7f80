"""Why one image cannot be used: the stable codes of ``ImageError.reason`` and the sentence a person reads for each.

The codes go to ``quarantine.csv`` and to clients of the service, so they are part of the interface: add, do not rename.
No sentence holds a file name, a header value or the text of a foreign exception (DESIGN, "Safety").
"""

from __future__ import annotations

from typing import Final, Literal

from cxr_ray.errors import ImageError

Reason = Literal[
    "empty",
    "too-large",
    "too-many-pixels",
    "too-complex",
    "not-an-image",
    "unsupported-format",
    "polyglot",
    "truncated",
    "corrupt",
    "animated",
    "multi-frame",
    "deflated",
    "dicomdir",
    "encapsulated-document",
    "nested-too-deep",
    "no-pixels",
    "wrong-pixel-length",
    "unsupported-pixels",
    "unsupported-codec",
    "codec-not-installed",
]

REASONS: Final[dict[Reason, str]] = {
    "empty": "the file is empty",
    "too-large": "the file has more bytes than are accepted",
    "too-many-pixels": "the picture has more pixels than are accepted",
    "too-complex": "the file would need more work or memory to read than a picture of its size can justify",
    "not-an-image": "the content is not PNG, JPEG or DICOM, whatever the file is called",
    "unsupported-format": "the content is of another format; PNG, JPEG and DICOM are accepted",
    "polyglot": "the file is a DICOM and something else at once",
    "truncated": "the file ends before the picture does",
    "corrupt": "the file is damaged: its structure or its compressed pixels cannot be read",
    "animated": "the PNG is animated; one still picture was expected",
    "multi-frame": "the DICOM holds several frames; one was expected",
    "deflated": "the DICOM is deflated, which is refused before it is inflated",
    "dicomdir": "the file is a DICOMDIR, a table of contents without a picture",
    "encapsulated-document": "the DICOM holds a document (PDF, CDA, STL ...), not a picture",
    "nested-too-deep": "the DICOM nests sequences deeper than any real header does",
    "no-pixels": "the DICOM lacks Rows, Columns or Pixel Data",
    "wrong-pixel-length": "the length of Pixel Data is not what Rows, Columns and the bit depth ask for",
    "unsupported-pixels": "pixels are stored in a way that is not read (8-16 bit grey, or 8 bit RGB or YBR colour, were expected)",
    "unsupported-codec": "pixels are compressed in a way that is not read",
    "codec-not-installed": "the decoder for this compression is not installed; 'cxr-ray doctor' lists the codecs",
}


def refuse(reason: Reason) -> ImageError:
    """The error to raise for ``reason``."""
    return ImageError(reason, REASONS[reason])
