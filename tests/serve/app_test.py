"""The service: labels as `Run.predict` gives them, limits, bad requests in one JSON line, many requests at a time."""

import asyncio
import io
import struct
import threading
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

import jaxmlic
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.run import Attention
from jaxmlic.serve import Limits

for module in ("fastapi", "httpx", "python_multipart"):
    pytest.importorskip(module)

import httpx  # noqa: E402  (after the check)

from jaxmlic.serve import app as app_lib  # noqa: E402
from jaxmlic.serve.labeller import Labeller  # noqa: E402

LIMITS = Limits(megabytes=1.0, megapixels=1.0, images=4, waiting=64, seconds=1.0, batch_size=8)


@pytest.fixture(scope="module")
def labeller(finished_run):
    made = Labeller(jaxmlic.load(finished_run), LIMITS.batch_size, LIMITS.waiting)
    yield made
    made.close()


class Client:
    """httpx's client of an application, one request after the other."""

    def __init__(self, labeller, **options):
        self._transport = httpx.ASGITransport(app_lib.make_app(labeller, LIMITS), **options)

    def request(self, *arguments, **options):
        async def ask():
            async with httpx.AsyncClient(transport=self._transport, base_url="http://test", timeout=60) as client:
                return await client.request(*arguments, **options)

        return asyncio.run(ask())

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, **options):
        return self.request("POST", path, **options)


@pytest.fixture
def client(labeller):
    return Client(labeller)


@pytest.fixture(scope="module")
def photographs(data_dir):
    source = datasets.load("tiny", data_dir).source("test")
    return [source[i]["image"] for i in range(10)]


def uploads(images):
    return [("images", (f"{i}.png", data, "image/png")) for i, data in enumerate(images)]


def png(height, width):
    """A valid header of so many pixels, and as little data as zlib makes of zeros: a decompression bomb."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(height * (width + 1)), 9)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_answers_are_the_run_s_predictions(client, labeller, photographs):
    answer = client.post("/predict", files=uploads(photographs[:3]))
    assert answer.status_code == 200
    expected = labeller.run.predict(photographs[:3])
    for i, found in enumerate(answer.json()["images"]):
        assert found["file"] == f"{i}.png" and set(found) == {"file", "labels", "probabilities", "scores"}
        assert [label["name"] for label in found["labels"]] == expected.labels[i]
        scores = [found["scores"][name] for name in labeller.run.class_names]
        np.testing.assert_allclose(scores, expected.scores[i], atol=1e-5)
        chances = [found["probabilities"][name] for name in labeller.run.class_names]
        np.testing.assert_allclose(chances, expected.probabilities[i], atol=1e-5)


def test_a_decoder_s_labels_and_paths(path_run, photographs):
    run = jaxmlic.load(path_run)
    expected = run.predict(photographs)
    paths = expected.label_paths
    assert len(set(map(tuple, paths))) > 2 and {len(path) for path in paths} == {1, 2}
    assert any(path != labels for path, labels in zip(paths, expected.labels, strict=True))  # not by probability
    assert any(path != [name for name in run.class_names if name in path] for path in paths)  # nor by class
    labeller = Labeller(run, LIMITS.batch_size, LIMITS.waiting)
    try:
        client = Client(labeller)
        assert client.get("/model").json()["decision"] == "decoder"
        answers = [client.post("/predict", files=uploads(photographs[i : i + 4])) for i in (0, 4, 8)]
        looked = client.post("/predict", files=uploads(photographs[:1]), data={"attention": "1"})
    finally:
        labeller.close()
    found = [one for answer in answers for one in answer.json()["images"]]
    assert [one["path"] for one in found] == paths
    assert [[label["name"] for label in one["labels"]] for one in found] == expected.labels
    scores = [[one["scores"][name] for name in run.class_names] for one in found]
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    (one,) = looked.json()["images"]
    steps = [f"{number} {name}" for number, name in enumerate([*paths[0], "END"], 1)]
    assert one["path"] == paths[0] and list(one["attention"]) == steps


def test_the_page_and_the_model(client, labeller):
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text and "https://" not in page.text  # nothing is loaded from elsewhere
    model = client.get("/model").json()
    assert model["class_names"] == labeller.run.class_names and model["step"] == labeller.run.step
    assert model["attention"] is None and model["limits"] == {"megabytes": 1.0, "megapixels": 1.0, "images": 4}


@pytest.mark.parametrize(
    ("send", "status", "message"),
    [
        ({"files": uploads([b"no image"])}, 415, "0.png: not an image"),
        ({"files": uploads([b""])}, 415, "empty file"),
        ({"files": uploads([b"GIF89a"])}, 415, "0.png: "),
        ({"files": uploads([png(10_000, 10_000)])}, 413, "10000 x 10000 pixels are more than 1 megapixels"),
        ({"files": uploads([png(8, 8)[:40]])}, 415, "0.png: "),
        ({"files": uploads([bytes(1_100_000)])}, 413, "more than 1 MB"),
        ({"files": uploads([png(8, 8)] * 5)}, 400, "Too many files"),
        ({"files": [("other", ("a.png", png(8, 8), "image/png"))]}, 422, "no image"),
        ({"data": {"images": "text"}, "files": [("x", ("x", b"x"))]}, 422, "no image"),
        ({"json": {"images": []}}, 415, "multipart/form-data"),
        ({"content": b"abc", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"abc", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "multipart"),
        ({"files": uploads([png(8, 8)]), "data": {"attention": "1"}}, 422, "no attention of its own"),
        ({"files": uploads([png(8, 8)]), "data": {"attention": "yes"}}, 422, "attention is 0 or 1"),
        ({"files": uploads([png(8, 8)]), "data": {"attention": "1" * 200}}, 400, "exceeded"),
    ],
)
def test_bad_requests_are_answered_in_one_line(client, send, status, message):
    answer = client.post("/predict", **send)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error and "\n" not in error


def test_attention_is_of_one_image(client, labeller, photographs, monkeypatch):
    monkeypatch.setattr(labeller, "attention_form", "gradient")  # the small head has none of its own
    answer = client.post("/predict", files=uploads(photographs[:1]), data={"attention": "1"})
    (found,) = answer.json()["images"]
    assert answer.status_code == 200 and found["attention"]
    side = labeller.run.config.data.image_size
    assert {np.shape(values) for values in found["attention"].values()} == {(side, side)}
    dark = cv2.imencode(".png", np.eye(side, dtype=np.uint8))[1].tobytes()  # 0 and 1 alone
    assert client.post("/predict", files=uploads([dark]), data={"attention": "1"}).status_code == 200
    answer = client.post("/predict", files=uploads(photographs[:2]), data={"attention": "1"})
    assert answer.status_code == 422 and "of one image, and 2" in answer.json()["error"]


def test_an_unreadable_image_leaves_the_others(client, photographs):
    answer = client.post("/predict", files=uploads([b"none", photographs[0]]))
    first, second = answer.json()["images"]
    assert answer.status_code == 200 and "not an image" in first["error"] and second["probabilities"]


# Older versions of Starlette leave a refused file, which is only in memory, to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_body_without_a_length_is_counted(client):
    async def parts():
        yield b'--x\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield bytes(100_000)

    answer = client.post("/predict", content=parts(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413 and answer.json() == {"error": "more than 1 MB"}


@pytest.mark.parametrize("path", ["/../setup.cfg", "/..%2f..%2fetc/passwd", "/assets/page.html", "/docs", "/predict/x"])
def test_no_file_is_served(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and answer.json() == {"error": "Not Found"}


def test_names_of_files_open_nothing(client, photographs):
    files = [("images", ("../../etc/passwd", photographs[0], "image/png"))]
    assert client.post("/predict", files=files).json()["images"][0]["file"] == "passwd"


async def call(app, messages):
    """The status that an application answers a POST of these messages with, None where it answers nothing."""
    waiting, sent = list(messages), []

    async def receive():
        if waiting:
            return waiting.pop(0)
        await asyncio.sleep(3600)

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}
    await app(scope | {"asgi": {"version": "3.0"}, "http_version": "1.1", "root_path": ""}, receive, send)
    return next((message["status"] for message in sent if message["type"] == "http.response.start"), None)


def test_slow_and_cut_requests_end(client, labeller, photographs):
    app = app_lib.make_app(labeller, LIMITS)
    begun = {"type": "http.request", "body": b'--x\r\ncontent-disposition: form-data; name="images"', "more_body": True}
    assert asyncio.run(call(app, [begun])) == 408
    assert asyncio.run(call(app, [begun, {"type": "http.disconnect"}])) == 400
    assert client.post("/predict", files=uploads(photographs[:1])).status_code == 200


def test_fifty_requests_at_a_time_share_batches(labeller, photographs, monkeypatch):
    counts, predict = [], labeller._predict
    monkeypatch.setattr(labeller, "_predict", lambda pixels: counts.append(len(pixels)) or predict(pixels))
    transport = httpx.ASGITransport(app_lib.make_app(labeller, LIMITS))

    async def ask():
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            sent = (client.post("/predict", files=uploads([photographs[i % 10]])) for i in range(50))
            return await asyncio.gather(*sent)

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [200] * 50
    expected = labeller.run.predict(photographs)
    for i, answer in enumerate(answers):
        scores = answer.json()["images"][0]["scores"]
        np.testing.assert_allclose(
            [scores[name] for name in labeller.run.class_names], expected.scores[i % 10], atol=1e-5
        )
    assert sum(counts) == 50 and max(counts) <= LIMITS.batch_size and len(counts) < 50


def test_too_many_that_wait_are_sent_away(labeller, photographs, monkeypatch):
    held, predict = threading.Event(), labeller._predict

    def hold(pixels):
        held.wait(30)
        return predict(pixels)

    monkeypatch.setattr(labeller, "_predict", hold)
    side = labeller.run.config.data.image_size
    blocked = labeller.submit([np.zeros((side, side, 3), np.uint8)])
    while labeller._queue.qsize():
        time.sleep(0.01)
    blocked += labeller.submit([np.zeros((side, side, 3), np.uint8)] * LIMITS.waiting)
    answer = Client(labeller).post("/predict", files=uploads(photographs[:1]))
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    held.set()
    assert len([future.result(30) for future in blocked]) == LIMITS.waiting + 1


def test_an_error_of_the_device_is_an_answer(labeller, photographs, monkeypatch):
    def fail(pixels):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(labeller, "_predict", fail)
    client = Client(labeller, raise_app_exceptions=False)
    answer = client.post("/predict", files=uploads(photographs[:1]))
    assert answer.status_code == 500 and "failed on the server" in answer.json()["error"]
    monkeypatch.undo()
    assert client.post("/predict", files=uploads(photographs[:1])).status_code == 200


def test_small_weights_keep_their_digits(client, labeller, photographs, monkeypatch):
    weights = np.full((64, 64), 1 / 4096, np.float32) + np.linspace(0, 2e-6, 4096, dtype=np.float32).reshape(64, 64)
    given = Attention(
        np.zeros((16, 16, 3), np.uint8), {"map": weights, "none": np.zeros((2, 2), np.float32)}, "weights"
    )
    monkeypatch.setattr(labeller, "attention_form", "weights")
    monkeypatch.setattr(labeller, "attention", lambda encoded: given)
    answer = client.post("/predict", files=uploads(photographs[:1]), data={"attention": "1"})
    found = answer.json()["images"][0]["attention"]
    np.testing.assert_allclose(found["map"], weights, rtol=3e-5)
    assert len(answer.content) < 4096 * 14 and found["none"] == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "does not exist: the run must be the folder of a `jaxmlic train`"),
        (["{run}", "--port=99999"], "--port=99999: from 0"),
        (["{run}", "--host=192.0.2.1"], "--host=192.0.2.1 --port=0: "),
        (["{run}", "--megabytes=0"], "--megabytes=0: at least"),
        (["{run}", "--images=300"], "--waiting=256 in all"),
        ([], "required: RUN"),
    ],
)
def test_mistakes_of_the_command(finished_run, tmp_path, capsys, arguments, message):
    places = {"empty": str(tmp_path), "run": str(finished_run)}
    assert cli.run(["serve", "--port=0", *(one.format(**places) for one in arguments)]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_a_picture_of_one_colour_is_labelled(client):
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (220, 40, 40)).save(file, "PNG")
    assert client.post("/predict", files=uploads([file.getvalue()])).status_code == 200
