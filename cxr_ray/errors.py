"""Every exception a user can meet. Each says what came, what was expected, and what to type instead.

The command line turns a :class:`CxrRayError` into one message on stderr and exit code 2 ("the user can mend it");
anything else is our bug and ends with exit code 1.
"""

from __future__ import annotations

from collections.abc import Sequence


class CxrRayError(Exception):
    """Base of all errors that the user can mend.

    Args:
        message: What came and what was expected.
        hint: What to type or do instead; shown on its own line.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  try: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments survive pickling between Ray processes
        return _rebuild, (type(self), self.__dict__)


def _rebuild(kind: type[CxrRayError], state: dict[str, object]) -> CxrRayError:
    error = kind.__new__(kind)
    Exception.__init__(error, state["message"], state["hint"])
    error.__dict__.update(state)
    return error


class ConfigError(CxrRayError):
    """A setting is unknown or out of range.

    Args:
        faults: All faults of the file at once, each ``key: what is wrong``.
        where: The file or argument they stand in.
    """

    def __init__(self, faults: Sequence[str], *, where: str, hint: str | None = None) -> None:
        self.faults = tuple(faults)
        self.where = where
        lines = "".join(f"\n  - {fault}" for fault in self.faults)
        super().__init__(f"{where}: {len(self.faults)} fault(s){lines}", hint=hint)


class SourceError(CxrRayError):
    """A folder of images cannot be read as the layout it was said, or looks, to be."""


class DatasetError(CxrRayError):
    """A DATASET is missing, incomplete, of another schema, or does not fit the request."""


class ImageError(CxrRayError):
    """One image cannot be used. Never fatal for a batch: the caller sets the image aside with the reason.

    Args:
        reason: A short stable code (``truncated``, ``not-an-image``, ``too-large`` …) safe to log and to send to a client.
        message: The sentence for a person. Holds no file name, no header value and no text of a foreign exception.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ModelError(CxrRayError):
    """A network cannot be built as asked, or weights do not fit it."""


class BundleError(CxrRayError):
    """A BUNDLE is missing, torn, of another schema, or asks for preprocessing this version cannot do."""


class RunError(CxrRayError):
    """A RUN cannot be started, resumed or read."""


class RunBusyError(RunError):
    """Another driver holds the RUN."""


class ClusterError(CxrRayError):
    """Ray cannot be reached, or can never give the resources that were asked for."""


class RolloutError(CxrRayError):
    """A rollout cannot be started or changed as asked."""


class StorageError(CxrRayError):
    """A path or URI cannot be read or written."""
