"""The page in a real browser: a photo and a video by mouse and by keyboard, on a desktop and on a phone."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.serving import SAMPLES, Service, running_service

CHROMIUM = shutil.which("chromium")
expect.set_options(timeout=60_000)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium (apt-get install chromium)")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=[(1280, 900, "light"), (390, 844, "dark")], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, service: Service) -> Iterator[Page]:
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    one = context.new_page()
    troubles: list[str] = []

    def note(message: ConsoleMessage) -> None:
        refused = "status of 422" in message.text  # the browser says so too
        if message.type in ("error", "warning") and not refused:
            troubles.append(message.text)

    one.on("console", note)
    one.on("pageerror", lambda error: troubles.append(str(error)))
    one.on(
        "request",
        lambda asked: None if asked.url.startswith((service.url, "blob:", "data:")) else troubles.append(asked.url),
    )
    one.goto(service.url)
    expect(one.locator("#models")).to_contain_text("attractiveness v1 · fs2k v1")
    yield one
    width_of_page = one.evaluate("() => document.documentElement.scrollWidth")
    context.close()
    assert width_of_page <= width, "the page scrolls sideways"
    assert troubles == []


def test_a_photo(page: Page) -> None:
    page.set_input_files("#file", SAMPLES / "face.jpg")
    expect(page.locator("#status")).to_have_text(re.compile(r"face\.jpg: answered in \d+ ms"))
    expect(page.locator("#canvas svg rect.box")).to_have_count(1)
    expect(page.locator("#canvas svg circle")).to_have_count(5)
    score = page.get_by_label("attractiveness", exact=True)
    expect(score.locator(".score b")).to_have_text(re.compile(r"^\d\d\.\d$"))
    expect(score.locator("rect.bar")).to_have_count(40)
    expect(page.get_by_label("fs2k", exact=True).locator("dt")).to_have_count(7)
    expect(score).to_contain_text("answered by champion version 1")
    face, canvas = page.locator("rect.box").bounding_box(), page.locator("#canvas").bounding_box()
    assert face is not None
    assert canvas is not None
    assert canvas["x"] < face["x"] < face["x"] + face["width"] < canvas["x"] + canvas["width"]


def test_a_video_by_keyboard(page: Page) -> None:
    page.get_by_role("button", name="a video", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("reel.mp4: answered in", timeout=60_000)
    points = page.locator("#timeline .point")
    expect(points).to_have_count(5)  # frames 0, 50, … 200 of 240
    points.nth(2).focus()
    page.keyboard.press("Enter")
    expect(points.nth(2)).to_have_class(re.compile("chosen"))
    assert page.evaluate("() => document.querySelector('video').currentTime") == pytest.approx(100 / 25, abs=0.1)
    expect(page.locator("#canvas svg rect.box")).to_have_count(1)


def test_what_was_chosen_before_the_video_has_loaded_stays(page: Page) -> None:
    page.add_init_script(
        "addEventListener('loadeddata', event => { if (!window.late) event.stopImmediatePropagation(); }, true)"
    )
    page.reload()
    page.get_by_role("button", name="a video", exact=True).click()
    chosen = page.locator("#timeline .point").nth(2)
    chosen.focus()
    page.evaluate(
        "() => { window.late = true; document.querySelector('video').dispatchEvent(new Event('loadeddata')); }"
    )
    expect(chosen).to_have_class(re.compile("chosen"))
    expect(page.locator("#timeline .chosen")).to_have_count(1)
    expect(page.locator("#canvas svg rect.box")).to_have_count(1)


def test_two_faces_and_a_refusal(page: Page, tmp_path: Path) -> None:
    page.locator("summary", has_text="API key and choices").click()
    page.select_option("#people", "abstain")
    page.get_by_role("button", name="two faces").click()
    expect(page.locator("#status")).to_contain_text("two-faces.jpg: answered in")
    expect(page.locator(".abstained").first).to_contain_text("several people")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((SAMPLES / "face.jpg").read_bytes()[:5_000])
    page.set_input_files("#file", broken)
    expect(page.locator("#status")).to_contain_text("(truncated)")
    expect(page.locator("#result")).to_be_hidden()
