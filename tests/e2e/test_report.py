"""The whole report in a real browser: opened from a file without a network, nothing asked for, nothing that axe calls serious.

``CXR_RAY_REPORT`` names another REPORT to look at; with ``CXR_RAY_SCREENSHOTS=1`` it becomes docs/screenshots/report.png and claim.png.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SCREENSHOTS = Path(__file__).parents[2] / "docs" / "screenshots"


@pytest.fixture
def report(tmp_path: Path, bundle: Any, write_noise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A REPORT of a tiny model on noise, or the one that was named."""
    if os.environ.get("CXR_RAY_REPORT"):
        return Path(os.environ["CXR_RAY_REPORT"])
    from cxr_ray.evaluation.evaluate import subject_of_bundle
    from cxr_ray.evidence import embedding
    from cxr_ray.evidence.facts import Known
    from cxr_ray.evidence.report import write_report
    from cxr_ray.labels import LabelSet

    monkeypatch.setattr(embedding, "find_spec", lambda name: None)  # UMAP compiles for half a minute
    dataset = write_noise(tmp_path / "data", LabelSet(("covid", "normal"), "multiclass"), {"test": 24}, size=32)
    known = Known("tiny", dataset.manifest, "test", bundle.manifest)
    write_report(subject_of_bundle(bundle), dataset, str(tmp_path / "report"), known, resamples=100, method="gradcam")
    return tmp_path / "report"


@pytest.mark.parametrize("width", [1100, 390])
def test_it_opens_offline_and_axe_finds_nothing_serious(report: Path, chromium: Any, axe: str, width: int) -> None:
    for name in ("report.html", "checklists/claim.html", "checklists/tripod-ai.html"):
        size = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": width < 500}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.execute_cdp_cmd("Network.enable", {})
        nothing = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        chromium.execute_cdp_cmd("Network.emulateNetworkConditions", nothing)
        chromium.get((report / name).resolve().as_uri())
        asked = chromium.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert [address for address in asked if not address.startswith("data:")] == []
        broken = chromium.execute_script("return [...document.images].filter(image => !image.naturalWidth).length")
        assert broken == 0
        wide = chromium.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{name} is wider than a screen of {width} pixels"
        chromium.execute_script(axe)
        found = chromium.execute_async_script("axe.run().then(arguments[0])")["violations"]
        assert [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found if one["impact"] in ("serious", "critical")] == []
        if os.environ.get("CXR_RAY_SCREENSHOTS") and os.environ.get("CXR_RAY_REPORT") and width == 1100 and "tripod" not in name:
            save(chromium, Path(name).stem)
    again = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    chromium.execute_cdp_cmd("Network.emulateNetworkConditions", again)


def save(browser: Any, name: str) -> None:
    """The first 2,200 pixels of the page."""
    clip = {"x": 0, "y": 0, "width": 1100, "height": 2200, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("P", palette=Image.Palette.ADAPTIVE, colors=128)
    picture.save(SCREENSHOTS / f"{name}.png", optimize=True)
