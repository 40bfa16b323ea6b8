"""The HTTP interface and the pages: the same answers, bounded, and inert whatever is pasted."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator

from kb import api
from kb.knowledge import KnowledgeBase
from kb.web.app import create_app
from kb.web.graph import drawing
from kb.web.instructions import parts
from kb.web.limits import Guard, Limits

LINEAR = "RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16"
ENTRY = "pytorch/linear-dtype-mismatch"
HOSTILE = (
    'Traceback (most recent call last):\n  File "/x/<script>alert(1)</script>.py", line 3, in <img src=x onerror=alert(1)>\n'
    "    y\nRuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16 \x1b[31m\u202eevil\u202c"
    " \"><script>alert(2)</script><a href='javascript:alert(3)'>x</a> {{ 7331 * 7 }}\n"
)


@pytest.fixture(scope="module")
def base() -> KnowledgeBase:
    return api.default()


@pytest.fixture(scope="module")
def client(base: KnowledgeBase) -> Iterator[TestClient]:
    with TestClient(create_app(base)) as client:
        yield client


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_paste_gets_the_answer_of_the_command(client: TestClient, base: KnowledgeBase) -> None:
    from kb.schema import schemas

    answer = client.post("/api/v1/match", json={"text": LINEAR})
    assert answer.status_code == 200
    Draft202012Validator(json.loads(schemas()["match.schema.json"])).validate(answer.json())
    assert answer.json()["matches"][0]["fixes"][0]["id"] == base.match(LINEAR).matches[0].fixes[0].id


def test_what_is_known_and_the_language_can_be_given(client: TestClient) -> None:
    asked = {"text": LINEAR, "locale": "zh", "environment": {"packages": {"torch": "2.6.0"}}}
    answer = client.post("/api/v1/match", json=asked).json()
    assert answer["query"]["environment"]["packages"] == {"torch": "2.6.0"}
    assert re.search(r"[\u4e00-\u9fff]", answer["matches"][0]["root_cause"])


@pytest.mark.parametrize(
    "body",
    [{}, {"text": 5}, {"text": "x", "more": 1}, {"text": "x", "environment": {"colour": "red"}},
     {"text": "x", "environment": {"packages": "torch"}}, {"text": "x", "locale": "fr"}],
    ids=str,
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post("/api/v1/match", json=body).status_code == 422


def test_entries_and_searches(client: TestClient) -> None:
    everything = client.get("/api/v1/entries").json()
    assert ENTRY in [hit["id"] for hit in everything]
    assert {hit["domain"] for hit in client.get("/api/v1/entries?domain=cuda").json()} == {"cuda"}
    assert client.get(f"/api/v1/entries/{ENTRY}").json()["id"] == ENTRY
    assert client.get("/api/v1/search?q=unscale+float16").json()[0]["id"] == "pytorch/gradscaler-unscale-fp16-gradients"


@pytest.mark.parametrize(
    "path",
    ["/api/v1/entries/pytorch/nothing", "/entries/pytorch/nothing", "/entries/..%2f..%2fetc/passwd",
     f"/entries/{ENTRY}/evidence/..%2fentry.json", f"/entries/{ENTRY}/evidence/entry.json", "/static/..%2fapp.py",
     "/static/app.py", "/nowhere", "/entries/cuda/driver-too-old/verify.py"],
)  # fmt: skip
def test_what_is_not_there_is_404(client: TestClient, path: str) -> None:
    for accept in ("text/html", "application/json"):
        assert client.get(path, headers={"accept": accept}).status_code == 404


def test_an_entry_page_shows_what_ran_and_what_was_measured(client: TestClient) -> None:
    page = client.get(f"/entries/{ENTRY}").text
    assert page.count('class="bar"') > 5
    assert "def</span>" in page
    tags = Tags(page).found
    links = [attributes.get("href") or "" for tag, attributes in tags if tag == "a"]
    for link in links:
        if link.startswith("/"):
            assert client.get(link, headers={"accept": "text/html"}).status_code == 200, link
    assert any("/evidence/" in link for link in links)
    assert any(link.endswith("/verify.py") for link in links)
    assert any(tag == "svg" and "/" in page for tag, _ in tags)


def test_every_entry_has_pages_in_both_languages(client: TestClient) -> None:
    for hit in client.get("/api/v1/entries").json():
        for language in ("", "?lang=zh"):
            answer = client.get(f"/entries/{hit['id']}{language}")
            assert answer.status_code == 200, hit["id"]


def test_pasting_browsing_searching(client: TestClient) -> None:
    answer = client.post("/", data={"text": LINEAR})
    assert f"/entries/{ENTRY}" in answer.text
    assert "Fixes, best first" in answer.text
    assert "修复方案" in client.post("/?lang=zh", data={"text": LINEAR}).text
    assert "No entry knows this error" in client.post("/", data={"text": "KeyError: 'rows'"}).text
    assert client.post("/", data={"text": "  "}).status_code == 400
    assert "/entries/cuda/out-of-memory" in client.get("/entries?domain=cuda").text
    assert f"/entries/{ENTRY}" in client.get("/search", params={"q": "mat1 mat2 dtype"}).text


def test_nothing_pasted_can_act(client: TestClient) -> None:
    for page in (
        client.post("/", data={"text": HOSTILE}).text,
        client.get("/search", params={"q": HOSTILE[:400]}).text,
        client.get("/entries", params={"domain": '"><script>alert(1)</script>'[:90]}).text,
    ):
        tags = Tags(page).found
        assert not {"script", "img", "iframe", "object", "style"} & {tag for tag, _ in tags}
        for _, attributes in tags:
            assert not any(name.startswith("on") or name == "style" for name in attributes)
            assert not (attributes.get("href") or "").lower().startswith("javascript")
        assert "\x1b" not in page
        assert "\u202e" not in page
        assert "51317" not in page


def test_secrets_do_not_come_back(client: TestClient) -> None:
    secret = "hf_" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7"
    text = f"{LINEAR} with {secret}"
    assert secret not in client.post("/", data={"text": text}).text
    assert secret not in client.post("/api/v1/match", json={"text": text}).text
    assert secret not in client.get("/metrics").text


def test_headers_forbid_what_pages_do_not_need(client: TestClient) -> None:
    for path in ("/", "/healthz", "/nowhere", "/static/style.css"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_pages_keep_to_their_own_policy(client: TestClient) -> None:
    for path in ("/", "/entries", f"/entries/{ENTRY}", f"/entries/{ENTRY}/verify.py"):
        page = client.get(path, headers={"accept": "text/html"}).text
        assert not [tag for tag, attributes in Tags(page).found if "style" in attributes or tag in ("script", "style")]


def test_a_head_request_has_no_body(client: TestClient) -> None:
    answer = client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_body_may_have_one_mebibyte(client: TestClient) -> None:
    assert client.post("/api/v1/match", json={"text": "x" * 1_000_000}).status_code == 200
    assert client.post("/api/v1/match", json={"text": "x" * 1_100_000}).status_code == 413
    assert client.post("/", data={"text": "x" * 1_100_000}).status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 32_768

    assert client.post("/api/v1/match", content=pieces()).status_code == 413


def test_another_name_is_refused(client: TestClient, base: KnowledgeBase) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/", headers={"host": "localhost:8321"}).status_code == 200
    assert client.get("/", headers={"host": "[::1]:8321"}).status_code == 200
    with TestClient(create_app(base, open_to_all=True)) as open_client:
        assert open_client.get("/", headers={"host": "kb.example"}).status_code == 200


def test_a_token_is_asked_of_everybody(base: KnowledgeBase) -> None:
    with TestClient(create_app(base, token="correct horse")) as client:
        assert client.get("/").status_code == 401
        assert client.get("/", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/", headers={"authorization": "Bearer correct horse"}).status_code == 200
        assert client.get("/", auth=("anyone", "correct horse")).status_code == 200
        assert client.get("/", headers={"authorization": "Basic !!!"}).status_code == 401
        assert client.get("/healthz").status_code == 200


def test_counters_know_routes_and_outcomes(base: KnowledgeBase) -> None:
    with TestClient(create_app(base)) as client:
        client.post("/api/v1/match", json={"text": LINEAR})
        client.post("/api/v1/match", json={"text": "KeyError: 'rows'"})
        client.get("/entries/a/b")
        text = client.get("/metrics").text
    assert 'kb_answers_total{outcome="recognised"} 1.0' in text
    assert 'kb_answers_total{outcome="unknown"} 1.0' in text
    assert 'route="/entries/{domain}/{slug}",status="404"' in text


async def guarded(limits: Limits, app: Any, *messages: Any, times: int = 1) -> list[int]:
    """Statuses that a guard gives to so many requests at once."""
    statuses: list[int] = []

    async def one() -> None:
        waiting = list(messages)

        async def receive() -> Any:
            return waiting.pop(0) if waiting else await asyncio.sleep(60)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
        await guard(scope, receive, send)

    guard = Guard(app, limits, None, frozenset({"localhost"}))
    await asyncio.gather(*(one() for _ in range(times)))
    return statuses


async def slow(_scope: Any, _receive: Any, send: Any) -> None:
    await asyncio.sleep(0.3)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


WHOLE = {"type": "http.request", "body": b"x", "more_body": False}
PART = {"type": "http.request", "body": b"x", "more_body": True}


def test_a_body_that_never_ends_is_given_up() -> None:
    assert asyncio.run(guarded(Limits(upload_seconds=0.05), slow, PART)) == [408]


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    assert asyncio.run(guarded(Limits(answer_seconds=0.05), slow, WHOLE)) == [503]


def test_too_many_at_once_are_told_to_come_again() -> None:
    statuses = asyncio.run(guarded(Limits(at_once=3), slow, WHOLE, times=5))
    assert sorted(statuses) == [200, 200, 200, 503, 503]


def test_the_graph_holds_every_neighbour() -> None:
    graph = {"preceded_by": ["a/b"], "leads_to": ["c/d", "e/f"], "frequently_confused_with": ["g/h"]}
    drawn = drawing({"id": "x/y", "transition_graph": graph})
    assert drawn is not None
    assert {(box.id, box.kind) for box in drawn.boxes} == {
        ("x/y", "self"), ("a/b", "before"), ("c/d", "after"), ("e/f", "after"), ("g/h", "confused"),
    }  # fmt: skip
    assert all(0 <= box.x <= drawn.width and 0 <= box.y <= drawn.height for box in drawn.boxes)
    assert drawing({"id": "x/y", "transition_graph": {key: [] for key in graph}}) is None


def test_instructions_are_told_apart_from_code() -> None:
    text = "Use the same dtype in the whole model.\nmodel = model.to(dtype)\nfor x in y:\n    z(x)\n\npip install torch\nor wait."
    assert [part.kind for part in parts(text)] == ["prose", "python", "prose"]
    assert parts(text)[1].text.endswith("pip install torch")
    assert [part.kind for part in parts("Run this:\n\n    pip install -U torch")] == ["prose", "shell"]


def test_the_description_of_the_interface_has_examples(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert "/api/v1/match" in described["paths"]
    assert described["components"]["schemas"]["Paste"]["examples"]
    assert "/" not in described["paths"]
