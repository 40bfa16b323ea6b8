"""`kb serve`: pages for people and `/api/v1` for programs. Nothing pasted is kept or logged."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Any, Literal, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, FastAPI, Form, HTTPException, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

import kb
from kb.errors import UnknownEntryError
from kb.knowledge import KnowledgeBase
from kb.localize import localized
from kb.models.result import Environment, Result
from kb.redacted import redacted
from kb.scripts import verification_script
from kb.web import highlight
from kb.web.limits import Guard, Limits
from kb.web.metrics import CONTENT_TYPE, Counted, Metrics
from kb.web.pages import Pages, locale_of
from kb.web.words import page_words

T = TypeVar("T")
KEPT_PAGES = 500
"""Rendered pages of a kind that are kept; one has about 50 KB."""
THREADS = 4
"""Look-ups at the same time; each takes about a millisecond of one core."""
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "testserver"})
_FILES = {"style.css": "text/css", "icon.svg": "image/svg+xml"}
_CACHED = {"Cache-Control": "max-age=3600"}
_EXAMPLE = (
    'Traceback (most recent call last):\n  File "/home/ml/train.py", line 12, in <module>\n    y = layer(x)\n'
    "RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16"
)
Locale = Literal["en", "zh"]
Domain = Annotated[str, Path(max_length=100, examples=["pytorch"])]
Slug = Annotated[str, Path(max_length=200, examples=["linear-dtype-mismatch"])]
Lang = Annotated[str | None, Query(max_length=20)]


class Paste(BaseModel):
    """What to explain."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": _EXAMPLE}]})

    text: str = Field(description="The whole traceback or log.")
    environment: dict[str, Any] = Field(
        default_factory=dict,
        description="What is known beyond the text, as in `query.environment` of an answer.",
        examples=[{"packages": {"torch": "2.6.0"}}],
    )
    locale: Locale = "en"
    redact: Literal["secrets", "paths"] = Field(
        "secrets", description="What quotations of the text leave out; paths takes out home folders as well."
    )


class Hit(BaseModel):
    """One entry in a list."""

    id: str
    signature: str
    domain: str
    verification_tier: str
    root_cause: str


def create_app(
    base: KnowledgeBase, *, limits: Limits | None = None, token: str | None = None, open_to_all: bool = False
) -> FastAPI:
    """The application. `token` is asked of everybody; `open_to_all` answers under any host name."""
    base.warm()
    metrics = Metrics()
    app = FastAPI(
        title="provenfix",
        version=kb.__version__,
        description="Ranked fixes for CUDA, PyTorch and Hugging Face errors, with measured rates.",
        docs_url=None,
        redoc_url=None,
    )
    desk = _Desk(base, metrics)
    app.include_router(_api(desk))
    app.include_router(_pages(desk))
    app.add_middleware(Counted, metrics=metrics)
    app.add_middleware(Guard, limits=limits or Limits(), token=token, hosts=None if open_to_all else _LOOPBACK)
    app.add_exception_handler(StarletteHTTPException, _refusal(desk))
    return app


class _Desk:
    """Runs look-ups off the event loop."""

    def __init__(self, base: KnowledgeBase, metrics: Metrics) -> None:
        self.base = base
        self.pages = Pages(base)
        self.metrics = metrics
        self._limiter: CapacityLimiter | None = None

    async def ask(self, question: Callable[[], T]) -> T:
        """Answer in a worker thread, a few at a time."""
        if self._limiter is None:
            self._limiter = CapacityLimiter(THREADS)
        return await to_thread.run_sync(question, limiter=self._limiter)

    async def match(self, text: str, environment: Environment, locale: str) -> Result:
        """Match a paste and count the outcome."""
        result = await self.ask(lambda: self.base.match(text, environment, locale=locale))
        self.metrics.answers.labels("unknown" if result.abstained else "recognised").inc()
        return result


def _api(desk: _Desk) -> APIRouter:
    router = APIRouter(tags=["api"])

    @router.post(
        "/api/v1/match",
        response_model=Result,
        summary="Explain a traceback or log",
        responses={400: {}, 408: {}, 413: {}, 503: {}},
    )
    async def match(paste: Paste) -> Response:
        """The shape of `kb match --format json`."""
        environment = _environment(paste.environment)
        result = await desk.match(paste.text, environment, paste.locale)
        return _json(redacted(result, paths=paste.redact == "paths"))

    @router.get("/api/v1/entries", response_model=list[Hit], summary="List entries")
    async def entries(
        domain: Annotated[str | None, Query(max_length=100)] = None,
        tier: Annotated[str | None, Query(max_length=40)] = None,
        tag: Annotated[str | None, Query(max_length=100)] = None,
    ) -> Response:
        """Those that are not withdrawn, by id; each filter given must hold."""
        hits = await desk.ask(lambda: desk.base.index.list(domain=domain, tier=tier, tag=tag))
        return _json([_hit(hit) for hit in hits])

    @router.get("/api/v1/entries/{domain}/{slug}", summary="One entry", responses={404: {}})
    async def entry(domain: Domain, slug: Slug, locale: Locale = "en") -> Response:
        """The published record; its schema is `kb schema published`."""
        return _json(localized(await desk.ask(lambda: _record(desk.base, domain, slug)), locale))

    @router.get("/api/v1/search", response_model=list[Hit], summary="Search entries by words")
    async def search(
        q: Annotated[str, Query(max_length=2_000, examples=["unscale float16"])],
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        domain: Annotated[str | None, Query(max_length=100)] = None,
    ) -> Response:
        """Best first."""
        hits = await desk.ask(lambda: desk.base.search(q, limit=limit, domain=domain))
        return _json([_hit(hit) for hit in hits])

    @router.get("/healthz", summary="Whether the server can answer")
    async def healthz() -> dict[str, Any]:
        """Also how many entries it knows."""
        return {"status": "ok", "version": kb.__version__, "entries": len(desk.base.index.list())}

    @router.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """In the text exposition format."""
        return Response(desk.metrics.text(), media_type=CONTENT_TYPE)

    return router


def _pages(desk: _Desk) -> APIRouter:
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    pages = desk.pages
    # The base behind a server never changes, and rendering takes longer than a look-up.
    entry_page, browse_page, script_page = (
        lru_cache(maxsize=KEPT_PAGES)(page) for page in (pages.entry, pages.browse, pages.script)
    )

    @router.get("/")
    async def home(lang: Lang = None) -> HTMLResponse:
        return HTMLResponse(await desk.ask(lambda: pages.home(locale_of(lang))))

    @router.post("/")
    async def answer(text: Annotated[str, Form()] = "", lang: Lang = None) -> HTMLResponse:
        locale = locale_of(lang)
        if not text.strip():
            return HTMLResponse(pages.home(locale, problem=page_words(locale)["nothing_pasted"]), status_code=400)
        result = await desk.match(text, Environment(), locale)
        return HTMLResponse(await desk.ask(lambda: pages.answer(result, locale)))

    @router.get("/entries")
    async def browse(
        lang: Lang = None, domain: str = Query("", max_length=100), tier: str = Query("", max_length=40)
    ) -> HTMLResponse:
        return HTMLResponse(await desk.ask(lambda: browse_page(locale_of(lang), domain=domain, tier=tier)))

    @router.get("/search")
    async def search(q: str = Query("", max_length=2_000), lang: Lang = None) -> HTMLResponse:
        return HTMLResponse(await desk.ask(lambda: pages.search(q, desk.base.search(q), locale_of(lang))))

    @router.get("/entries/{domain}/{slug}")
    async def entry(domain: Domain, slug: Slug, lang: Lang = None) -> HTMLResponse:
        record = await desk.ask(lambda: _record(desk.base, domain, slug))
        return HTMLResponse(await desk.ask(lambda: entry_page(record["id"], locale_of(lang))))

    @router.get("/entries/{domain}/{slug}/verify.py")
    async def script(request: Request, domain: Domain, slug: Slug, lang: Lang = None) -> Response:
        record = await desk.ask(lambda: _record(desk.base, domain, slug))
        if "text/html" not in request.headers.get("accept", ""):
            source = await desk.ask(lambda: verification_script(desk.base, record["id"]))
            return PlainTextResponse(source) if source is not None else PlainTextResponse("", status_code=404)
        page = await desk.ask(lambda: script_page(record["id"], locale_of(lang)))
        if page is None:
            raise HTTPException(404, f"{record['id']} has no verification script yet")
        return HTMLResponse(page)

    @router.get("/entries/{domain}/{slug}/evidence/{name}")
    async def evidence(domain: Domain, slug: Slug, name: Annotated[str, Path(max_length=200)]) -> Response:
        record = await desk.ask(lambda: _record(desk.base, domain, slug))
        text = await desk.ask(lambda: _evidence(desk.base, record["id"], name))
        return Response(text, media_type="application/json")

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        if name == "code.css":
            return Response(highlight.styles(), media_type="text/css", headers=_CACHED)
        if name not in _FILES:
            raise HTTPException(404, "no such file")
        text = files("kb.web").joinpath(f"static/{name}").read_text(encoding="utf-8")
        return Response(text, media_type=_FILES[name], headers=_CACHED)

    return router


def _refusal(desk: _Desk) -> Callable[[Request, Any], Response]:
    def refuse(request: Request, error: Any) -> Response:
        wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")
        if wants_page:
            locale = locale_of(request.query_params.get("lang"))
            page = desk.pages.problem(str(error.status_code), str(error.detail), locale)
            return HTMLResponse(page, status_code=error.status_code)
        return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)

    return refuse


def _environment(given: dict[str, Any]) -> Environment:
    from pydantic import TypeAdapter, ValidationError

    unknown = set(given) - set(Environment.__dataclass_fields__)
    if unknown:
        raise HTTPException(422, f"environment: unknown fields {', '.join(sorted(unknown))}")
    try:
        return TypeAdapter(Environment).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise HTTPException(422, f"environment: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _record(base: KnowledgeBase, domain: str, slug: str) -> dict[str, Any]:
    try:
        return dict(base.get(f"{domain}/{slug}"))
    except UnknownEntryError as error:
        raise HTTPException(404, f"{error.message}. {error.remedy}") from None


def _evidence(base: KnowledgeBase, entry_id: str, name: str) -> str:
    """One file of an entry's evidence, named as the index names it, so that no path can be made up."""
    folder = base.index.folder(entry_id)
    known = {run.file.rpartition("/")[2] for run in base.index.evidence(entry_id)}
    if folder is None or name not in known:
        raise HTTPException(404, f"{entry_id} has no such evidence")
    return (folder / "evidence" / name).read_text(encoding="utf-8")


def _hit(hit: Any) -> dict[str, str]:
    return {
        "id": hit.entry_id,
        "signature": hit.signature,
        "domain": hit.domain,
        "verification_tier": hit.tier,
        "root_cause": hit.root_cause,
    }


def _json(value: Any) -> Response:
    from kb.render import structured

    return Response(structured.dumps(value, compact=True), media_type="application/json")
