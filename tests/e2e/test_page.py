"""The page in a real browser: what a person does with it, by mouse, by keyboard, on a phone. The service's answers are made up."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_driver import Condition, Page, watched
from PIL import Image

FINDINGS = {"effusion": 0.72, "edema": 0.51, "consolidation": 0.33, "cardiomegaly": 0.0003, "nodule": 0.22}
THRESHOLDS = {"effusion": 0.41, "edema": 0.35, "consolidation": 0.5, "cardiomegaly": 0.3, "nodule": 0.38}


@pytest.fixture
def page(chromium: Any, service: Any, eventually: Callable[[Condition], Any]) -> Iterator[Page]:
    """The page, not opened yet."""
    with watched(chromium, service, eventually) as opened:
        yield opened


@pytest.fixture
def write(tmp_path: Path, samples: dict[str, bytes]) -> Callable[[str, str], Path]:
    """``write("a.png", "phantom-normal.png")``: a file of that name with that sample's bytes."""

    def wrote(name: str, sample: str) -> Path:
        path = tmp_path / name
        path.write_bytes(samples[sample])
        return path

    return wrote


def test_the_empty_page_says_what_it_is_and_is_not(page: Page) -> None:
    page.open()
    assert "Not a medical device" in page.text(".warning")
    assert "synthetic" in page.text("#samples")
    assert page.text("#model") == "cnn-lstm 3f9a1c0b77de"
    assert page.one("#models").is_displayed() is False  # there is one
    assert page.all("#study")[0].is_displayed() is False


def test_an_uploaded_image_is_answered_with_bars_and_a_heat_map(page: Page, write: Any, samples: dict[str, bytes]) -> None:
    page.open().upload(write("DOE^JOHN.jpg", "phantom-pneumonia.jpg"))
    page.sees(".call", "pneumonia")
    assert page.text(".bar.called") == "pneumonia called 83.2 %"
    assert [page.text(f".bar:nth-of-type({place}) .value") for place in (1, 2, 3)] == ["83.2 %", "12.7 %", "4.1 %"]
    widths = [bar.size["width"] for bar in page.all(".fill")]
    assert widths[0] / page.one(".track").size["width"] == pytest.approx(0.832, abs=0.01)
    page.sees("#heat-note", "for pneumonia:")
    assert page.pixels()[1] > 3
    assert page.service.bodies[0] == samples["phantom-pneumonia.jpg"]
    assert "DOE" not in str(page.service.headers)
    page.slide("opacity", 0)
    assert page.pixels()[1] == 0


def test_a_multilabel_answer_shows_each_operating_point(page: Page) -> None:
    page.service.find(FINDINGS, THRESHOLDS)
    page.open().sample("normal")
    page.sees(".call", "effusion, edema")
    track, tick = page.one(".track"), page.one(".tick")
    place = (tick.rect["x"] + tick.rect["width"] / 2 - track.rect["x"]) / track.rect["width"]
    assert place == pytest.approx(THRESHOLDS["effusion"], abs=0.01)
    assert page.text(".bar:nth-of-type(4)") == "cardiomegaly called from 30.0 % < 0.1 %"
    assert len(page.all(".bar.called")) == 2
    page.service.probabilities = dict.fromkeys(FINDINGS, 0.01)
    page.sample("covid")
    page.sees(".call", "Nothing called")


def test_another_label_has_another_heat_map(page: Page) -> None:
    page.open().sample("pneumonia")
    page.sees("#heat-note", "for pneumonia:")
    before = page.pixels()
    page.one(".bar:nth-of-type(2) input").click()
    page.sees("#heat-note", "for covid:")
    assert page.pixels() != before


def test_another_method_has_another_heat_map_also_for_the_next_image(page: Page) -> None:
    page.open().sample("pneumonia")
    page.sees("#heat-note", "for pneumonia:")
    before = page.pixels()
    page.choose("#method", "integrated")
    page.sees("#heat-note", "for pneumonia:")
    assert page.pixels()[1] < before[1]
    page.sample("normal")
    page.sees("#heat-note", "for pneumonia:")
    assert page.one("#method").get_attribute("value") == "integrated"
    page.choose("#method", "gradcam")
    page.sees("#heat-note", "for pneumonia:")
    assert page.pixels()[1] == pytest.approx(before[1], rel=0.1)


def test_a_service_of_several_models_lets_one_choose(page: Page) -> None:
    page.service.others["croup"] = page.service.info.model_copy(update={"name": "croup", "version": "c0ffee"})
    page.open().sample("normal")
    page.sees(".call", "pneumonia")
    assert [option.text for option in page.all("#models option")] == ["cnn-lstm 3f9a1c0b77de", "croup c0ffee"]
    page.choose("#models select", "croup")
    page.sees(".call", "covid")
    page.sees("#model", "croup c0ffee")
    page.sees("#heat-note", "for covid:")
    page.choose("#models select", "cnn-lstm")
    page.sees(".call", "pneumonia")


def test_a_heat_map_that_fails_leaves_the_answer(page: Page) -> None:
    page.service.explains = False
    page.open().sample("covid")
    page.sees("#heat-note", "No heat map for pneumonia: No heat map today.")
    assert "pneumonia" in page.text(".call")
    assert page.one("#opacity").is_enabled() is False
    assert page.pixels()[0] > 20  # the browser's own reading of the JPEG


def test_a_dicom_is_shown_as_the_model_saw_it(page: Page, write: Any) -> None:
    page.open().upload(write("film.dcm", "phantom-pneumonia.dcm"))
    page.sees("#heat-note", "for pneumonia:")
    assert page.pixels()[0] > 20
    assert page.one("[name=source][value=original]").is_enabled() is False
    assert page.one("[name=source][value=model]").is_selected()


def test_window_and_level_change_the_picture(page: Page) -> None:
    from selenium.webdriver import ActionChains

    page.open().sample("normal")
    page.sees("#heat-note", "for pneumonia:")
    page.slide("opacity", 0)
    plain = page.pixels()[0]
    ActionChains(page.browser).click_and_hold(page.one("#canvas")).move_by_offset(0, -60).release().perform()
    page.sees("output[for=level]", "188")
    assert page.pixels()[0] < plain - 20
    page.one("#reset").click()
    assert page.pixels()[0] == pytest.approx(plain)
    page.one("#invert").click()
    assert page.pixels()[0] == pytest.approx(255 - plain, abs=1)


def test_a_batch_becomes_a_table_and_a_csv_file(page: Page, write: Any, tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("no image at all")
    hostile = "=<img src=x onerror=alert(1)>.png"
    page.open().upload(
        write("one.png", "phantom-normal.png"), write("two.dcm", "phantom-pneumonia.dcm"), text, write(hostile, "phantom-normal.png")
    )
    page.sees("#tally", "3 answered, 1 refused")
    assert page.text("#worklist tbody tr:nth-child(1)").startswith("one.png pneumonia 83.2 % passed")
    assert "refused: The content is not PNG, JPEG or DICOM" in page.text("#worklist tbody tr:nth-child(3)")
    assert hostile in page.text("#worklist tbody tr:nth-child(4)")
    page.all("#worklist tbody button")[1].click()
    page.sees(".file", "two.dcm")
    assert page.one("#worklist tbody tr:nth-child(2)").get_attribute("aria-current") == "true"
    page.one("#csv").click()
    saved = page.browser.downloads / "cxr_ray.csv"
    page.eventually(saved.is_file)
    rows = list(csv.DictReader(io.StringIO(saved.read_text())))
    saved.unlink()
    assert [row["file"] for row in rows] == ["one.png", "two.dcm", "notes.png", f"'{hostile}"]
    assert [row["labels"] for row in rows] == ["pneumonia", "pneumonia", "", "pneumonia"]
    assert [row["error"] for row in rows] == ["", "", "not-an-image", ""]
    assert [row["p_covid"] for row in rows] == ["0.127", "0.127", "", "0.127"]
    assert [row["gate"] for row in rows] == ["ok", "ok", "", "ok"]
    page.one("#clear").click()
    page.eventually(lambda: not page.one("#worklist").is_displayed())


def test_a_refusal_says_why_and_can_be_overruled(page: Page, write: Any) -> None:
    page.service.turned = True
    turned = write("turned.png", "phantom-normal.png")
    Image.open(turned).rotate(90, expand=True).save(turned)
    page.open().upload(turned)
    page.sees("#result .notice", "Refused: not upright The image looks turned by 90° to the left. Answer all the same")
    page.sees(".checks", "upright The image looks turned by 90° to the left. refused 0.997 0.5")
    page.one("#result .notice button").click()
    page.sees(".call", "pneumonia")
    assert "Read with care" in page.text("#result .notice")


def test_a_busy_service_is_asked_again(page: Page) -> None:
    page.service.statuses = [429, 429]
    page.open().sample("normal")
    page.sees("#result", "busy; asking again in 1 s")
    page.sees(".call", "pneumonia")
    assert page.service.statuses == []


def test_a_key_that_is_no_longer_good_is_named(page: Page) -> None:
    page.service.statuses = [401]
    page.open().sample("normal")
    page.sees("#result .notice", "does not accept the key")


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_failure_can_be_tried_again(page: Page, status: int) -> None:
    page.service.statuses = [status]
    page.open().sample("normal")
    page.sees("#result .notice", "No answer The service is at fault. Try again")
    page.one("#result .notice button").click()
    page.sees(".call", "pneumonia")


def test_a_service_that_is_gone_is_said_to_be(page: Page, write: Any) -> None:
    page.open()
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.browser.execute_cdp_cmd("Network.enable", {})
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**conditions, "offline": True})
    page.upload(write("one.png", "phantom-normal.png"))
    page.sees("#result .notice", "cannot be reached")
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**conditions, "offline": False})
    page.one("#result .notice button").click()
    page.sees(".call", "pneumonia")


def test_too_large_a_file_is_not_sent(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "large.dcm"
    path.write_bytes(bytes(20 * 2**20 + 1))
    page.open().upload(path)
    page.sees("#result .notice", "larger than the service takes")
    assert page.service.bodies == []


def test_while_an_answer_is_on_its_way_the_page_says_so(page: Page) -> None:
    page.service.held = True
    page.open().sample("covid")
    page.sees("#result", "Asking the model")
    assert page.one("#result").get_attribute("aria-busy") == "true"
    page.service.held = False
    page.sees(".call", "pneumonia")
    assert page.one("#result").get_attribute("aria-busy") == "false"
    page.sees("#status", "phantom-covid.jpg: pneumonia called.")


def test_everything_can_be_done_from_the_keyboard(page: Page) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(page.browser).send_keys(*keys).perform()

    def tab_to(condition: Condition) -> None:
        for _ in range(40):
            press(Keys.TAB)
            if condition():
                outline = page.browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
                hidden = page.browser.execute_script("return document.activeElement.matches('.hidden, [type=radio]')")
                assert hidden or outline == "solid", "the focus cannot be seen"
                return
        raise AssertionError("the keyboard does not get there")

    def focused() -> Any:
        return page.browser.switch_to.active_element

    page.open()
    tab_to(lambda: focused().get_attribute("id") == "theme")
    tab_to(lambda: focused().get_attribute("id") == "files")
    tab_to(lambda: "covid" in focused().text)
    press(Keys.ENTER)
    page.sees("#heat-note", "for pneumonia:")
    tab_to(lambda: focused().get_attribute("id") == "stage")
    press("h")
    page.sees("output[for=opacity]", "0 %")
    press("h", Keys.ARROW_UP, Keys.ARROW_RIGHT, "i")
    page.sees("output[for=opacity]", "60 %")
    page.sees("output[for=level]", "136")
    page.sees("output[for=width]", "264")
    assert page.one("#invert").get_attribute("aria-pressed") == "true"
    press("r")
    page.sees("output[for=level]", "128")
    tab_to(lambda: focused().get_attribute("name") == "label")
    press(Keys.ARROW_DOWN)
    page.sees("#heat-note", "for covid:")
    assert focused().get_attribute("value") == "covid"
    tab_to(lambda: focused().text.startswith("Input check"))
    press(Keys.ENTER)
    page.sees(".checks table", "upright")


def test_dark_follows_the_system_until_it_is_chosen(page: Page) -> None:
    def paper() -> str:
        return str(page.browser.execute_script("return getComputedStyle(document.body).backgroundColor"))

    light = page.open(scheme="light") and paper()
    dark = page.open(scheme="dark") and paper()
    assert light != dark
    assert page.one("#theme").get_attribute("aria-pressed") == "true"
    page.one("#theme").click()
    assert paper() == light
    page.browser.refresh()
    assert paper() == light
    page.one("#theme").click()
    assert paper() == dark
    page.prefer("light")
    assert paper() == light  # the choice was the system's again, and is forgotten


def test_a_phone_is_wide_enough(page: Page, write: Any) -> None:
    page.service.find(FINDINGS, THRESHOLDS)
    page.open(width=390, height=844)
    assert page.overflow() == 0
    page.upload(write("a-rather-long-name-" * 6 + ".png", "phantom-normal.png"), write("two.jpg", "phantom-covid.jpg"))
    page.sees("#tally", "2 answered")
    page.sees("#heat-note", "for effusion:")
    page.browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    assert page.overflow() == 0


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, axe: str, write: Any, scheme: str, width: int) -> None:
    def check(state: str) -> None:
        page.browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
        found = page.browser.execute_async_script("axe.run().then(arguments[0])")["violations"]
        assert [f"{state}: {finding['id']}: {node['html'][:120]}" for finding in found for node in finding["nodes"]] == []

    page.service.find(FINDINGS, THRESHOLDS)
    page.open(width=width, scheme=scheme)
    page.browser.execute_script(axe)
    check("empty")
    page.upload(write("one.png", "phantom-normal.png"))
    page.sees("#heat-note", "for effusion:")
    check("answer")
    page.service.turned = True
    page.upload(write("two.png", "phantom-normal.png"), write("three.dcm", "phantom-pneumonia.dcm"))
    page.sees("#tally", "1 answered, 2 refused")
    page.sees("#result .notice.bad", "Refused")
    check("refusal")
    page.service.statuses = [500]
    page.upload(write("four.png", "phantom-normal.png"))
    page.sees("#result .notice", "No answer")
    check("failure")
    if width > 500 and scheme == "dark":
        page.service.turned = False
        page.upload(write("five.jpg", "phantom-covid.jpg"))
        page.sees("#heat-note", "for effusion:")
        page.browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = false; scrollTo(0, 0)")
        page.keep("dark")
