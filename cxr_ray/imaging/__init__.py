"""bytes -> uint8 grey image: the one path that ingest and serving share.

========== ==================================================================================
decode     bytes -> :class:`DecodedImage` behind :class:`Limits`, or an ``ImageError`` with a reason
preprocess :class:`PreprocessSpec` and its fingerprint; :func:`load_image`, the whole path
reasons    the stable codes of what is refused, and what each says
picture    the limits and the decoded image
png jpeg   walked here, decoded by Pillow
exif       which way up
dicom      the standard's rules; ``dicom_header`` finds elements, ``frames`` and ``codec_child``
           decode pixels, ``grey`` makes them grey
========== ==================================================================================
"""

from cxr_ray.imaging.picture import DecodedImage, Limits
from cxr_ray.imaging.preprocess import PreprocessSpec, load_image

__all__ = ["DecodedImage", "Limits", "PreprocessSpec", "load_image"]
