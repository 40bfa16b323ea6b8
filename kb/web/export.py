"""`kb export`: the published catalogue as files, for any static server: data, pages, and a matcher for the browser.

The same catalogue gives the same bytes: nothing of the time, the machine or the order of folders gets in.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import escape

import kb
from kb.build import published
from kb.catalog import load
from kb.closure import closure
from kb.errors import UsageError
from kb.index import Index
from kb.index_build import build
from kb.knowledge import KnowledgeBase
from kb.layers import Layer
from kb.localize import LOCALES
from kb.models.published import PublishedEntry
from kb.publish import Publication
from kb.schema import schemas
from kb.web import highlight
from kb.web.pages import Pages

DATABASE = "provenfix.sqlite"
PYODIDE = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")
"""Files of the npm package `pyodide` that a page needs."""
_STARTS = (
    "kb.knowledge",
    "kb.redacted",
    "kb.render.compact",
    "kb.render.structured",
    "kb.index",
    "kb.excerpt",
    "kb.localize",
)
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a ZIP file can hold."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    entries: int
    files: int
    matcher: bool
    """Whether the paste box is there."""


def export(layers: Sequence[Layer], out: Path, *, url: str = "", pyodide: Path | None = None) -> Exported:
    """Write the site into `out`, which must be empty or hold an earlier export.

    `url` is where it will be served, for the sitemap. `pyodide` is the unpacked npm package of that name.
    Raises UsageError if the folder holds something else, or Pyodide is not there.
    """
    _clear(out)
    publications, problems = published(load(layers))
    # Paths of this machine are nobody's business, and would make every export differ.
    public = [replace(one, folder=None, layer="published") for one in publications]
    shown = [one for one in public if one.record.withdrawn is None]
    build(out / DATABASE, public, (), f"kb {kb.__version__}")
    (out / f"{DATABASE}.lock").unlink(missing_ok=True)
    _data(out, [one.record for one in public])
    for folder, one in ((one.folder, one) for one in publications):
        _proof(out, folder, one)
    with_matcher = pyodide is not None
    if pyodide is not None:
        _matcher(out, pyodide)
    with Index.open(out / DATABASE, stamp=None) as index:
        base = KnowledgeBase(index)
        sources = {one.record.id: one.folder for one in publications}
        _pages(out, base, {name: folder for name, folder in sources.items() if folder}, matcher=with_matcher)
    _words(out, [one.record for one in shown], url)
    _sitemap(out, url)
    (out / "export.json").write_text(
        json.dumps({"kb_version": kb.__version__, "entries": len(public), "left_out": len(problems)}) + "\n",
        encoding="utf-8",
    )
    return Exported(out, len(public), sum(1 for path in out.rglob("*") if path.is_file()), with_matcher)


def _clear(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / "export.json").is_file():
            raise UsageError(f"{out} holds something else", "name an empty folder, or one that an export wrote")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="\n")


def _data(out: Path, records: Sequence[PublishedEntry]) -> None:
    listed = []
    lines = []
    for record in records:
        text = record.model_dump_json(indent=2)
        _write(out / "entries" / f"{record.id}.json", text + "\n")
        lines.append(record.model_dump_json())
        listed.append(
            {
                "id": record.id,
                "signature": record.signature,
                "domain": record.domain,
                "verification_tier": record.verification_tier,
                "fix_success_rate": record.fix_success_rate,
                "last_confirmed": str(record.last_confirmed) if record.last_confirmed else None,
                "withdrawn": record.withdrawn,
                "path": f"entries/{record.id}.json",
            }
        )
    _write(
        out / "index.json",
        json.dumps({"kb_version": kb.__version__, "entries": listed}, ensure_ascii=False, indent=1) + "\n",
    )
    _write(out / "entries.jsonl", "".join(line + "\n" for line in lines))
    for name, text in schemas().items():
        _write(out / "schemas" / name, text)


def _proof(out: Path, folder: Path | None, one: Publication) -> None:
    if folder is None:
        return
    script = folder / "verify.py"
    if script.is_file():
        _write(out / "entries" / one.record.id / "verify.py", script.read_text(encoding="utf-8"))
    for file in one.evidence:
        _write(out / "entries" / one.record.id / "evidence" / file.file.name, file.file.read_text(encoding="utf-8"))


def _matcher(out: Path, pyodide: Path) -> None:
    missing = [name for name in PYODIDE if not (pyodide / name).is_file()]
    if missing:
        raise UsageError(
            f"{pyodide} is not Pyodide: no {', '.join(missing)}", "`npm pack pyodide`, unpack, name its folder"
        )
    (out / "pyodide").mkdir()
    for name in PYODIDE:
        shutil.copyfile(pyodide / name, out / "pyodide" / name)
    (out / "match").mkdir()
    with zipfile.ZipFile(out / "match/kb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(_code()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)


def _code() -> Iterator[tuple[str, bytes]]:
    """Names and contents of the modules that a look-up needs, with what they import of others."""
    import packaging

    package = Path(kb.__file__).parent
    for file in sorted(closure(package, _STARTS)):
        yield file.relative_to(package.parent).as_posix(), file.read_bytes()
    for file in sorted(Path(packaging.__file__).parent.glob("*.py")):
        yield f"packaging/{file.name}", file.read_bytes()
    browser = package / "web/browser"
    yield "answering.py", (browser / "answering.py").read_bytes()
    for file in sorted((browser / "stand_ins").glob("*.py")):
        yield file.name, file.read_bytes()


def _pages(out: Path, base: KnowledgeBase, folders: dict[str, Path], *, matcher: bool) -> None:
    for locale in LOCALES:
        for hit in base.index.list():
            pages = _at(base, _path("entry", hit.entry_id, "en"), locale, folders)
            _write(out / _path("entry", hit.entry_id, locale), pages.entry(hit.entry_id, locale))
            pages = _at(base, _path("script", hit.entry_id, "en"), locale, folders)
            if text := pages.script(hit.entry_id, locale):
                _write(out / _path("script", hit.entry_id, locale), text)
        for kind in ("home", "browse", "matrix", "graph"):
            pages = _at(base, _path(kind, "", "en"), locale, folders)
            _write(out / _path(kind, "", locale), _general(pages, kind, locale, matcher=matcher))
    static = files("kb.web").joinpath("static")
    names = ["style.css", "icon.svg", *(["paste.mjs", "worker.mjs"] if matcher else [])]
    for name in names:
        _write(out / "static" / name, static.joinpath(name).read_text(encoding="utf-8"))
    _write(out / "static/code.css", highlight.styles())


def _general(pages: Pages, kind: str, locale: str, *, matcher: bool) -> str:
    if kind == "home":
        return pages.paste_box(locale, matcher=matcher)
    if kind == "browse":
        return pages.listing(locale)
    return pages.matrix(locale) if kind == "matrix" else pages.whole_graph(locale)


def _at(base: KnowledgeBase, page: str, locale: str, folders: dict[str, Path]) -> Pages:
    """Pages whose links are relative to `page`, so that they also work from a folder."""

    own = PurePosixPath(_path_of(page, locale)).parent

    def links(kind: str, name: str = "", *, locale: str = locale, **_: str) -> str:
        goal = PurePosixPath(_path(kind, name, locale))
        here = own
        up = 0
        while not goal.is_relative_to(here):
            here = here.parent
            up += 1
        return "../" * up + goal.relative_to(here).as_posix() + ("/" if kind == "entries" else "")

    return Pages(base, links, folders=folders, searchable=False)


def _path_of(page: str, locale: str) -> str:
    return page if locale == "en" else f"{locale}/{page}"


def _path(kind: str, name: str, locale: str) -> str:
    """Where a page or a file of the site is; data is the same in every language."""
    if kind == "static":
        return f"static/{name}"
    if kind == "evidence":
        return f"entries/{name}"
    pages = {
        "home": "index.html",
        "browse": "entries.html",
        "matrix": "matrix.html",
        "graph": "graph.html",
        "search": "entries.html",
        "entry": f"entries/{name}.html",
        "script": f"entries/{name}/verify.html",
        "entries": "entries",
    }
    return _path_of(pages[kind], locale)


def _words(out: Path, records: Sequence[PublishedEntry], url: str) -> None:
    """Texts for language models: an overview, and one file for each domain."""
    domains: dict[str, list[PublishedEntry]] = {}
    for record in records:
        domains.setdefault(record.domain, []).append(record)
    lines = [
        "# provenfix",
        "",
        "> Fixes for CUDA, PyTorch and Hugging Face errors. Every rate is k of n measured runs; nobody typed one in.",
        "",
        f"All entries: {url}/entries.jsonl (schema: {url}/schemas/published.schema.json), SQLite: {url}/{DATABASE}",
        "",
        "## Domains",
        "",
    ]
    lines += [f"- [{name}]({url}/llms/{name}.txt): {len(some)} errors" for name, some in sorted(domains.items())]
    _write(out / "llms.txt", "\n".join(lines) + "\n")
    for name, some in domains.items():
        _write(out / "llms" / f"{name}.txt", "\n".join(_told(record) for record in some))


def _told(record: PublishedEntry) -> str:
    lines = [
        f"# {record.id} ({record.verification_tier})",
        f"Message: {record.signature}",
        f"Cause: {record.root_cause}",
    ]
    for fix in record.workarounds:
        rate = f"{fix.measured.k} of {fix.measured.n} on {fix.measured.device}" if fix.measured else fix.state
        lines.append(f"Fix ({rate}): {fix.action}")
    for caution in record.dead_ends:
        rate = f"failed {caution.measured.k} of {caution.measured.n}" if caution.measured else caution.state
        lines.append(f"Does not help ({rate}): {caution.action}")
    return "\n".join(lines) + "\n"


def _sitemap(out: Path, url: str) -> None:
    pages = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.html"))
    body = "".join(f"<url><loc>{escape(f'{url}/{page}')}</loc></url>\n" for page in pages)
    _write(
        out / "sitemap.xml",
        f'<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{body}</urlset>\n',
    )
    _write(out / "robots.txt", f"User-agent: *\nAllow: /\nSitemap: {url}/sitemap.xml\n")
