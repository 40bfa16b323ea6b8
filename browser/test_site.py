"""The published site in a real browser: its own matcher agrees with `kb match`, its pages open from a folder too.

`make browser`; wants Chromium and the npm package `pyodide`, unpacked, in the folder that PYODIDE names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from playwright.sync_api import Browser, Page

import kb
from browser.test_pages import HOSTILE
from kb.redacted import redacted
from kb.render import structured

PROJECT = Path(__file__).parent.parent
SAMPLES = sorted(PROJECT.glob("entries/*/*/samples/*.txt")) + sorted(PROJECT.glob("tests/data/clean/*.txt"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "kb", "export", "--out", str(out), "--pyodide", os.environ["PYODIDE"]]
    subprocess.run(command, check=True, capture_output=True)
    return out


class Quiet(SimpleHTTPRequestHandler):
    """A plain static server."""

    extensions_map: ClassVar = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(120_000)
    yield page
    context.close()


def told(answer: Any) -> list[tuple[Any, ...]]:
    """What must agree: entries, roles, levels, lines, order of fixes."""
    return [
        (one["entry_id"], one["role"], one["level"], one["line"], [fix["id"] for fix in one["fixes"]])
        for one in answer["matches"]
    ]


def test_the_browser_answers_as_the_command_does(page: Page, url: str) -> None:
    page.goto(url + "/index.html")
    asked: list[str] = []
    page.fill("#text", "x")
    page.locator("#state", has_text="ready").wait_for()
    page.on("request", lambda request: asked.append(request.url))
    base = kb.open()
    wrong = []
    for path in SAMPLES:
        text = path.read_text(encoding="utf-8", errors="replace")
        there = page.evaluate("text => provenfix(text).then(({answer, failed}) => answer ?? {failed})", text)
        here = json.loads(structured.dumps(redacted(base.match(text))))
        if "failed" in there or told(there) != told(here):
            wrong.append((path.name, there.get("failed") or told(there), told(here)))
    assert not wrong, wrong[:3]
    assert not asked, "a paste must cause no request"


def test_a_paste_is_shown_as_text_only(page: Page, url: str) -> None:
    page.goto(url)
    page.fill("#text", HOSTILE)
    page.click("button.main")
    page.wait_for_selector("#answer h2")
    assert page.title() != "owned"
    assert page.locator("#answer script, #answer img").count() == 0
    page.click("#answer h2 a")
    assert page.url.endswith("/entries/pytorch/linear-dtype-mismatch.html")


def test_pages_link_to_each_other_in_both_languages(page: Page, url: str) -> None:
    page.goto(url + "/zh/entries/pytorch/linear-dtype-mismatch.html")
    assert "为什么会出现" in page.inner_text("main")
    page.click("header >> text=English")
    assert page.url == url + "/entries/pytorch/linear-dtype-mismatch.html"
    for name in ("matrix.html", "graph.html", "entries.html"):
        page.goto(f"{url}/{name}")
        page.locator("main a[href*='entries/']").first.click()
        assert page.locator("pre.seen").count() == 1


def test_pages_open_from_a_folder(page: Page, site: Path) -> None:
    page.goto((site / "entries.html").as_uri())
    page.click("text=pytorch/linear-dtype-mismatch")
    assert page.inner_text("h1").startswith("pytorch/linear-dtype-mismatch")
    assert page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "960px"
    page.click("text=Verification script")
    assert "def test_reproduces" in page.inner_text("main")


def test_every_link_of_every_page_leads_somewhere(site: Path) -> None:
    import re

    broken = set()
    for file in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#:]+)(?:#[^"]*)?"', file.read_text(encoding="utf-8")):
            if not (file.parent / link).resolve().exists():
                broken.add((file.relative_to(site).as_posix(), link))
    assert not broken, sorted(broken)[:5]
