"""The static site in a real browser, from files, without a server and without a network."""

from __future__ import annotations

import sys

import lab
import pytest

sys.path.insert(0, str(lab.ROOT / "notebooks"))

import build  # noqa: E402
import publish  # noqa: E402

WIDTHS = {"laptop": 1280, "projector": 1024, "phone": 390}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    publish.site(folder)
    return folder


@pytest.fixture
def page(opened):
    found = opened.new_page()
    found.troubles = []
    found.on("console", lambda message: found.troubles.append(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: found.troubles.append(str(error)))
    found.on("request", lambda request: request.url.startswith("http") and found.troubles.append(f"asks {request.url}"))
    yield found
    found.close()


def test_every_notebook_has_a_page_and_every_link_resolves(site):
    names = {path.stem for path in publish.pages(site)}
    assert names >= set(build.names()) | {"index"}
    assert publish.broken_links(site) == []


def test_every_page_loads_at_every_width_without_an_error_or_a_request(site, page):
    for name, width in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": 800})
        for path in publish.pages(site):
            page.goto(path.as_uri(), wait_until="load")
            overflow = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert overflow <= 0, f"{path.name} is {overflow} px too wide for a {name}"
    assert page.troubles == []


def test_formulae_are_rendered_offline(site, page):
    for name in build.names():
        page.goto((site / "notebooks" / f"{name}.html").as_uri())
        page.wait_for_function("() => [...document.querySelectorAll('.math')].every(m => m.querySelector('mjx-container'))", timeout=30_000)
        assert page.locator("[data-mjx-error], mjx-merror").count() == 0, name
    page.goto((site / "notebooks" / "02_pseudo_labels.html").as_uri())
    page.wait_for_selector("mjx-container")  # there are some
    assert page.troubles == []


def test_the_search_finds_a_word_from_a_file(site, page):
    page.goto((site / "search.html").as_uri() + "?q=reciprocal")
    page.locator("#search-results li a", has_text="Pseudo-labels").first.wait_for(timeout=30_000)
    assert page.troubles == []


def test_one_walks_through_the_course_by_next(site, page):
    page.goto((site / "index.html").as_uri())
    for name in build.names():
        page.locator("a.right-next").first.click()
        assert page.url.endswith(f"{name}.html")
    assert page.troubles == []


def test_a_solution_is_folded_and_opens(site, page):
    page.goto((site / "notebooks" / "02_pseudo_labels.html").as_uri())
    fold = page.locator("main details", has_text="Solution").first
    code = fold.locator("pre").first
    assert not code.is_visible()
    fold.locator("summary").click()
    assert code.is_visible()


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decks")
    publish.slides(folder)
    return folder


def test_every_deck_opens_fits_its_slides_and_walks_to_its_end(decks, page):
    page.set_viewport_size({"width": 1280, "height": 720})
    for name in build.names():
        page.goto((decks / f"{name}.html").as_uri())
        page.wait_for_selector("body.ready", timeout=60_000)
        slides = page.evaluate("() => Reveal.getTotalSlides()")
        for _ in range(slides + 40):  # fragments are steps, too
            page.keyboard.press("ArrowRight")
        assert page.evaluate("() => Reveal.isLastSlide()"), name
        assert page.evaluate("() => [...document.querySelectorAll('section[data-size]')].every(s => s.dataset.size >= 0.6)"), name
    assert page.troubles == []
