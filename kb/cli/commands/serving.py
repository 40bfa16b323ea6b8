"""`mcp` and `serve`: other programs and browsers ask."""

from __future__ import annotations

import os
import sys
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


def serve(*, host: str, port: int, token: str | None, body_limit: int, at_once: int, entries: Sequence[Path]) -> None:
    """Serve pages and the HTTP interface until interrupted.

    Raises UsageError if the extra is not installed, or for an address that others reach without a token.
    """
    token = token or os.environ.get("KB_TOKEN") or None
    if host not in _LOOPBACK and not token:
        raise UsageError(f"--host {host}: others could reach it", "give --token, or set KB_TOKEN")
    try:
        import uvicorn

        from kb.web.app import create_app
        from kb.web.limits import Limits
    except ModuleNotFoundError as error:
        raise UsageError(f"`kb serve` needs {error.name}", "pip install 'provenfix[serve]'") from error
    from kb.opening import open_base

    base = open_base(entries)
    for warning in base.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    app = create_app(
        base, limits=Limits(body=body_limit, at_once=at_once), token=token, open_to_all=host not in _LOOPBACK
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"provenfix on http://{shown}:{port}/ (Ctrl-C ends it)", file=sys.stderr)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, server_header=False)


def export(*, out: Path, url: str, pyodide: Path | None, entries: Sequence[Path]) -> None:
    """Write the published catalogue. Raises UsageError if the extra is not installed."""
    from kb.layers import layers
    from kb.opening import overlays

    try:
        from kb.web.export import export as write
    except ModuleNotFoundError as error:
        raise UsageError(f"`kb export` needs {error.name}", "pip install 'provenfix[serve]'") from error
    done = write(layers(overlays(entries)), out, url=url.rstrip("/"), pyodide=pyodide)
    print(f"{done.entries} entries, {done.files} files in {done.folder}", file=sys.stderr)
    if not done.matcher:
        print("no paste box: `npm pack pyodide`, unpack it, and name its folder with --pyodide", file=sys.stderr)
