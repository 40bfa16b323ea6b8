"""`mcp` and `serve`: other programs ask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kb.errors import UsageError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def mcp(transport: str, *, host: str, port: int, entries: Sequence[Path]) -> None:
    """Serve agents until they go away. Raises UsageError for a wrong transport, or if the SDK is not installed."""
    if transport == "http":
        if host not in _LOOPBACK:
            raise UsageError(f"--host {host}: agents are served on loopback only", "put a proxy with a login before it")
    elif transport != "stdio":
        raise UsageError(f"--transport {transport}: unknown", "stdio or http")
    try:
        from kb.integrations import mcp_server
    except ModuleNotFoundError as error:
        raise UsageError(f"`kb mcp` needs {error.name}", "pip install 'provenfix[mcp]'") from error
    mcp_server.run("http" if transport == "http" else "stdio", host=host, port=port, entries=list(entries))
