"""The pages in a real browser, without JavaScript. `make browser`; wants Chromium (Debian: `apt install chromium`)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

SHOTS = os.environ.get("KB_SCREENSHOTS")
PASTE = (
    'Traceback (most recent call last):\n  File "/home/ml/train.py", line 12, in main\n    y = layer(x)\n'
    "RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16\n"
)
HOSTILE = PASTE.replace(
    "layer(x)", "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
).replace("BFloat16", "BFloat16 </textarea><script>document.title='owned'</script> \u202e\x1b[31m")
SIZES = {"desktop": (1200, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "kb", "serve", "--port", str(port)], stderr=subprocess.DEVNULL)
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join)
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=False
    )
    page = context.new_page()
    page.on("console", lambda message: pytest.fail(f"the browser complains: {message.text}"))
    yield page
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{request.node.name}.png"), full_page=True)
    context.close()


def fits(page: Page) -> bool:
    """Whether nothing runs out of the page to the right."""
    box = page.locator("main").bounding_box()
    size = page.viewport_size
    assert box is not None and size is not None
    return box["x"] + box["width"] <= size["width"] + 1


def test_paste_read_navigate(page: Page, url: str) -> None:
    page.goto(url)
    page.fill("#text", PASTE)
    page.click("button.main")
    assert "pytorch/linear-dtype-mismatch" in page.inner_text("h1")
    assert page.locator(".fix .bar").count() > 0
    assert fits(page)
    page.click("h1 a")
    assert page.url.endswith("/entries/pytorch/linear-dtype-mismatch")
    assert page.locator(".graph svg").count() == 1
    assert fits(page)
    page.locator("details.source summary").first.click()
    assert "def test_reproduces" in page.locator("details.source").first.inner_text()
    page.click("text=Verification script")
    assert page.url.endswith("/verify.py")
    page.go_back()
    page.click("text=中文")
    assert "为什么会出现" in page.inner_text("main")


def test_the_keyboard_is_enough(page: Page, url: str) -> None:
    page.goto(url)
    page.keyboard.press("Tab")
    assert page.locator("a.skip:focus").count() == 1
    page.locator("#text").focus()
    page.keyboard.insert_text(PASTE)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(url + "/")
    page.wait_for_selector(".fixes")


def test_search_and_browse(page: Page, url: str) -> None:
    page.goto(url + "/entries")
    page.select_option("select[name=domain]", "cuda")
    page.click("text=Show")
    assert page.locator(".hits li").count() > 5
    assert fits(page)
    page.fill("input[name=q]", "unscale float16")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=pytorch/gradscaler-unscale-fp16-gradients")


def test_a_hostile_paste_is_shown_and_does_nothing(browser: Browser, url: str) -> None:
    context = browser.new_context()  # with JavaScript, so that it could act
    page = context.new_page()
    page.goto(url)
    page.fill("#text", HOSTILE)
    page.click("button.main")
    page.wait_for_selector("h1")
    assert page.title() != "owned"
    assert page.locator("main script, main img").count() == 0
    assert "</textarea><script>" in page.inner_text("main")
    context.close()
