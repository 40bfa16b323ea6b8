"""An answer in a few lines, to stand below a traceback that was just printed."""

from __future__ import annotations

from kb.models.result import Result
from kb.render import causes
from kb.render.page import Page
from kb.render.text import how, named, ranks
from kb.render.words import STATES, TIERS, words

CODE_LINES = 8
"""Lines of the first fix's instructions that are shown."""


def block(answer: Result, *, width: int, color: bool, locale: str = "en") -> str:
    """What it is, the first fix, what not to try, where to read on; empty if nothing was recognised."""
    if not answer.matches:
        return ""
    page = Page(width, color=color)
    label = words(locale)
    main, *others = answer.matches
    mark, name, tint = TIERS[main.verification_tier]
    page.title(f"kb: {main.entry_id}", f"{mark} {name}", tint)
    page.field(label["why"], main.root_cause)
    page.field("", f"{main.why}{ranks(answer, main)}", "dim")
    if main.fixes:
        fix = main.fixes[0]
        page.field(label["first"], f"{STATES[fix.state][0]} {fix.action}", "bold")
        lines = fix.how.strip("\n").split("\n")
        how(page, "\n".join(lines[:CODE_LINES]) + ("\n…" if len(lines) > CODE_LINES else ""))
        for cause in main.causes:
            if cause["id"] in causes.meant(fix, main.causes):
                page.field("", f"{label['for_cause']}: {causes.gist(cause)}", indent=2)
        if fix.condition:
            page.field("", f"{label['when']}: {fix.condition}", "dim", indent=2)
        page.field("", fix.why, STATES[fix.state][1], indent=2)
    for caution in main.dead_ends[:1]:
        page.field(label["avoid"], f"✗ {caution.action}")
    if others:
        page.field(label["also"], ", ".join(f"{other.entry_id} ({other.role})" for other in others[:4]))
    if answer.unknown_root is not None:
        began = answer.query.incidents[answer.unknown_root]
        page.field("", f"{label['only_wrapper']}: {began.type} (line {began.line}{named(began.ranks)})", "yellow")
    page.field(label["more"], f"kb show {main.entry_id}", "dim")
    return page.text()
