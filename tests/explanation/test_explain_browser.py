"""The page of an explanation in a real browser: two widths, both themes; no console line, nothing cut off."""

from __future__ import annotations

import shutil

import pytest

from moe_atlas.explanation import html
from scripts import docs_images

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
        )
        yield started
        started.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_and_hostile_documents_do_nothing(hostile, browser, tmp_path, width, theme):
    file = tmp_path / "page.html"
    file.write_text(html.page(hostile), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append("dialog"))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None
    )
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".passage").count() == 10
    box = page.locator(".passage").first.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    shades = {
        page.locator(f".{name}").first.evaluate("e => getComputedStyle(e).backgroundColor")
        for name in ("w1", "w4", "b4")
        if page.locator(f".{name}").count()
    }
    assert len(shades) >= 2
    assert said == []
    for shot in docs_images.SHOTS:
        if shot.page == "explained":
            assert page.locator(shot.end).count() >= 1
            assert shot.begin is None or page.locator(shot.begin).count() == 1
    page.close()
