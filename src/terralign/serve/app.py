"""The application: addresses, and what they answer. Everything that computes does so in threads."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException as StarletteHTTPException

from terralign.cores import available_cores
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import StorageError, TerralignError, printable
from terralign.serve.page_files import page_files
from terralign.serve.pictures import Kind
from terralign.serve.requests import (
    WINDOW_ID,
    Asked,
    Asks,
    Fault,
    Health,
    IndexAnswer,
    RequestError,
    ScoresAnswer,
    SearchAnswer,
    SearchRequest,
    check_asked,
    first_fault,
)
from terralign.serve.security import Guard
from terralign.serve.served import NotFound, ServedIndex, Unavailable, as_json
from terralign.serve.settings import LIMITS, ServeSettings
from terralign.serve.workers import Overloaded, Workers

logger = logging.getLogger(__name__)

_ZIPPED = 2048
"""Bytes from which on an answer is compressed."""

_FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": Fault, "description": "The request makes no sense."},
    401: {"model": Fault, "description": "The token is missing or wrong."},
    404: {"model": Fault, "description": "A window, scene or picture that is not found."},
    422: {"model": Fault, "description": "A field is unknown, missing, or not as expected."},
    503: {"model": Fault, "description": "Too many requests wait; try again later."},
}


def create_app(
    folder: str | Path, space: EmbeddingSpace, settings: ServeSettings | None = None
) -> Guard:
    """The ASGI application that serves a folder of parts.

    `space`: of its vectors. `DataError` where the folder has no parts, `SpaceMismatchError` where
    they are of another space.
    """
    folder = Path(folder)
    settings = settings or ServeSettings(title=folder.absolute().name)
    return Guard(make_api(ServedIndex(folder, space, settings), settings), settings)


def make_api(served: ServedIndex, settings: ServeSettings) -> FastAPI:
    """The addresses; `Guard` stands before them."""
    cores, limits = available_cores(), settings.limits
    searching = Workers("search", max(2, cores), waiting=limits.waiting)
    drawing = Workers("pictures", max(2, cores), waiting=limits.waiting)
    opening = Workers("parts", 1, waiting=0)
    files = page_files()

    @asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(_look(served, opening, settings.refresh_s))
        try:
            yield
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
            for workers in (searching, drawing, opening):
                workers.close()

    api = FastAPI(
        title="terralign serve",
        version=version("terralign"),
        summary="Search a folder of embedded scenes by text.",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=alive,
    )

    async def answer(
        request: Request,
        workers: Workers,
        compute: Callable[[], Any],
        kind: str = "",
        **headers: str,
    ) -> Response:
        """What a thread computes and writes: JSON, or bytes of another `kind`."""
        zips = "gzip" in request.headers.get("accept-encoding", "")

        def make() -> tuple[bytes, bool]:
            value = compute()
            body = value if isinstance(value, bytes) else as_json(value)
            zipped = zips and not kind.startswith("image/") and len(body) > _ZIPPED
            return (gzip.compress(body, 1, mtime=0) if zipped else body), zipped

        body, zipped = await workers.run(make)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("cache-control", "no-store")
        if zipped:
            named |= {"content-encoding": "gzip", "vary": "accept-encoding"}
        return Response(body, media_type=kind or "application/json", headers=named)

    # The page

    def page_file(request: Request, name: str) -> Response:
        file = files.get(name)
        if file is None:
            raise HTTPException(404, "no such file")
        headers = {"etag": file.tag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        if file.zipped and "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(file.zipped, media_type=file.kind, headers=headers)
        return Response(file.content, media_type=file.kind, headers=headers)

    @api.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return page_file(request, "index.html")

    @api.api_route("/static/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        return page_file(request, name)

    @api.get("/health", response_model=Health)
    async def health() -> dict[str, Any]:
        """Whether the server runs, and how many windows it has. Needs no token."""
        return served.health()

    # What is searched

    @api.get("/api/index", responses={200: {"model": IndexAnswer}, **_FAULTS})
    async def index(request: Request) -> Response:
        """What is served: scenes, sensors, towers, dates, and the limits of requests."""
        return await answer(request, drawing, served.describe)

    @api.post(
        "/api/search",
        responses={200: {"model": SearchAnswer}, **_FAULTS},
        openapi_extra=_body_of(SearchRequest),
    )
    async def search(request: Request) -> Response:
        """The best windows for texts and examples, one page of them."""
        asked = await _parsed(request, SearchRequest)
        return await answer(request, searching, lambda: served.search(asked))

    @api.post(
        "/api/scores",
        responses={200: {"model": ScoresAnswer}, **_FAULTS},
        openapi_extra=_body_of(Asked),
    )
    async def scores(request: Request) -> Response:
        """The score of every window, as a layer of a map."""
        asked = await _parsed(request, Asked)
        return await answer(request, searching, lambda: served.scores(asked))

    @api.post(
        "/api/download",
        response_class=Response,
        responses={200: {"description": "A file.", "content": {
            "application/geo+json": {}, "application/vnd.apache.parquet": {}}}, **_FAULTS},
        openapi_extra=_body_of(Asked),
    )  # fmt: skip
    async def download(
        request: Request, format: Literal["geojson", "geoparquet"] = "geojson"
    ) -> Response:
        """All hits as GeoJSON or GeoParquet."""
        asked = await _parsed(request, Asked)
        kind, name = {
            "geojson": ("application/geo+json", "hits.geojson"),
            "geoparquet": ("application/vnd.apache.parquet", "hits.parquet"),
        }[format]
        return await answer(
            request, searching, lambda: served.download(asked, format), kind,
            content_disposition=f'attachment; filename="{name}"',
        )  # fmt: skip

    # Pictures

    release = version("terralign")  # another one may draw differently

    def unchanged(request: Request, tag: str) -> Response | None:
        if request.headers.get("if-none-match") != tag:
            return None
        return Response(status_code=304, headers={"etag": tag, "cache-control": "no-cache"})

    @api.get(
        "/api/tiles/{scene}/{picture}/{z}/{x}/{y}.png",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, **_FAULTS},
    )
    async def tile(
        request: Request,
        scene: Annotated[int, InPath(ge=0, lt=2**31)],
        picture: Kind,
        z: Annotated[int, InPath(ge=0, le=LIMITS.zoom)],
        x: Annotated[int, InPath(ge=0, lt=2**LIMITS.zoom)],
        y: Annotated[int, InPath(ge=0, lt=2**LIMITS.zoom)],
    ) -> Response:
        """A tile of 256 pixels of the web map (z, x, y as usual), transparent without data; 404
        where the scene does not touch it."""
        if max(x, y) >= 2**z:
            raise NotFound(f"zoom {z} has no tile {x}, {y}")
        tag = f'"{release}-{served.identity(scene)}-{picture}-{z}-{x}-{y}"'
        return unchanged(request, tag) or await answer(
            request, drawing, lambda: served.tile(scene, picture, z, x, y), "image/png",
            etag=tag, cache_control="private, no-cache",
        )  # fmt: skip

    @api.get(
        "/api/thumbnails/{window}.png",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, **_FAULTS},
    )
    async def thumbnail(
        request: Request,
        window: Annotated[str, InPath(pattern=f"^{WINDOW_ID}$", max_length=100)],
        picture: Annotated[Kind, Query()] = "true",
    ) -> Response:
        """A window of the index as a picture of 128 pixels."""
        tag = f'"{release}-{window}-{picture}"'
        return unchanged(request, tag) or await answer(
            request, drawing, lambda: served.thumbnail(window, picture), "image/png",
            etag=tag, cache_control="private, no-cache",
        )  # fmt: skip

    _add_faults(api, served)
    described = api.openapi

    def openapi() -> dict[str, Any]:
        schema = described()
        _, models = models_json_schema(
            [(SearchRequest, "validation"), (Asked, "validation")],
            ref_template="#/components/schemas/{model}",
        )
        schema["components"]["schemas"] |= models["$defs"]
        return schema

    api.openapi = openapi  # type: ignore[method-assign]
    return api


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def _parsed(request: Request, model: type[Asks]) -> Asks:
    """The body, by the strict rules of JSON: FastAPI's own parsing takes NaN, and texts for
    numbers."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "the body must be JSON: send Content-Type: application/json")
    return check_asked(model, await request.body())


def _add_faults(api: FastAPI, served: ServedIndex) -> None:
    """Every fault is one line of JSON."""

    def fault(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
        line = printable(served.plain(text))[:500]
        return Response(
            as_json({"error": line}), status_code=status, media_type="application/json",
            headers={"cache-control": "no-store", **(headers or {})},
        )  # fmt: skip

    async def invalid(request: Request, error: Any) -> Response:
        return fault(422, first_fault(error.errors()))

    async def wrong(request: Request, error: Any) -> Response:
        return fault(422, str(error))

    async def http(request: Request, error: Any) -> Response:
        return fault(error.status_code, str(error.detail), dict(error.headers or {}))

    async def full(request: Request, error: Any) -> Response:
        return fault(500, "the server cannot write a temporary file")

    async def missing(request: Request, error: Any) -> Response:
        return fault(404, str(error))

    async def refused(request: Request, error: Any) -> Response:
        return fault(400, str(error))

    async def busy(request: Request, error: Any) -> Response:
        return fault(503, "too many requests wait; try again later", {"retry-after": "2"})

    async def unexpected(request: Request, error: Any) -> Response:
        return fault(500, "unexpected fault; the server's log has more")  # and `Guard` logs it

    async def gone(request: Request, error: Any) -> Response:
        return fault(503, str(error), {"retry-after": "10"})

    api.add_exception_handler(Exception, unexpected)
    api.add_exception_handler(Unavailable, gone)
    api.add_exception_handler(RequestValidationError, invalid)
    api.add_exception_handler(StarletteHTTPException, http)
    api.add_exception_handler(NotFound, missing)
    api.add_exception_handler(RequestError, wrong)
    api.add_exception_handler(StorageError, full)
    api.add_exception_handler(TerralignError, refused)
    api.add_exception_handler(Overloaded, busy)


async def _look(served: ServedIndex, opening: Workers, seconds: float) -> None:
    """Look for new parts every now and then, in a thread that a stopped server does not wait for:
    opening many of them takes minutes."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await opening.run(served.refresh)
        except Exception as error:
            logger.error("looking for new parts failed: %s", type(error).__name__)
