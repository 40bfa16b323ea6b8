"""`match --explain` and `match --why-not`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kb.cli import terminal
from kb.errors import UsageError
from kb.explain import Explanation, WhyNot
from kb.knowledge import KnowledgeBase
from kb.models.result import Environment
from kb.opening import ask
from kb.render import explain, structured

if TYPE_CHECKING:
    from kb.cli.match import Options, Paste


def run(options: Options, pastes: Sequence[Paste], environment: Environment) -> int:
    """Show the stages, or why an entry is not the answer. Exit code 1 where a paste has no answer, or not that one."""
    if options.explain and options.why_not is not None:
        raise UsageError("--explain and --why-not ask different things", "give one of them")
    if options.format == "markdown":
        raise UsageError("--format markdown shows no explanation", "use text, json or jsonl")

    def question(base: KnowledgeBase) -> list[Explanation | WhyNot]:
        if (entry_id := options.why_not) is not None:
            return [base.why_not(paste.read(base), entry_id) for paste in pastes]
        return [base.explain(paste.read(base), environment) for paste in pastes]

    values = ask([Path(folder) for folder in options.entries], question)
    for paste, value in zip(pastes, values, strict=True):
        if options.format == "text" and len(pastes) > 1:
            terminal.write(f"==> {paste.name} <==\n")
        terminal.write(_shown(value) if options.format == "text" else _dumped(value, options.format))
    return 0 if all(map(_answered, values)) else 1


def _answered(value: Explanation | WhyNot) -> bool:
    return value.condition == "answered" if isinstance(value, WhyNot) else bool(value.answers)


def _shown(value: Explanation | WhyNot) -> str:
    if isinstance(value, WhyNot):
        return explain.why_not(value, width=terminal.width(), color=terminal.color())
    return explain.explanation(value, width=terminal.width(), color=terminal.color())


def _dumped(value: Explanation | WhyNot, format: str) -> str:
    return structured.dumps(value, compact=format == "jsonl")
