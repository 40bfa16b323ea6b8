"""`kb mcp`: the knowledge base for agents, over the Model Context Protocol (stdio or streamable HTTP).

Every tool only reads. A match answer is short unless more is asked for; quotations of the paste are redacted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio.to_thread
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError, ToolError
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field

import kb
from kb import api
from kb.errors import KbError, UnknownEntryError
from kb.knowledge import KnowledgeBase
from kb.localize import localized
from kb.models.result import Environment
from kb.redacted import redacted
from kb.render import compact, text
from kb.scripts import verification_script

MOST_TEXT = 4_000_000
"""Code points of a paste."""
_INSTRUCTIONS = (
    "Ranked, measured fixes for CUDA, PyTorch and Hugging Face errors. When a training or inference program fails, call"
    " kb_match_traceback with the whole traceback or log before guessing. Apply the first fix that fits, avoid the dead"
    " ends. `recognised: false` means that the knowledge base does not know the error."
)
_READ_ONLY = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
Id = Annotated[str, Field(max_length=200, description="Entry id such as pytorch/linear-dtype-mismatch, or an alias.")]
Locale = Annotated[Literal["en", "zh"], Field(description="Language of explanations.")]


class FixOut(BaseModel):
    """One ranked fix."""

    id: str
    action: str
    how: str = Field(description="Instructions or code; empty for all but the first fix of a short answer.")
    why: str = Field(description="Why it stands at this place: measured k of n, or why nothing is measured.")
    for_causes: list[str] = Field(description="Causes it is for; empty if it is for all of them.")
    condition: str
    applies: bool | None = Field(description="Whether it fits the known environment; null if not enough is known.")
    trade_off: str
    verification: str | None = Field(description="The script and test that measured it.")


class DeadEndOut(BaseModel):
    """What not to try."""

    id: str
    action: str
    why: str


class CauseOut(BaseModel):
    """One of several ways to get the error."""

    id: str
    tell_by: str


class EntryOut(BaseModel):
    """The entry that explains the failure."""

    id: str
    role: Literal["root", "consequence", "wrapper"]
    why: str
    seen: str
    your_code: str | None
    ranks: list[str]
    proof: str
    root_cause: str
    causes: list[CauseOut] = Field(description="Ways to get this error and how to tell them apart, where fixes differ.")
    fixes: list[FixOut]
    dead_ends: list[DeadEndOut]
    recoverability: str


class OtherOut(BaseModel):
    """Another entry found in the same text."""

    id: str
    role: str
    why: str


class UnknownOut(BaseModel):
    """A failure that no entry knows, as far as it was understood."""

    seen: str
    raised_by: str | None
    your_code: str | None


class AnswerOut(BaseModel):
    """Answer to a traceback."""

    recognised: bool
    entry: EntryOut | None
    also: list[OtherOut]
    unknown: UnknownOut | None
    related: list[str] = Field(description="Entries that merely sound alike; never an answer.")


class HitOut(BaseModel):
    """One entry found by words."""

    id: str
    signature: str
    domain: str
    proof_tier: str


class HitsOut(BaseModel):
    """Entries found by words, best first."""

    entries: list[HitOut]


class RecordOut(BaseModel):
    """One published entry."""

    entry: dict[str, Any] = Field(description="The record; its schema: `kb schema published`.")


class ScriptOut(BaseModel):
    """A verification script."""

    id: str
    path: str
    command: str
    source: str


def server(base: KnowledgeBase | None = None) -> MCPServer[Any]:
    """The server over `base`, by default the packaged entries."""
    served = MCPServer(
        "provenfix", title="provenfix", instructions=_INSTRUCTIONS, version=kb.__version__, log_level="WARNING"
    )
    known = base or api.default()
    known.warm()
    _tools(served, known)
    _resources(served, known)
    return served


def _tools(served: MCPServer[Any], base: KnowledgeBase) -> None:
    @served.tool(annotations=_READ_ONLY, title="Explain a traceback")
    async def kb_match_traceback(
        text: Annotated[str, Field(max_length=MOST_TEXT, description="The whole traceback or log, unshortened.")],
        detail: Annotated[
            Literal["short", "full"], Field(description="short keeps to about 1,500 tokens; full cuts nothing.")
        ] = "short",
        locale: Locale = "en",
        packages: Annotated[
            dict[str, str] | None,
            Field(description='Installed versions, such as {"torch": "2.6.0"}; they decide which fixes apply.'),
        ] = None,
    ) -> Annotated[CallToolResult, AnswerOut]:
        """Explain a CUDA, PyTorch or Hugging Face error: ranked fixes with measured rates, dead ends, root cause."""
        environment = Environment(packages=dict(packages or {}))
        result = await anyio.to_thread.run_sync(lambda: base.match(text, environment, locale=locale))
        data = compact.answer(redacted(result), full=detail == "full")
        return _both(compact.text(data), data)

    @served.tool(annotations=_READ_ONLY, title="Read an entry")
    async def kb_get_entry(entry_id: Id, locale: Locale = "en") -> Annotated[CallToolResult, RecordOut]:
        """One entry in full: causes, all fixes and dead ends, evidence, sources."""
        record = localized(_record(base, entry_id), locale)
        return _both(
            text.record(record, width=100, color=False, locale=locale), {"entry": json.loads(json.dumps(record))}
        )

    @served.tool(annotations=_READ_ONLY, title="Search entries")
    async def kb_search_entries(
        query: Annotated[str, Field(max_length=2_000, description="Words of the error or the topic.")],
        domain: Annotated[str | None, Field(max_length=100, description="Only this domain, such as pytorch.")] = None,
        limit: Annotated[int, Field(ge=1, le=50)] = 10,
    ) -> Annotated[CallToolResult, HitsOut]:
        """Entries about some words. For a traceback use kb_match_traceback instead."""
        hits = base.search(query, limit=limit, domain=domain)
        data = [{"id": h.entry_id, "signature": h.signature, "domain": h.domain, "proof_tier": h.tier} for h in hits]
        lines = [f"{h.entry_id}: {h.signature} ({h.tier})" for h in hits]
        return _both("\n".join(lines) or "no entry is about these words", {"entries": data})

    @served.tool(annotations=_READ_ONLY, title="Read a verification script")
    async def kb_verification_script(entry_id: Id) -> Annotated[CallToolResult, ScriptOut]:
        """The script that reproduces an entry's error and proves its fixes, as source. It is not run."""
        name = _record(base, entry_id)["id"]
        script = verification_script(base, name)
        if script is None:
            raise ToolError(f"{name} has no verification script yet")
        path = f"entries/{name}/verify.py"
        return _both(script, {"id": name, "path": path, "command": f"kb verify {name}", "source": script})


def _resources(served: MCPServer[Any], base: KnowledgeBase) -> None:
    @served.resource("kb://entries/{domain}/{slug}", mime_type="application/json", title="Entry")
    async def entry(domain: str, slug: str) -> str:
        """One published entry as JSON."""
        try:
            return json.dumps(base.get(f"{domain}/{slug}"), ensure_ascii=False)
        except UnknownEntryError as error:
            raise ResourceNotFoundError(str(error)) from None

    @served.resource("kb://entries", mime_type="application/json", title="All entries")
    async def entries() -> str:
        """Ids, signatures and proof tiers of all entries as JSON."""
        listed = [{"id": h.entry_id, "signature": h.signature, "proof_tier": h.tier} for h in base.index.list()]
        return json.dumps(listed, ensure_ascii=False)


def _record(base: KnowledgeBase, entry_id: str) -> Any:
    try:
        return base.get(entry_id)
    except KbError as error:
        raise ToolError(str(error)) from None


def _both(shown: str, data: dict[str, Any]) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=shown)], structured_content=data)


def run(transport: Literal["stdio", "http"], *, host: str, port: int, entries: list[Path]) -> None:
    """Serve until the client goes away."""
    served = server(api.open(entries) if entries else None)
    if transport == "stdio":
        served.run("stdio")
    else:
        served.run("streamable-http", host=host, port=port, stateless_http=True, json_response=True)
