"""The same paste gets the same first entry and the same first fix, however it is asked."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from mcp import Client

import kb
from kb import api
from kb.integrations.mcp_server import server
from kb.render import brief, markdown, sarif, text
from kb.web.app import create_app

ENTRIES = Path(__file__).parent.parent / "entries"
SAMPLES = {path.parts[-4]: path for path in sorted(ENTRIES.glob("*/*/samples/[!n]*.txt"), reverse=True)}
"""One sample of each domain."""


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_all_ways_agree(sample: Path) -> None:
    paste = sample.read_text(encoding="utf-8")
    result = kb.match(paste)
    main = result.matches[0]
    first = (main.entry_id, main.fixes[0].id)

    asked = [sys.executable, "-m", "kb", "match", str(sample), "--format", "json"]
    command = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    assert (command["matches"][0]["entry_id"], command["matches"][0]["fixes"][0]["id"]) == first

    with TestClient(create_app(api.default())) as client:
        served = client.post("/api/v1/match", json={"text": paste}).json()
        page = client.post("/", data={"text": paste}).text
    assert (served["matches"][0]["entry_id"], served["matches"][0]["fixes"][0]["id"]) == first
    assert page.index(f"/entries/{first[0]}") < page.index(f'id="fix-{first[1]}"')

    async def ask() -> Any:
        async with Client(server(api.default())) as client:
            return await client.call_tool("kb_match_traceback", {"text": paste})

    told = asyncio.run(ask()).structured_content["entry"]
    assert (told["id"], told["fixes"][0]["id"]) == first

    action = " ".join(main.fixes[0].action.split()[:3])
    for shown in (
        text.result(result, width=100, color=False),
        brief.block(result, width=100, color=False),
        sarif.dumps([("x", result)]),
    ):
        assert first[0] in shown
        assert action in shown
    assert markdown.escape(first[0]) in markdown.result(result)
