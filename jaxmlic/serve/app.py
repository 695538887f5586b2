"""The web application: a page, what the model is, and labels of uploaded images. Every answer but the page is JSON."""

import asyncio
import math
from importlib import resources
from typing import Any

import anyio.to_thread
import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxmlic.data.image import ImageError, decode_image, header
from jaxmlic.serve.labeller import FullError, Labeller
from jaxmlic.serve.limits import Limits

DECODERS = 2  # images that are decoded at a time: memory is theirs times `megapixels`
# Nothing but the page's own text and style, and pictures that the visitor chose.
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def make_app(labeller: Labeller, limits: Limits) -> FastAPI:
    """GET / (the page), GET /model, POST /predict (multipart: `images`, one or more; `attention=1` for maps)."""
    app = FastAPI(title="jaxmlic", docs_url=None, redoc_url=None)  # their pages load scripts from elsewhere
    app.add_middleware(_BodyLimit, limits=limits)
    page = resources.files(__package__).joinpath("assets/page.html").read_text(encoding="utf-8")
    decoders = anyio.CapacityLimiter(DECODERS)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "this failed on the server; its log says why"}, 500)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    @app.get("/", response_class=HTMLResponse)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=_SECURITY)

    @app.get("/model")
    async def describe() -> dict[str, Any]:
        run = labeller.run
        return {
            "head": run.config.head,
            "step": run.step,
            "class_names": run.class_names,
            "image_size": run.config.data.image_size,
            "decision": labeller.decision,
            "attention": labeller.attention_form or None,
            "limits": {name: getattr(limits, name) for name in ("megabytes", "megapixels", "images")},
        }

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        files, wants_maps = await _read_form(request, limits)
        if wants_maps and not labeller.attention_form:
            raise HTTPException(422, f"the head {labeller.run.config.head!r} has no attention of its own")
        if wants_maps and len(files) != 1:
            raise HTTPException(422, f"attention is of one image, and {len(files)} are given")
        side, pixels = labeller.run.config.data.image_size, []
        answers: list[dict[str, Any]] = []
        statuses = []
        for name, data in files:
            try:
                pixels.append(await anyio.to_thread.run_sync(_decode, data, side, limits, limiter=decoders))
                answers.append({"file": name})
            except _RefusedError as error:
                answers.append({"file": name, "error": str(error)})
                statuses.append(error.status)
        if not pixels:
            reasons = "; ".join(f"{one['file']}: {one['error']}" for one in answers)
            raise HTTPException(statuses[0], reasons)
        try:
            waiting = labeller.submit(pixels)
        except FullError:
            raise HTTPException(503, "too many images are waiting: try again", {"Retry-After": "1"}) from None
        found = iter(await asyncio.gather(*map(asyncio.wrap_future, waiting)))
        for one in answers:
            if "error" not in one:
                one |= next(found)
        if wants_maps:
            maps = await anyio.to_thread.run_sync(labeller.attention, files[0][1])
            answers[0]["attention"] = {name: _shortened(values) for name, values in maps.maps.items()}
        return JSONResponse({"images": answers})

    return app


async def _read_form(request: Request, limits: Limits) -> tuple[list[tuple[str, bytes]], bool]:
    """([(file name, bytes)], whether maps are wanted) of a multipart body; HTTPException for any other."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise HTTPException(415, "send images as multipart/form-data, in fields named `images`")
    try:
        async with (
            asyncio.timeout(limits.seconds),
            request.form(max_files=limits.images, max_fields=1, max_part_size=100) as form,
        ):
            uploads = [part for part in form.getlist("images") if isinstance(part, UploadFile)]
            files = [(_last_part(part.filename), await part.read()) for part in uploads]
            wanted = str(form.get("attention", "0"))
    except TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {limits.seconds:g} seconds") from None
    except FormParserError as error:  # Starlette answers for it only in its newest versions
        raise HTTPException(400, f"the multipart body does not parse: {error}") from None
    if not files:
        raise HTTPException(422, "no image: send files in fields named `images`")
    if wanted not in ("0", "1"):
        raise HTTPException(422, "attention is 0 or 1")
    return files, wanted == "1"


def _last_part(name: str | None) -> str:
    """Of a name that the client gave; it is shown again and opens nothing."""
    return (name or "image").replace("\\", "/").rpartition("/")[2][:200]


def _shortened(values: np.ndarray) -> list[list[float]]:
    """Rows of a map with five digits of its largest number: of thousands of weights that sum to 1, all are small."""
    largest = float(np.abs(values).max())
    return np.round(values.astype(np.float64), 4 - math.floor(math.log10(largest)) if largest else 0).tolist()


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def _decode(data: bytes, side: int, limits: Limits) -> np.ndarray:
    """uint8 [side, side, 3]; _RefusedError for bytes that are no image, and for too many pixels."""
    try:
        height, width, *_ = header(data)
        if height * width > limits.num_pixels:
            raise _RefusedError(413, f"{width} x {height} pixels are more than {limits.megapixels:g} megapixels")
        return decode_image(data, side)
    except ImageError as error:
        raise _RefusedError(415, str(error)) from None


class _BodyLimit:
    """Answers 413 to a body of more bytes than allowed: by its announced length, or once so many have come."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most, count = self._limits.num_bytes, 0
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        problem = JSONResponse({"error": f"more than {self._limits.megabytes:g} MB"}, 413, {"Connection": "close"})
        if announced.isdigit() and int(announced) > most:
            await problem(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > most:
                raise HTTPException(413, f"more than {self._limits.megabytes:g} MB", {"Connection": "close"})
            return message

        await self._app(scope, counted, send)
