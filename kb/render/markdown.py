"""Results as Markdown, for issues, chats and pull requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kb.models.result import Incident, Match, Result
from kb.render import causes
from kb.render.page import safe, spans
from kb.render.text import named, place, ranks, shown
from kb.render.words import RECOVER, TIERS, words

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&@])")


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no mention, no line break."""
    return _SPECIAL.sub(r"\\\1", " ".join(safe(text).split()))


def prose(text: str) -> str:
    """An entry's own words: as `escape`, but what stands between backticks is code."""
    return "".join(
        (code(piece) if piece.strip() else "") if number % 2 else _SPECIAL.sub(r"\\\1", piece)
        for number, piece in enumerate(spans(" ".join(safe(text).split())))
    )


def code(text: str) -> str:
    """Inline code, with a fence longer than any inside it."""
    line = " ".join(safe(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def result(answer: Result, *, locale: str = "en") -> str:
    """A match result as Markdown."""
    label = words(locale)
    if answer.abstained:
        return _unknown(answer, locale)
    main, *others = answer.matches
    lines = _main(main, answer, locale)
    if others:
        lines += ["", f"**{label['also']}**", ""]
        lines += [f"- {code(other.entry_id)}: {other.role}, {escape(other.why)}" for other in others]
    if answer.unknown_root is not None:
        lines += [
            "",
            f"**{label['only_wrapper']}**",
            "",
            *_understood(answer.query.incidents[answer.unknown_root], label),
        ]
    return "\n".join(lines) + "\n"


def _main(match: Match, answer: Result, locale: str) -> list[str]:
    label = words(locale)
    mark, name, _ = TIERS[match.verification_tier]
    incident = answer.query.incidents[match.incident]
    lines = [f"### {escape(match.entry_id)} ({mark} {name})", "", f"> {code(shown(incident))}", ""]
    lines += [f"{escape(match.why)}{escape(ranks(answer, match))}", ""]
    if match.verification_tier == "refuted":
        lines += [f"**{escape(match.tier_reason)}**", ""]
    lines += [f"**{label['why']}**: {prose(match.root_cause)}", ""]
    if told_apart := causes.told_apart(match.causes, match.fixes):
        lines += [f"**{label['causes']}**", "", *(_cause(cause, label) for cause in told_apart), ""]
    lines += [f"**{label['fixes']}**", ""]
    for place_, fix in enumerate(match.fixes, start=1):
        lines.append(f"{place_}. **{prose(fix.action)}** ({escape(fix.why)})")
        if meant := causes.meant(fix, match.causes):
            lines += ["", f"   {label['for_cause']}: {', '.join(map(code, meant))}"]
        if fix.condition:
            lines += ["", f"   {label['when']}: {prose(fix.condition)}"]
        lines += [f"   {line}" if line.strip() else "" for line in ["", *_fenced(fix.how), ""]]
    if match.dead_ends:
        lines += [f"**{label['avoid']}**", ""]
        lines += [f"- {prose(item.action)}: {prose(item.why_fails)} ({escape(item.why)})" for item in match.dead_ends]
        lines.append("")
    return [*lines, f"**{label['recover']}**: {RECOVER[match.recoverability]}"]


def _cause(cause: Mapping[str, Any], label: Mapping[str, str]) -> str:
    tell = f" ({label['tell']}: {prose(cause['detection'])})" if cause.get("detection") else ""
    return f"- {code(cause['id'])}: {prose(causes.gist(cause))}{tell}"


def fenced(text: str) -> str:
    """A block of text that Markdown leaves as it is, in a fence longer than any inside it."""
    return "\n".join(_fenced(text)) + "\n"


def _fenced(how: str) -> list[str]:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", how)), default=0))
    return [f"{fence}text", *safe(how).strip("\n").split("\n"), fence]


def _unknown(answer: Result, locale: str) -> str:
    label = words(locale)
    lines = [f"### {label['unknown']}", ""]
    exceptions = [incident for incident in answer.query.incidents if incident.kind == "exception"]
    if not exceptions:
        return "\n".join([*lines, label["nothing"]]) + "\n"
    lines += _understood(exceptions[-1], label)
    lines += [f"- {label['related']}: {code(hit.entry_id)} ({escape(hit.why)})" for hit in answer.related]
    return "\n".join(lines) + "\n"


def _understood(incident: Incident, label: Mapping[str, str]) -> list[str]:
    lines = [f"- {label['understood']}: {code(shown(incident))} (line {incident.line}{escape(named(incident.ranks))})"]
    if incident.package:
        lines.append(f"- {label['raised_by']}: {code(incident.package)}")
    if incident.user_frame:
        lines.append(f"- {label['your_code']}: {code(place(incident.user_frame))}")
    return lines
