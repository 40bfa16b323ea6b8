"""`kb mcp`, asked by the SDK's own client over both transports."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from mcp import Client
from mcp.client.stdio import StdioServerParameters

from kb import api
from kb.integrations.mcp_server import server

LINEAR = "RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16"
OURS = "hf_" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7"


def asked(question: Callable[[Client], Awaitable[Any]]) -> Any:
    """The answer of a server in this process."""

    async def ask() -> Any:
        async with Client(server(api.default())) as client:
            return await question(client)

    return asyncio.run(ask())


def call(tool: str, **arguments: Any) -> Any:
    return asked(lambda client: client.call_tool(tool, arguments))


def test_a_traceback_gets_the_answer_in_text_and_in_structure() -> None:
    result = call("kb_match_traceback", text=LINEAR)
    assert not result.is_error
    data = result.structured_content
    assert data["recognised"] is True
    assert data["entry"]["id"] == "pytorch/linear-dtype-mismatch"
    assert data["entry"]["fixes"][0]["how"]
    assert result.content[0].text.startswith("pytorch/linear-dtype-mismatch (root; ")


@pytest.mark.parametrize("detail", ["short", "full"])
def test_only_a_short_answer_is_short(detail: str) -> None:
    result = call("kb_match_traceback", text=LINEAR, detail=detail)
    # A client shows its model the text or the structure. Four characters make about one token of English and code.
    size = max(len(result.content[0].text), len(json.dumps(result.structured_content)))
    assert (size / 4 <= 1_500) == (detail == "short")


def test_every_entry_answers_shortly() -> None:
    from kb.render import compact

    base = api.default()
    longest = max(
        (len(compact.text(data)) + len(json.dumps(data)), hit.entry_id)
        for hit in base.index.list()
        if (data := compact.answer(base.match(hit.signature)))["recognised"]
    )
    assert longest[0] / 4 <= 1_500 * 1.25, longest


def test_an_unknown_error_is_called_unknown() -> None:
    result = call("kb_match_traceback", text="KeyError: 'rows'")
    assert result.structured_content["recognised"] is False
    assert result.structured_content["entry"] is None
    assert result.content[0].text.startswith("Unknown")


def test_secrets_of_the_paste_do_not_come_back() -> None:
    result = call("kb_match_traceback", text=f"{LINEAR} token={OURS}", detail="full")
    assert OURS not in str(result)


def test_installed_versions_decide_which_fixes_apply() -> None:
    text = "TypeError: TrainingArguments.__init__() got an unexpected keyword argument 'evaluation_strategy'"
    fixes = call("kb_match_traceback", text=text, packages={"transformers": "5.0.0"}).structured_content["entry"][
        "fixes"
    ]
    assert any(fix["applies"] is not None for fix in fixes)


def test_entries_searches_and_scripts() -> None:
    record = call("kb_get_entry", entry_id="pytorch/linear-dtype-mismatch").structured_content["entry"]
    assert record["verification_tier"].startswith("verified")
    hits = call("kb_search_entries", query="unscale float16", limit=2).structured_content["entries"]
    assert hits[0]["id"] == "pytorch/gradscaler-unscale-fp16-gradients"
    script = call("kb_verification_script", entry_id="pytorch/linear-dtype-mismatch").structured_content
    assert "def test_reproduces" in script["source"]


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("kb_get_entry", {"entry_id": "../../etc/passwd"}),
        ("kb_get_entry", {"entry_id": ""}),
        ("kb_get_entry", {}),
        ("kb_match_traceback", {"text": 5}),
        ("kb_match_traceback", {"text": LINEAR, "detail": "everything"}),
        ("kb_search_entries", {"query": "x", "limit": 10_000}),
        ("kb_no_such_tool", {}),
    ],
)
def test_what_makes_no_sense_is_an_error_and_no_death(tool: str, arguments: dict[str, Any]) -> None:
    async def ask(client: Client) -> Any:
        try:
            bad = await client.call_tool(tool, arguments)
            assert bad.is_error
        except Exception as error:
            assert "MCPError" in type(error).__name__, error
        return await client.call_tool("kb_match_traceback", {"text": LINEAR})

    assert asked(ask).structured_content["recognised"] is True


def test_tools_only_read_and_say_what_they_give() -> None:
    tools = asked(lambda client: client.list_tools()).tools
    assert {tool.name for tool in tools} == {
        "kb_match_traceback", "kb_get_entry", "kb_search_entries", "kb_verification_script",
    }  # fmt: skip
    for tool in tools:
        assert tool.annotations.read_only_hint is True
        Draft202012Validator.check_schema(tool.output_schema)


def test_entries_are_resources() -> None:
    async def ask(client: Client) -> tuple[Any, Any]:
        one = await client.read_resource("kb://entries/pytorch/linear-dtype-mismatch")
        everything = await client.read_resource("kb://entries")
        with pytest.raises(Exception, match="no entry has the id"):
            await client.read_resource("kb://entries/pytorch/nothing-of-the-kind")
        return one, everything

    one, everything = asked(ask)
    assert json.loads(one.contents[0].text)["id"] == "pytorch/linear-dtype-mismatch"
    assert len(json.loads(everything.contents[0].text)) == len(api.default().index.list())


def test_over_standard_input_and_output() -> None:
    async def ask() -> Any:
        command = StdioServerParameters(command=sys.executable, args=["-m", "kb", "mcp"], env=dict(os.environ))
        async with Client(command) as client:
            return await client.call_tool("kb_match_traceback", {"text": LINEAR})

    assert asyncio.run(ask()).structured_content["entry"]["id"] == "pytorch/linear-dtype-mismatch"


@asynccontextmanager
async def listening() -> AsyncIterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "kb", "mcp", "--transport", "http", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            await asyncio.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_over_http() -> None:
    async def ask() -> Any:
        async with listening() as url, Client(url) as client:
            return await client.call_tool("kb_match_traceback", {"text": LINEAR})

    assert asyncio.run(ask()).structured_content["entry"]["id"] == "pytorch/linear-dtype-mismatch"


def test_http_is_for_this_machine_only() -> None:
    command = [sys.executable, "-m", "kb", "mcp", "--transport", "http", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "loopback only" in done.stderr
