"""The page in headless Chromium: it renders, filters, asks for nothing, and reads without the pictures."""

import itertools
import json
import shutil

import numpy as np
import pytest
from page_test import NASTY, data_of, scored

from jaxmlic.cli import main as cli
from jaxmlic.reports.page import gallery

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page of two runs with names that look like HTML; the first has label vectors, a photograph, and its maps."""
    folder = tmp_path_factory.mktemp("page")
    names = [*NASTY, "dog", "cat", "2007"]
    files = [scored(folder / f"{name}.npz", names, seed=k, count=60) for k, name in enumerate(["one", "two <i>"])]
    path = folder / "report.html"
    assert cli.run(["report", *files, f"--out={path}"]) == 0
    data, page = data_of(path)
    first = data["runs"][0]
    close = {"x": [0, 0.01, 0, 0.01, 0.02, 0.5, 1], "y": [0, 0, 0.01, 0.01, 0, 0.5, 1]}  # names would cover one another
    first["embeddings"] = {"classifier": {**close, "caption": "PCA"}}
    image = first["gallery"]["images"][0]
    own = [gallery.packed(np.eye(7)[::-1] + n) for n in (0, 1)]
    image["src"] = gallery.thumbnail(np.full((64, 64, 3), 90, np.uint8))
    image["class_maps"] = {str(c): {"Grad-CAM": own[0]} for c in range(len(names))}
    image["path"], image["steps"] = [0, 5], [[0, 0.9, own[0]], [-1, 0.4, own[1]]]
    marks = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
    text = json.dumps(data).translate(str.maketrans(marks))
    start = page.index('id="data">') + len('id="data">')
    path.write_text(page[:start] + text + page[page.index("</script>", start) :], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, path):
    """The page, which must end without a message on the console or a request."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or problems.append(request.url)
    )
    page.on("dialog", lambda dialog: problems.append("a name was run as script"))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    yield page
    context.close()
    assert problems == []


def test_it_renders(page):
    assert page.title() == "made, test"
    assert page.locator(".js-plotly-plot .main-svg").count() >= 10
    assert page.locator("#table-classes tbody tr").count() == 7
    assert sorted(page.locator("#table-classes tbody th").all_inner_texts()) == sorted([*NASTY, "dog", "cat", "2007"])
    assert page.locator("#gallery .card").count() > 4
    assert page.locator("b, i, main script").count() == 0
    wider = (
        "[...document.querySelectorAll('figure')].filter(f => f.querySelector('svg')?.clientWidth > f.clientWidth + 1)"
    )
    assert page.evaluate(f"{wider}.length") == 0


def test_it_filters_by_class(page):
    page.fill("#find", "D")
    found = {name for name in [*NASTY, "dog", "cat"] if "d" in name}
    sync_api.expect(page.locator("#status")).to_contain_text(f"{len(found)} of 7 classes")
    assert set(page.locator("#table-classes tbody th").all_inner_texts()) == found
    page.select_option("#class", label="dog")
    assert page.locator("#table-classes tbody th").all_inner_texts() == ["dog"]
    assert "of dog" in page.inner_text("#curves figcaption")
    assert page.locator("#gallery h3").all_inner_texts() == ["one.npz: dog", "two <i>.npz: dog"]
    ticks = page.locator("#plot-graph figure").first.locator(".ytick text").all_text_contents()
    assert "dog" in ticks and len(ticks) > 1  # with those that are there with it
    page.select_option("#class", index=0)
    page.fill("#find", "dog")
    sync_api.expect(page.locator("#status")).to_contain_text("1 of 7 classes")
    assert "fewer than two of the 7 classes" in page.inner_text("#plot-graph")
    page.fill("#find", "nothing is called so")
    sync_api.expect(page.locator("#status")).to_contain_text("0 of 7 classes")
    assert "No class matches" in page.inner_text("#gallery")


def test_it_filters_by_run(page):
    page.get_by_role("checkbox", name="two <i>.npz").uncheck()
    assert page.locator("#gallery h3").count() == 1
    assert page.locator("#plot-graph figcaption").all_inner_texts() == ["Labels of the data", "one.npz: predictions"]
    page.select_option("#graph-form", label="predictions minus data")
    assert page.locator("#plot-graph figcaption").all_inner_texts() == ["one.npz: predictions minus data"]
    page.get_by_role("checkbox", name="one.npz").uncheck()
    assert "No run is chosen" in page.inner_text("#gallery") and "0 of 2 runs" in page.inner_text("#status")


def test_parts_of_one_class_begin_with_the_one_of_most_images(page):
    rows = page.locator("#table-classes tbody tr")
    counts = {row.locator("th").inner_text(): int(row.locator("td").first.inner_text()) for row in rows.all()}
    shown = page.locator("#gallery h3").first.inner_text()
    assert counts[shown.removeprefix("one.npz: ").removesuffix(" (choose a class above for another)")] == max(
        counts.values()
    )


def test_a_card_marks_mistakes_and_shows_maps_and_steps(page):
    label = page.evaluate("""() => { const data = JSON.parse(document.getElementById('data').textContent);
      return data.classes[data.runs[0].gallery.wrong.findIndex((own) => own.some(([index]) => index === 0))]; }""")
    page.select_option("#class", label=label)
    card = page.locator("#gallery .card", has=page.locator(".photo")).first
    assert "strongest " in card.locator("img").first.get_attribute("alt") and card.locator("canvas").count() == 3
    assert "path: " in card.inner_text()
    card.locator("summary").click()
    assert card.locator("ol li").all_inner_texts()[1].endswith("END 0.40")
    assert any(text.startswith(f"{label} ") and text.endswith("✗") for text in card.locator(".wrong").all_inner_texts())
    for text in page.locator("#gallery .right").all_inner_texts():
        assert text.endswith("✓")


def test_names_on_the_map_of_labels_do_not_cover_one_another(page):
    boxes = page.evaluate("""[...document.querySelectorAll('#plot-embeddings .textpoint text')].map(e => {
      const { left, right, top, bottom } = e.getBoundingClientRect(); return [left, right, top, bottom]; })""")
    assert len(boxes) == 7
    for a, b in itertools.combinations(boxes, 2):
        wide, high = (min(a[k + 1], b[k + 1]) - max(a[k], b[k]) for k in (0, 2))
        assert wide < 2 or high < 4  # the boxes have room around the letters
    assert "have no vectors" in page.evaluate(
        "(() => { document.querySelector('#runs input').click(); return document.body.innerText; })()"
    )


def test_columns_are_sorted_by_the_keyboard(page):
    page.locator("#table-classes button").nth(2).focus()
    page.keyboard.press("Enter")
    column = [float(text) for text in page.locator("#table-classes tbody td:nth-child(3)").all_inner_texts()]
    assert column == sorted(column, reverse=True)
    assert page.locator("#table-classes th[aria-sort=descending]").count() == 1
    assert page.evaluate("document.activeElement.dataset.column") == "2"
    page.keyboard.press("Enter")
    assert page.locator("#table-classes th[aria-sort=ascending]").count() == 1


def test_the_first_stop_of_the_keyboard_skips_to_the_content(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the metrics"


def test_controls_have_names_and_pictures_have_numbers(page):
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, button')].filter(e => !(e.labels?.length || e.textContent.trim()"
        " || e.ariaLabel)).length"
    )
    assert unnamed == 0
    assert page.evaluate("[...document.images].every(i => i.alt)")
    assert page.evaluate("[...document.querySelectorAll('[role=img], [role=region]')].every(e => e.ariaLabel)")
    page.locator("#curves summary").first.click()
    assert page.locator("#curves details table tbody tr").count() > 5
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page, scheme):
    page.emulate_media(color_scheme=scheme)
    ratios = page.evaluate("""() => {
      const style = getComputedStyle(document.documentElement);
      const light = key => { const c = style.getPropertyValue(key).trim().slice(1).match(/../g).map(x => {
        const v = parseInt(x, 16) / 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]; };
      const ratio = (a, b) => {
        const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
        return (x + .05) / (y + .05);
      };
      const texts = ['--text', '--soft', '--link', '--wrong', '--right'];
      return texts.flatMap(t => ['--back', '--panel'].map(b => ratio(t, b)));
    }""")
    assert min(ratios) >= 4.5
    back = page.evaluate("document.querySelector('.js-plotly-plot .bg, .js-plotly-plot .main-svg').style.background")
    assert back in (("rgb(255, 255, 255)",) if scheme == "light" else ("rgb(20, 23, 27)",))


def test_a_narrow_window_does_not_scroll_sideways(page):
    page.set_viewport_size({"width": 360, "height": 700})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    rights = page.evaluate("[...document.querySelectorAll('caption span')].map(e => e.getBoundingClientRect().right)")
    assert max(rights) <= 360
    rows = page.locator("#table-classes th[scope=row]", has_text="dog").bounding_box()
    assert rows["height"] < 40  # in one line
