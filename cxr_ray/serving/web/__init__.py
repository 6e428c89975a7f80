"""The page at ``/``: plain files, no build step, nothing from outside. What it asks for is the service's own ``/v1`` routes."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI, HTTPException
from fastapi.responses import Response

from cxr_ray.serving.schema import Refusal

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".dcm": "application/dicom",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every file: scripts and styles from this service alone, none in the markup, and no markup made from text."""


def mount(api: FastAPI) -> None:
    """Add the page to a service: ``/``, its files below ``/web/``, and synthetic samples below ``/v1/samples``.

    An unknown name raises FastAPI's 404, for the service to answer in its own words.
    """
    static, samples = _folder("static"), _folder("samples")

    @api.get("/", include_in_schema=False)
    async def page() -> Response:
        return static["index.html"]

    @api.get("/web/{name}", include_in_schema=False)
    async def static_file(name: str) -> Response:
        return _known(static, name)

    @api.get("/v1/samples", tags=["samples"])
    async def sample_names() -> list[str]:
        """Names of the bundled samples. All are synthetic: drawn by a program, of nobody."""
        return list(samples)

    @api.get("/v1/samples/{name}", tags=["samples"], response_class=Response, responses={404: {"model": Refusal}})
    async def sample(name: str) -> Response:
        """One sample, as a file to send to ``/v1/predict``."""
        return _known(samples, name)


def _folder(name: str) -> dict[str, Response]:
    """Every file of a folder of this package, read once, by name."""
    found = sorted((files(__package__) / name).iterdir(), key=lambda path: path.name)
    return {
        path.name: Response(path.read_bytes(), media_type=_TYPES["." + path.name.rpartition(".")[2]], headers=HEADERS) for path in found
    }


def _known(folder: dict[str, Response], name: str) -> Response:
    if name not in folder:
        raise HTTPException(404)
    return folder[name]
