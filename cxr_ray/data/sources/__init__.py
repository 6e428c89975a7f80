"""Sources: one adapter a public layout, all giving the same rows; :func:`read_source` finds the adapter that fits.

=================== ==================================================================================
base                SourceRow, Source, SourceOptions; the listing and the collector all adapters use
tables, labelling   CSV tables; their label columns
class_folders       ``folder``: the folder's name is the class
csv_file            ``csv``: a row an image
kermany             ``kermany``: bacteria or virus from the file name
nih                 ``nih``: ChestX-ray14
chexpert            ``chexpert``: 1, 0, -1 and blank
covid_radiography   ``covid-radiography``: COVID-19 Radiography Database
mendeley            ``mendeley``: jctsfj2sfn
cohen               ``cohen``: covid-chestxray-dataset, Figure 1
dicom_folder        ``dicom``: DICOM files and a label CSV
=================== ==================================================================================
"""

from __future__ import annotations

from types import ModuleType

from cxr_ray import storage
from cxr_ray.data.sources import (
    chexpert,
    class_folders,
    cohen,
    covid_radiography,
    csv_file,
    dicom_folder,
    kermany,
    mendeley,
    nih,
    tables,
)
from cxr_ray.data.sources.base import TABLE_SUFFIXES, Folder, Source, SourceOptions, SourceRow, with_notes
from cxr_ray.errors import SourceError

__all__ = ["FORMATS", "Folder", "Source", "SourceOptions", "SourceRow", "list_images", "read_folder", "read_source"]

_SPECIFIC: tuple[ModuleType, ...] = (kermany, nih, chexpert, covid_radiography, mendeley, cohen)
"""Layouts of one public data set: where two of them fit, nobody but the user can say which."""
_GENERAL: tuple[ModuleType, ...] = (dicom_folder, csv_file, class_folders)
"""Layouts of anybody's data, the one that knows most of an image first: it wins."""

_ADAPTERS: dict[str, ModuleType] = {
    adapter.NAME: adapter for adapter in (class_folders, csv_file, kermany, nih, chexpert, covid_radiography, mendeley, cohen, dicom_folder)
}

FORMATS: tuple[str, ...] = tuple(_ADAPTERS)
"""What ``--format`` takes beside ``auto``."""


_DEFAULTS = SourceOptions()


def read_source(location: str, format: str = "auto", options: SourceOptions = _DEFAULTS) -> Source:
    """List a folder of X-rays and read its labels.

    Args:
        location: Folder or URI; or a CSV file, which is read as ``csv`` with paths relative to its folder.
        format: One of :data:`FORMATS`, or ``auto``: by look.
        options: Choices that the layout leaves open.

    Returns:
        The source; the first of its notes says which format it was read as, and why.

    Raises:
        SourceError: Nothing is there, no layout fits or several do, or no usable image is left. The message says what
            was seen.
    """
    if format != "auto" and format not in _ADAPTERS:
        raise SourceError(f"unknown format {format!r}", hint=f"auto, or one of {', '.join(FORMATS)}")
    if (split := _table_location(location)) is not None:
        location, name = split
        options = options.model_copy(update={"label_csv": name})
        format = csv_file.NAME if format == "auto" else format
    return read_folder(Folder.scan(location), format, options)


def read_folder(folder: Folder, format: str = "auto", options: SourceOptions = _DEFAULTS) -> Source:
    """:func:`read_source` for a folder that is already listed."""
    if format == "auto":
        name, why = _choose(folder, options)
    else:
        name, why = format, "as asked"
    source: Source = _ADAPTERS[name].read(folder, options)
    return with_notes(source, f"read as {name!r}: {why}")


def list_images(location: str) -> list[str]:
    """Locations of all files below ``location`` that may be images, whatever their labels.

    Raises:
        SourceError: Nothing is there.
    """
    folder = Folder.scan(location)
    return [folder.where(file) for file in folder.images]


def _choose(folder: Folder, options: SourceOptions) -> tuple[str, str]:
    """The format that fits, and why."""
    fits = [(adapter.NAME, why) for adapter in _SPECIFIC if (why := adapter.recognise(folder, options))]
    if len(fits) > 1:
        listed = "; ".join(f"{name} ({why})" for name, why in fits)
        raise SourceError(
            f"{folder.location} fits several formats: {listed}", hint=f"--format {' or --format '.join(name for name, _ in fits)}"
        )
    if fits:
        return fits[0]
    for adapter in _GENERAL:
        if why := adapter.recognise(folder, options):
            return adapter.NAME, why
    layouts = "".join(f"\n  {name}: {adapter.LAYOUT}" for name, adapter in _ADAPTERS.items())
    raise SourceError(
        f"{folder.location} has none of the layouts that are known. Seen: {folder.describe()} "
        f"(columns: {tables.describe(folder)}). Known:{layouts}",
        hint="the folder that holds the class folders or the table, or --format NAME to hear what is missing",
    )


def _table_location(location: str) -> tuple[str, str] | None:
    """(folder, name) where ``location`` is a table file.

    Raises:
        SourceError: It is another kind of file.
    """
    filesystem, path = storage.open_location(location)
    if not filesystem.get_file_info(path).is_file:
        return None
    base, mark, query = location.partition("?") if storage.is_uri(location) else (location, "", "")
    folder, slash, name = base.replace("\\", "/").rpartition("/")
    if not name.lower().endswith(TABLE_SUFFIXES):
        raise SourceError(f"{location} is a file; a source is a folder, or a CSV with a row an image", hint="the folder it stands in")
    return (folder + mark + query if slash else "."), name
