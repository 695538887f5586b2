"""The page in headless Chromium: several photographs, broken ones among them, maps, and what is too large."""

import contextlib
import shutil
import threading

import numpy as np
import pytest

import jaxmlic
from jaxmlic.data import datasets
from jaxmlic.run import Attention
from jaxmlic.serve import Limits

for module in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(module)
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.filterwarnings("default"),
]


@contextlib.contextmanager
def served(app):
    """The address of an application in a thread."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(finished_run, monkeypatch):
    """The page of a run whose head has a map, with one position far above the others."""
    from jaxmlic.serve import app
    from jaxmlic.serve.labeller import Labeller

    labeller = Labeller(jaxmlic.load(finished_run), 8, 64)
    weights = np.linspace(1, 2, 1024).reshape(32, 32)
    weights[-1, -1] = 1000
    monkeypatch.setattr(labeller, "attention_form", "weights")
    monkeypatch.setattr(labeller, "attention", lambda _: Attention(np.zeros((1, 1, 3)), {"m": weights}, "weights"))
    with served(app.make_app(labeller, Limits(megabytes=1.0))) as address, sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.get_by_text("step").wait_for()
        yield page
        browser.close()
    labeller.close()


def test_photographs_are_labelled(page, data_dir, tmp_path):
    photo = datasets.load("tiny", data_dir).source("test")[0]["image"]
    contents = {
        "a.png": photo,
        "half.png": photo[: len(photo) // 2],
        "text.jpg": b"text",
        "large.png": bytes(1_100_000),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    def choose(*names):
        page.set_input_files("#files", [tmp_path / name for name in names])

    choose("a.png", "half.png", "text.jpg")
    page.locator("article").nth(2).wait_for()
    assert page.locator("article h2").all_inner_texts() == ["a.png", "half.png", "text.jpg"]
    assert page.locator("article .error").count() == 2 and page.locator("article > img").count() == 1
    choose("a.png")
    page.locator("canvas").wait_for()
    shades = page.evaluate(
        "() => Array.from(document.querySelector('canvas').getContext('2d').getImageData(0, 0, 32, 32).data)"
    )[::4]
    assert shades[0] > 30 and shades[512] - shades[0] > 50  # the picture shows through; one position hides no other
    sizes = page.evaluate("() => ['canvas', '.maps img'].map((one) => document.querySelector(one).clientHeight)")
    assert sizes[0] == sizes[1]
    for name, message in (("text.jpg", "not an image"), ("large.png", "1.1 MB: at most 1 MB")):
        choose(name)
        page.get_by_text(message).wait_for()
        assert page.locator("article").count() == 0
    choose("a.png", "large.png")
    page.get_by_text("large.png alone 1.1 MB").wait_for()
