"""`kb match`: read pastes, answer each, say by exit code whether anything was recognised."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kb.cli import terminal
from kb.errors import UsageError
from kb.intake import read_file, read_stdin
from kb.localize import LOCALES
from kb.models.result import Environment, Result
from kb.opening import ask
from kb.redacted import redacted

if TYPE_CHECKING:
    from kb.excerpt import Row
    from kb.knowledge import KnowledgeBase

FORMATS = ("text", "markdown", "json", "jsonl", "sarif", "github")
REDACT = ("none", "secrets", "paths")


@dataclass(frozen=True)
class Options:
    """The options of `kb match`, however they were read."""

    files: tuple[str, ...] = ()
    format: str = "text"
    locale: str = "en"
    env: str = "none"
    redact: str = "secrets"
    entries: tuple[str, ...] = ()
    explain: bool = False
    why_not: str | None = None
    try_entry: str | None = None


_VALUED = {
    "--format": "format",
    "-f": "format",
    "--locale": "locale",
    "--env": "env",
    "--entries": "entries",
    "--redact": "redact",
}


def plain(arguments: Sequence[str]) -> Options | None:
    """Options from a command line that only uses known options; None leaves the rest, help and errors, to typer."""
    files: list[str] = []
    entries: list[str] = []
    values: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in _VALUED and (equals == "" or name.startswith("--")):
            given = value if equals else next(rest, None)
            if given is None:
                return None
            if _VALUED[name] == "entries":
                entries.append(given)
            else:
                values[_VALUED[name]] = given
        elif argument.startswith("-") and argument != "-":
            return None
        else:
            files.append(argument)
    return Options(files=tuple(files), entries=tuple(entries), **values)


def run(options: Options) -> int:
    """Answer every input. Exit code 0 if something was recognised in each, 1 if not, by way of KbError 2."""
    if options.format not in FORMATS:
        raise UsageError(f"--format {options.format}: unknown", f"one of {', '.join(FORMATS)}")
    if options.locale not in LOCALES:
        raise UsageError(f"--locale {options.locale}: unknown", f"one of {', '.join(LOCALES)}")
    if options.redact not in REDACT:
        raise UsageError(f"--redact {options.redact}: unknown", f"one of {', '.join(REDACT)}")
    if options.try_entry is not None:
        from kb.cli.commands import trying

        return trying.run(options, Path(options.try_entry), options.files)
    inputs = options.files or ("-",)
    if len(inputs) > 1 and options.format == "json":
        raise UsageError("--format json gives one document", "use --format jsonl for several inputs")
    environment = known_environment(options.env)
    pastes = [Paste(name) for name in inputs]
    if options.explain or options.why_not is not None:
        from kb.cli.commands import explanation

        return explanation.run(options, pastes, environment)
    folders = [Path(folder) for folder in options.entries]
    answers = ask(folders, lambda base: [base.match(p.read(base), environment, locale=options.locale) for p in pastes])
    if options.redact != "none":
        answers = [redacted(answer, paths=options.redact == "paths") for answer in answers]
    named = list(zip(inputs, answers, strict=True))
    if options.format in ("sarif", "github"):
        terminal.write(_for_ci(options, named))
        named = []
    for name, answer in named:
        if len(inputs) > 1 and options.format in ("text", "markdown"):
            terminal.write(f"==> {name} <==\n" if options.format == "text" else f"## {name}\n\n")
        terminal.write(render(options, answer))
    return 1 if any(answer.abstained for answer in answers) else 0


def known_environment(choice: str) -> Environment:
    """`none` knows nothing, `auto` looks at this machine, anything else is a JSON file."""
    from kb import environment

    if choice == "none":
        return Environment()
    if choice == "auto":
        return environment.from_machine()
    return environment.from_file(Path(choice))


class Paste:
    """One input. A stream can be read only once, so what it gave is kept."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._text: str | Iterator[str] | list[Row] = read_stdin() if name == "-" else read_file(Path(name))

    def read(self, base: KnowledgeBase) -> str | list[Row]:
        """The text, or of a stream what matters of it."""
        if not isinstance(self._text, (str, list)):
            self._text = base.excerpt(self._text)
        return self._text


def render(options: Options, answer: Result) -> str:
    """One answer in the format asked for."""
    renderers: dict[str, Callable[[], str]] = {
        "text": lambda: _text(answer, options.locale),
        "markdown": lambda: _markdown(answer, options.locale),
        "json": lambda: _json(answer, compact=False),
        "jsonl": lambda: _json(answer, compact=True),
    }
    return renderers[options.format]()


def _for_ci(options: Options, named: Sequence[tuple[str, Result]]) -> str:
    """All inputs in one document. On GitHub the whole answers also go to the summary of the step."""
    if options.format == "sarif":
        from kb.render import sarif

        return sarif.dumps(named)
    from kb.render import github

    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        pages = "\n".join(_markdown(answer, options.locale) for _, answer in named)
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(pages)
        except OSError as error:
            terminal.warn([f"GITHUB_STEP_SUMMARY: cannot write {summary}: {error.strerror or error}"])
    return github.commands(named)


def _text(answer: Result, locale: str) -> str:
    from kb.render import text

    return text.result(answer, width=terminal.width(), color=terminal.color(), locale=locale)


def _markdown(answer: Result, locale: str) -> str:
    from kb.render import markdown

    return markdown.result(answer, locale=locale)


def _json(answer: Result, *, compact: bool) -> str:
    from kb.render import structured

    return structured.dumps(answer, compact=compact)
