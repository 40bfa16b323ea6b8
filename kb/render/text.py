"""Results and records as a page of text: the answer first, the detail below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kb.models.result import Caution, Fix, Frame, Incident, Match, Result
from kb.rank import cautions, fixes, rate_words, state_words
from kb.render import causes
from kb.render.page import Page
from kb.render.words import RECOVER, STATES, TIERS, words

MORE_FIXES = 4
"""Fixes shown below the first; `kb show` has them all."""
MORE_CAUTIONS = 4


def result(answer: Result, *, width: int, color: bool, locale: str = "en") -> str:
    """A match result as text."""
    page = Page(width, color=color)
    label = words(locale)
    if answer.abstained:
        _unknown(page, answer, label)
        return page.text()
    main, *others = answer.matches
    _main(page, main, answer, label)
    for other in others:
        page.blank()
        mark = f"{other.role}: {other.why}"
        page.field(label["also"], f"{other.entry_id} · {mark}")
    _behind(page, answer, label)
    page.blank()
    page.field(label["more"], f"kb show {main.entry_id}", "dim")
    return page.text()


def _main(page: Page, match: Match, answer: Result, label: Mapping[str, str]) -> None:
    mark, name, color = TIERS[match.verification_tier]
    incident = answer.query.incidents[match.incident]
    page.title(f"{match.entry_id}", f"{mark} {name}", color)
    page.field(label["seen"], shown(incident), "yellow")
    page.field("", f"{match.why}{ranks(answer, match)}", "dim")
    if match.verification_tier == "refuted":
        page.field("", match.tier_reason, "red")
        if lookalikes := match.transition_graph["frequently_confused_with"]:
            page.field(label["instead"], ", ".join(lookalikes))
    page.blank()
    page.field(label["why"], match.root_cause)
    page.blank()
    _causes(page, match, label)
    for place, fix in enumerate(match.fixes[: 1 + MORE_FIXES]):
        _fix(page, fix, match, label, first=place == 0, second=place == 1)
    if len(match.fixes) > 1 + MORE_FIXES:
        page.field("", f"… {len(match.fixes) - 1 - MORE_FIXES} more", "dim")
    _cautions(page, match.dead_ends, label)
    page.blank()
    page.field(label["recover"], RECOVER[match.recoverability])


def _causes(page: Page, match: Match, label: Mapping[str, str]) -> None:
    """What to tell the causes apart by; `kb show` says all of each."""
    for number, cause in enumerate(causes.told_apart(match.causes, match.fixes)):
        page.field(label["causes"] if number == 0 else "", f"· {cause['id']}: {causes.gist(cause)}")
        if cause.get("detection"):
            page.field("", f"{label['tell']}: {cause['detection']}", "dim", indent=2)
    page.blank()


def _fix(page: Page, fix: Fix, match: Match, label: Mapping[str, str], *, first: bool, second: bool) -> None:
    mark, color = STATES[fix.state]
    heading = label["first"] if first else label["then"] if second else ""
    page.field(heading, f"{mark} {fix.action}", *(("bold",) if first else ()))
    if first:
        how(page, fix.how)
    if meant := causes.meant(fix, match.causes):
        page.field("", f"{label['for_cause']}: {', '.join(meant)}", indent=2)
    if fix.condition:
        page.field("", f"{label['when']}: {fix.condition}", "dim", indent=2)
    page.field("", fix.why, color, indent=2)
    if first and fix.trade_off:
        page.field("", f"{label['but']}: {fix.trade_off}", "dim", indent=2)
    if first and fix.verification:
        page.verbatim(fix.verification, "dim", indent=2)
    if first:
        page.blank()


def how(page: Page, text: str) -> None:
    """Instructions: prose wraps, code stays; a fenced or indented line is code."""
    fenced = False
    for line in text.strip("\n").split("\n"):
        if line.strip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            page.code(line, indent=2)
        elif line.strip():
            page.field("", line, indent=2)


def _cautions(page: Page, dead_ends: Sequence[Caution], label: Mapping[str, str]) -> None:
    if not dead_ends:
        return
    page.blank()
    for place, caution in enumerate(dead_ends[:MORE_CAUTIONS]):
        _, color = STATES[caution.state]
        page.field(label["avoid"] if place == 0 else "", f"✗ {caution.action}")
        page.field("", f"{caution.why} · {caution.why_fails}", color if caution.state == "refuted" else "dim", indent=2)
    if len(dead_ends) > MORE_CAUTIONS:
        page.field("", f"… {len(dead_ends) - MORE_CAUTIONS} more", "dim")


def _unknown(page: Page, answer: Result, label: Mapping[str, str]) -> None:
    page.title(label["unknown"], "", "yellow")
    exceptions = [incident for incident in answer.query.incidents if incident.kind == "exception"]
    if exceptions:
        _understood(page, exceptions[-1], label)
    else:
        page.field(label["understood"], label["nothing"])
    for number, hit in enumerate(answer.related):
        page.field(label["related"] if number == 0 else "", f"{hit.entry_id} · {hit.why}", "dim")
    page.field(label["contribute"], "`kb new FILE` starts an entry from it; CONTRIBUTING.md says how to go on", "dim")


def _understood(page: Page, incident: Incident, label: Mapping[str, str]) -> None:
    page.field(label["understood"], f"{shown(incident)} (line {incident.line}{named(incident.ranks)})")
    if incident.package:
        page.field(label["raised_by"], incident.package)
    if incident.user_frame:
        page.field(label["your_code"], place(incident.user_frame))


def _behind(page: Page, answer: Result, label: Mapping[str, str]) -> None:
    """What began it, where only wrappers and consequences are known."""
    if answer.unknown_root is not None:
        page.blank()
        page.field("", label["only_wrapper"] + ":", "yellow")
        _understood(page, answer.query.incidents[answer.unknown_root], label)


def place(frame: Frame) -> str:
    """`file:line in function`."""
    where = f"{frame.file}:{frame.line}" if frame.line else frame.file
    return f"{where} in {frame.function}" if frame.function else where


def shown(incident: Incident) -> str:
    """Type and first line of the message, at most 400 code points."""
    first = next((line for line in incident.message.split("\n") if line.strip()), "")
    text = f"{incident.type}: {first}" if incident.type and first else incident.type or first
    return text if len(text) <= 400 else text[:399] + "…"


def ranks(answer: Result, match: Match) -> str:
    """`, rank0, rank3`: every rank whose incident shows this entry; empty if none is known."""
    places = (match.incident, *match.repeats)
    return named(tuple(dict.fromkeys(rank for place in places for rank in answer.query.incidents[place].ranks)))


def named(ranks: Sequence[str]) -> str:
    """`, rank0, rank1 and 6 more`; empty for none."""
    if not ranks:
        return ""
    return f", {', '.join(ranks[:8])}" + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


def record(entry: Mapping[str, Any], *, width: int, color: bool, locale: str = "en") -> str:
    """A published record as text."""
    from kb.models.result import Environment

    page = Page(width, color=color)
    label = words(locale)
    mark, name, tint = TIERS[entry["verification_tier"]]
    page.title(entry["id"], f"{mark} {name}", tint)
    page.field(label["seen"], (entry.get("signature_zh") if locale == "zh" else None) or entry["signature"], "yellow")
    page.field("", entry["tier_reason"], "dim")
    if entry.get("withdrawn"):
        page.field(
            "", f"withdrawn: {entry['withdrawn']}" + (f" → {entry['moved_to']}" if entry.get("moved_to") else ""), "red"
        )
    page.blank()
    page.field(label["why"], entry["root_cause"])
    for number, cause in enumerate(entry.get("causes") or ()):
        page.field(label["causes"] if number == 0 else "", f"· {cause['summary']}")
        if cause.get("detection"):
            page.field("", cause["detection"], "dim", indent=2)
    page.blank()
    for number, fix in enumerate(fixes(entry, Environment())):
        page.field(label["fixes"] if number == 0 else "", f"{STATES[fix.state][0]} {fix.action}", "bold")
        how(page, fix.how)
        page.field("", fix.why, STATES[fix.state][1], indent=2)
        for text in (fix.trade_off and f"but: {fix.trade_off}", fix.condition and f"when: {fix.condition}"):
            if text:
                page.field("", text, "dim", indent=2)
        if fix.verification:
            page.verbatim(fix.verification, "dim", indent=2)
    page.blank()
    for number, caution in enumerate(cautions(entry)):
        page.field(label["avoid"] if number == 0 else "", f"✗ {caution.action}")
        page.field("", caution.why_fails, indent=2)
        page.field("", caution.why, STATES[caution.state][1], indent=2)
    page.blank()
    page.field(label["recover"], RECOVER[entry["recoverability"]])
    _rest(page, entry, label)
    return page.text()


def _rest(page: Page, entry: Mapping[str, Any], label: Mapping[str, str]) -> None:
    if measured := entry.get("reproduction"):
        page.field(label["proof"], f"raised in {rate_words(measured)}, last on {measured['last_run']}")
    for line in provenance_lines(entry.get("provenance") or ()):
        page.field(label["proof"] if not entry.get("reproduction") else "", line, "dim")
    for key, field in (("detect", "detection"), ("prevent", "prevention")):
        if entry.get(field):
            page.field(label[key], entry[field])
    graph = entry["transition_graph"]
    for key, field in (("preceded", "preceded_by"), ("leads", "leads_to"), ("confused", "frequently_confused_with")):
        if graph.get(field):
            page.field(label[key], ", ".join(graph[field]))
    if entry.get("aliases"):
        page.field(label["aliases"], ", ".join(entry["aliases"]))
    if reported := entry.get("reported"):
        _reported(page, reported, label)
    for number, source in enumerate(entry.get("sources") or ()):
        page.field(label["sources"] if number == 0 else "", f"{source['url']} ({source['kind']})", "dim")


def provenance_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """`torch: "…" stands in 13 of 13 releases looked at, 1.9.0 to 2.14.1`; what stands nowhere in one line."""
    nowhere = [one for one in found if one["lacks"] and not one["stands"]]
    lines = []
    for one in found:
        looked = [*one["stands"], *one["lacks"]]
        if one["stands"]:
            span = f"{one['stands'][0]} to {one['stands'][-1]}" if len(one["stands"]) > 1 else one["stands"][0]
            text = " ".join(one["literal"].split())
            lines.append(
                f"{one['package']}: “{text}” stands in {len(one['stands'])} of {len(looked)} releases looked at, {span}"
            )
    if nowhere:
        count = sum(len(one["lacks"]) for one in nowhere)
        packages = ", ".join(dict.fromkeys(one["package"] for one in nowhere))
        text = " ".join(nowhere[0]["literal"].split())
        lines.append(f"“{text}” stands in none of {count} releases of {packages}")
    return lines


def _reported(page: Page, reported: Mapping[str, Any], label: Mapping[str, str]) -> None:
    page.field(label["reported"], f"{reported['origin']}; its rates were typed in, not measured:", "dim")
    claims = reported["record"]
    for field, rate in (("workarounds", "success_rate"), ("dead_ends", "fail_rate")):
        for claim in claims.get(field) or ():
            if isinstance(claim, dict):
                text = claim.get("action") or claim.get("why_fails") or ""
                page.field("", f"· claims {rate} {claim.get(rate)}: {text}", "dim", indent=2)


def claim(item: Mapping[str, Any]) -> str:
    """A claim's rate or state in a few words, for listings."""
    return rate_words(item["measured"]) if item.get("measured") else state_words(item)
