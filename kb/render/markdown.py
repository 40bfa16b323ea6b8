"""Results as Markdown, for issues, chats and pull requests."""

from __future__ import annotations

import re

from kb.models.result import Match, Result
from kb.render.page import safe
from kb.render.text import _ranks, _shown, place
from kb.render.words import RECOVER, TIERS, words

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&@])")


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no mention, no line break."""
    return _SPECIAL.sub(r"\\\1", " ".join(safe(text).split()))


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
    return "\n".join(lines) + "\n"


def _main(match: Match, answer: Result, locale: str) -> list[str]:
    label = words(locale)
    mark, name, _ = TIERS[match.verification_tier]
    incident = answer.query.incidents[match.incident]
    lines = [f"### {escape(match.entry_id)} ({mark} {name})", "", f"> {code(_shown(incident))}", ""]
    lines += [f"{escape(match.why)}{escape(_ranks(incident))}", ""]
    if match.verification_tier == "refuted":
        lines += [f"**{escape(match.tier_reason)}**", ""]
    lines += [f"**{label['why']}**: {escape(match.root_cause)}", "", f"**{label['fixes']}**", ""]
    for place_, fix in enumerate(match.fixes, start=1):
        lines.append(f"{place_}. **{escape(fix.action)}** ({escape(fix.why)})")
        lines += [f"   {line}" if line.strip() else "" for line in ["", *_fenced(fix.how), ""]]
    if match.dead_ends:
        lines += [f"**{label['avoid']}**", ""]
        lines += [f"- {escape(item.action)}: {escape(item.why_fails)} ({escape(item.why)})" for item in match.dead_ends]
        lines.append("")
    return [*lines, f"**{label['recover']}**: {RECOVER[match.recoverability]}"]


def _fenced(how: str) -> list[str]:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", how)), default=0))
    return [f"{fence}text", *safe(how).strip("\n").split("\n"), fence]


def _unknown(answer: Result, locale: str) -> str:
    label = words(locale)
    lines = [f"### {label['unknown']}", ""]
    exceptions = [incident for incident in answer.query.incidents if incident.kind == "exception"]
    if not exceptions:
        return "\n".join([*lines, label["nothing"]]) + "\n"
    last = exceptions[-1]
    lines.append(f"- {label['understood']}: {code(_shown(last))} (line {last.line}{escape(_ranks(last))})")
    if last.package:
        lines.append(f"- {label['raised_by']}: {code(last.package)}")
    if last.user_frame:
        lines.append(f"- {label['your_code']}: {code(place(last.user_frame))}")
    lines += [f"- {label['related']}: {code(hit.entry_id)} ({escape(hit.why)})" for hit in answer.related]
    return "\n".join(lines) + "\n"
