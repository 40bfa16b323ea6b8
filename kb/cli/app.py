"""The typer application: help, completion, and the wiring of each command to its function."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kb import __version__
from kb.cli import match as match_command
from kb.cli import terminal
from kb.cli.commands import browse, corpus, maintain, proof

app = typer.Typer(
    name="kb",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Paste a CUDA, PyTorch or Hugging Face traceback, get ranked fixes that were proven by running them.",
    epilog="Exit codes: 0 answered, 1 not recognised or a check failed, 2 usage or internal error, 130 interrupted.",
)

Entries = Annotated[
    list[Path] | None,
    typer.Option(
        "--entries", help="Folder of further entries, laid over the packaged ones. Repeatable; also KB_ENTRIES."
    ),
]
Locale = Annotated[str, typer.Option("--locale", help="Language of the answer: en or zh.")]
Format = Annotated[str, typer.Option("--format", "-f", help="text or json.")]


def main(arguments: list[str]) -> int:
    """Run the application on these arguments and return its exit code."""
    try:
        code = app(args=arguments, prog_name="kb", standalone_mode=True)
    except SystemExit as done:
        code = done.code
    return code if isinstance(code, int) else 0


def _version(wanted: bool) -> None:
    if wanted:
        terminal.write(f"kb {__version__}\n")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def match(
    files: Annotated[
        list[str] | None, typer.Argument(help="Files with pastes or logs; `-` or nothing reads standard input.")
    ] = None,
    format: Annotated[
        str, typer.Option("--format", "-f", help="text, markdown, json, jsonl, sarif or github.")
    ] = "text",
    locale: Locale = "en",
    env: Annotated[
        str, typer.Option("--env", help="What is known beyond the paste: none, auto (this machine), or a JSON file.")
    ] = "none",
    redact: Annotated[
        str,
        typer.Option("--redact", help="What quotations of the paste leave out: none, secrets, or paths as well."),
    ] = "secrets",
    entries: Entries = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show what each stage made of the paste.")] = False,
    why_not: Annotated[
        str | None, typer.Option("--why-not", metavar="ID", help="Say which condition this entry failed.")
    ] = None,
    try_entry: Annotated[
        str | None,
        typer.Option("--try", metavar="ENTRY", help="Try an entry.json that is being written: what it hits and takes."),
    ] = None,
) -> None:
    """Answer a pasted traceback or log with ranked fixes. Exit code 1 if nothing in it is known."""
    folders = tuple(map(str, entries or ()))
    options = match_command.Options(
        tuple(files or ()), format, locale, env, redact, folders, explain, why_not, try_entry
    )
    sys.exit(match_command.run(options))


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND...", help="The program to run.")] = None,
    full: Annotated[bool, typer.Option("--full", help="The whole answer instead of a short one.")] = False,
    locale: Locale = "en",
    entries: Entries = None,
) -> None:
    """Run a program as it is, and explain its death on standard error. The exit code is the program's."""
    from kb.cli.commands import supervision

    sys.exit(supervision.run(command or [], full=full, locale=locale, entries=entries or []))


@app.command()
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on; others than loopback need --token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 8321,
    token: Annotated[
        str | None, typer.Option("--token", help="What everybody who asks must know; or set KB_TOKEN.")
    ] = None,
    body_limit: Annotated[
        int, typer.Option("--body-limit", min=1_024, help="Bytes that a paste may have.")
    ] = 1_048_576,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="Requests in progress before others wait.")] = 64,
    entries: Entries = None,
) -> None:
    """Serve a web page to paste into, and the HTTP interface. Needs `provenfix[serve]`."""
    from kb.cli.commands import serving

    serving.serve(host=host, port=port, token=token, body_limit=body_limit, at_once=at_once, entries=entries or [])


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="Folder to write; an earlier export in it is replaced.")] = Path(
        "site"
    ),
    url: Annotated[str, typer.Option("--url", help="Where it will be served, for the sitemap.")] = "",
    pyodide: Annotated[
        Path | None,
        typer.Option(
            "--pyodide", help="The unpacked npm package `pyodide`, for a paste box that matches in the browser."
        ),
    ] = None,
    entries: Entries = None,
) -> None:
    """Write the published catalogue as a static site: pages, JSON, SQLite, schemas. Needs `provenfix[serve]`."""
    from kb.cli.commands import serving

    serving.export(out=out, url=url, pyodide=pyodide, entries=entries or [])


@app.command()
def mcp(
    transport: Annotated[str, typer.Option("--transport", help="stdio or http (streamable HTTP).")] = "stdio",
    host: Annotated[str, typer.Option("--host", help="Address to listen on, with http.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on, with http.")] = 8322,
    entries: Entries = None,
) -> None:
    """Serve the knowledge base to agents over the Model Context Protocol. Needs `provenfix[mcp]`."""
    from kb.cli.commands import serving

    serving.mcp(transport, host=host, port=port, entries=entries or [])


@app.command()
def show(
    entry_id: Annotated[str, typer.Argument(metavar="ID", help="Entry id or alias.")],
    format: Format = "text",
    locale: Locale = "en",
    reported: Annotated[bool, typer.Option("--reported", help="Only the imported record, verbatim, as JSON.")] = False,
    entries: Entries = None,
) -> None:
    """Show one entry with everything measured about it."""
    browse.show(entry_id, format=format, locale=locale, reported=reported, entries=entries or [])


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(help="Words to look for.")],
    domain: Annotated[str | None, typer.Option("--domain", help="Only entries of this domain.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many.")] = 20,
    format: Format = "text",
    entries: Entries = None,
) -> None:
    """Find entries by words. Exit code 1 if there are none."""
    sys.exit(browse.search(" ".join(words), domain=domain, limit=limit, format=format, entries=entries or []))


@app.command(name="list")
def list_entries(
    domain: Annotated[str | None, typer.Option("--domain", help="Only entries of this domain.")] = None,
    tier: Annotated[str | None, typer.Option("--tier", help="Only entries of this verification tier.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only entries with this tag.")] = None,
    format: Format = "text",
    entries: Entries = None,
) -> None:
    """List entries."""
    browse.listing(domain=domain, tier=tier, tag=tag, format=format, entries=entries or [])


@app.command()
def index(
    path: Annotated[bool, typer.Option("--path", help="Print where the index is, building it if needed.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="Also write a copy here, for other tools; an older one is replaced.")
    ] = None,
    entries: Entries = None,
) -> None:
    """Build the SQLite index anew, say where it is, or copy it: `datasette provenfix.db` (docs/sql.md)."""
    maintain.index(path_only=path, output=output, entries=entries or [])


@app.command(name="import")
def import_records(
    source: Annotated[
        Path, typer.Argument(help="A reference-shaped JSON record, a folder of them, or results of a bundle.")
    ],
    to: Annotated[Path, typer.Option("--to", help="Entries folder to write into.")] = Path("entries"),
    into: Annotated[
        str | None, typer.Option("--into", metavar="ID", help="Attach the record to this existing entry.")
    ] = None,
) -> None:
    """Take in foreign records as unproven claims, or evidence from another machine. Nothing is overwritten."""
    sys.exit(maintain.import_records(source, to=to, into=into))


@app.command()
def new(
    file: Annotated[str, typer.Argument(help="A file with the traceback; `-` reads standard input.")] = "-",
    entry_id: Annotated[
        str | None, typer.Option("--id", metavar="DOMAIN/SLUG", help="Its id, instead of a proposed one.")
    ] = (None),
    root: Annotated[Path, typer.Option("--root", help="Entries folder to write into.")] = Path("entries"),
    anyway: Annotated[bool, typer.Option("--anyway", help="Even if an entry answers this already.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Write without asking.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Say as JSON what was made of it.")] = False,
    entries: Entries = None,
) -> None:
    """Start an entry from a paste: pattern, redacted sample, script of three arms. Exit code 1 if it is known."""
    from kb.cli.commands import creation

    sys.exit(
        creation.new(file, entry_id=entry_id, root=root, anyway=anyway, yes=yes, as_json=json, entries=entries or [])
    )


@app.command()
def schema(
    name: Annotated[
        str | None, typer.Argument(help="entry, published, evidence, provenance or match; nothing lists them.")
    ] = None,
    write: Annotated[Path | None, typer.Option("--write", help="Write all schemas into this folder.")] = None,
) -> None:
    """Print a JSON Schema."""
    maintain.schema(name, write=write)


@app.command()
def check(
    ids: Annotated[list[str] | None, typer.Argument(help="Entry ids or folders; nothing means all.")] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Entries folder; by default the packaged one or the checkout's.")
    ] = None,
    clean: Annotated[Path | None, typer.Option("--clean", help="Folder of pastes that must match nothing.")] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="REV", help="Refuse evidence edited or removed since this git revision."),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Repair what needs no judgement: form, secrets in samples.")
    ] = False,
    format: Annotated[str, typer.Option("--format", help="text, json, github or sarif.")] = "text",
) -> None:
    """Check entries: schema, patterns, samples, links, arms. Exit code 1 if anything is found."""
    sys.exit(maintain.check(ids or [], root=root, clean=clean, base=base, fix=fix, format=format))


@app.command()
def batch(
    source: Annotated[
        str,
        typer.Argument(metavar="IN", help="Folder, file, pattern or URL; or `report`, to draw what OUT holds."),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL for the answers.")],
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes; 0 is one for each core.")] = 0,
    address: Annotated[
        str | None, typer.Option("--address", help="A Ray cluster instead of this machine, ray://HOST:PORT.")
    ] = None,
    part_size: Annotated[
        int, typer.Option("--part-size", min=1, help="About how many logs a worker takes at once.")
    ] = 4_096,
    engine: Annotated[str, typer.Option("--engine", help="auto, daft or processes.")] = "auto",
    retry: Annotated[bool, typer.Option("--retry", help="Read again what could not be read before.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With `report`: the page; else OUT/report.html.")
    ] = None,
    entries: Entries = None,
) -> None:
    """Match millions of job logs into Parquet; stopped, it goes on where it was. Needs `provenfix[batch]`."""
    from kb.cli.commands import batching

    if source == batching.REPORT:
        sys.exit(batching.report(out, output))
    sys.exit(
        batching.batch(
            source, out, workers=workers, address=address, size=part_size, engine=engine, retry=retry,
            entries=entries or [],
        )
    )  # fmt: skip


@app.command(name="eval")
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="CORPUS", help="JSON Lines with text and entry.")],
    json: Annotated[bool, typer.Option("--json", help="The whole report as JSON.")] = False,
    entries: Entries = None,
) -> None:
    """Score the matcher on a labelled corpus."""
    corpus.evaluate(path, as_json=json, entries=entries or [])


@app.command()
def rates(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Entry ids.")],
    format: Format = "text",
    entries: Entries = None,
) -> None:
    """Show what was measured of entries: k of n with its interval and cost, environment by environment."""
    sys.exit(proof.rates(ids, format=format, entries=entries or []))


@app.command()
def verify(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Entry ids.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every entry that has a script.")] = False,
    stale: Annotated[
        bool, typer.Option("--stale", help="Entries with an arm that no fresh run on the device covers.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda; by default CUDA if there is one.")
    ] = None,
    evidence: Annotated[
        Path | None,
        typer.Option("--evidence", help="Write evidence here; an entries folder takes it beside the entries."),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", help="Only this workaround, dead end, test or configuration. Repeatable."),
    ] = None,
    requirement: Annotated[
        list[str] | None,
        typer.Option("--with", help="Run with this version, PACKAGE==VERSION, in a throwaway environment."),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Arms side by side; those that measure cost run alone.")
    ] = 1,
    no_cost: Annotated[
        bool, typer.Option("--no-cost", help="Measure no time and memory of steps, so that no arm runs alone.")
    ] = False,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds an arm may take.")] = None,
    memory: Annotated[float | None, typer.Option("--memory", help="GiB an arm may take.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run without asking.")] = False,
    save_sample: Annotated[
        bool, typer.Option("--save-sample", help="Keep what was raised as samples of the entries.")
    ] = False,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Make a folder to run on a machine without network.")
    ] = None,
    format: Format = "text",
    entries: Entries = None,
) -> None:
    """Run the verification scripts: 0 claims held, 1 one was contradicted, 2 error, 3 nothing could run here."""
    from kb.cli.commands import verification

    options = verification.Options(
        ids=ids or [], every=every, stale=stale, device=device, evidence=evidence, cases=case or [],
        requirements=requirement or [], jobs=jobs, cost=not no_cost, timeout=timeout, memory=memory, yes=yes,
        save_sample=save_sample, bundle=bundle, format=format, entries=entries or [],
    )  # fmt: skip
    sys.exit(verification.verify(options))


@app.command()
def provenance(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Entry ids.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every entry.")] = False,
    versions: Annotated[
        int, typer.Option("--versions", min=1, help="At most this many releases of each distribution.")
    ] = 8,
    version: Annotated[
        list[str] | None, typer.Option("--version", metavar="[NAME==]X", help="This release instead. Repeatable.")
    ] = None,
    package: Annotated[
        list[str] | None, typer.Option("--package", help="Look into this distribution too. Repeatable.")
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            "--platform",
            help="Look at wheels of these only, in this order: any, macos-arm64, linux-x86_64, … Repeatable.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Leave wheels of more than this many MiB alone.")] = 300,
    large: Annotated[
        bool, typer.Option("--large", help="Look at wheels of any size: CUDA code of torch is in the largest.")
    ] = False,
    pinpoint: Annotated[
        bool, typer.Option("--pinpoint", help="Then find the very releases in which a message came and went.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="Folder that keeps wheels; by default below KB_CACHE or the user's cache."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Entries folder; by default the packaged one or the checkout's.")
    ] = None,
    no_write: Annotated[bool, typer.Option("--no-write", help="Only print.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Records and what they say, as JSON.")] = False,
) -> None:
    """Look whether the messages entries claim stand in released wheels. Downloads with pip, installs nothing."""
    from kb.cli.commands import provenance as command

    options = command.Options(
        ids=tuple(ids or ()),
        every=every,
        count=versions,
        named=tuple(version or ()),
        packages=tuple(package or ()),
        platforms=tuple(platform or ()),
        limit=None if large else limit * 2**20,
        pinpoint=pinpoint,
        cache=cache,
        root=root,
        write=not no_write,
        as_json=json,
    )
    sys.exit(command.run(options))
