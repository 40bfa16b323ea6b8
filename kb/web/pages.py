"""Pages as HTML text, from answers and published records. Everything from outside is escaped by the templates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined
from markupsafe import Markup

import kb
from kb import rank
from kb.index import Hit
from kb.knowledge import KnowledgeBase
from kb.localize import LOCALES, localized
from kb.models.result import Environment, Match, Result
from kb.redacted import redacted
from kb.render.causes import meant
from kb.render.page import safe, spans
from kb.render.text import place, ranks, shown
from kb.render.words import RECOVER, STATES, TIERS
from kb.scripts import arm_source, read_script, verification_script
from kb.web import highlight
from kb.web.graph import BOX_HEIGHT, BOX_WIDTH, drawing, drawings
from kb.web.instructions import parts
from kb.web.words import RECOVER_ZH, TIERS_ZH, page_words

Links = Callable[..., str]
"""Address of a page: `links("entry", "pytorch/x", locale="zh")`."""


def served(kind: str, name: str = "", *, locale: str = "en", **query: str) -> str:
    """Addresses of `kb serve`."""
    paths = {
        "home": "/",
        "browse": "/entries",
        "search": "/search",
        "entry": f"/entries/{name}",
        "script": f"/entries/{name}/verify.py",
        "evidence": f"/entries/{name}",
        "static": f"/static/{name}",
    }
    asked = {**query, **({"lang": locale} if locale != "en" and kind != "static" else {})}
    words = "&".join(f"{key}={quote(value, safe='')}" for key, value in asked.items() if value)
    return quote(paths[kind]) + (f"?{words}" if words else "")


@dataclass(frozen=True)
class Pages:
    """Writes pages over one knowledge base."""

    base: KnowledgeBase
    links: Links = served
    folders: Mapping[str, Path] | None = None
    """Where entries were read from, if the index does not say."""
    searchable: bool = True
    """Whether somebody answers searches."""

    def home(self, locale: str = "en", *, problem: str = "", paste: str = "") -> str:
        """The box to paste into."""
        return self._page(
            "home.html", locale, kind="home", problem=problem, paste=paste, count=len(self.base.index.list())
        )

    def answer(self, result: Result, locale: str = "en") -> str:
        """What was recognised in a paste. Quotations of the paste are redacted."""
        clean = redacted(result)
        main = clean.matches[0] if clean.matches else None
        return self._page(
            "answer.html",
            locale,
            kind="home",
            result=clean,
            main=main,
            incident=clean.query.incidents[main.incident] if main else None,
            ranks=ranks(clean, main) if main else "",
            began=clean.query.incidents[clean.unknown_root] if clean.unknown_root is not None else None,
            last=next((one for one in reversed(clean.query.incidents) if one.kind == "exception"), None),
            codes=self._codes(main) if main else {},
        )

    def entry(self, entry_id: str, locale: str = "en") -> str:
        """One entry with everything known of it. Raises UnknownEntryError."""
        record = localized(self.base.get(entry_id), locale)
        script = self._source(record["id"]) or ""
        return self._page(
            "entry.html",
            locale,
            kind="entry",
            name=record["id"],
            record=record,
            fixes=rank.fixes(record, Environment()),
            cautions=rank.cautions(record),
            claims={item["id"]: item for item in (*record["workarounds"], *(record.get("dead_ends") or ()))},
            codes=_arms(script, record),
            broken=next(
                (code for arm in record.get("reproduce_arms") or () if (code := arm_source(script, arm))), None
            ),
            has_script=bool(script),
            drawing=drawing(record),
            box=(BOX_WIDTH, BOX_HEIGHT),
            runs=self.base.index.evidence(record["id"]),
        )

    def browse(self, locale: str = "en", *, domain: str = "", tier: str = "") -> str:
        """All entries, or those of a domain or tier."""
        everything = self.base.index.list()
        hits = self.base.index.list(domain=domain or None, tier=tier or None)
        return self._page(
            "browse.html",
            locale,
            kind="browse",
            hits=hits,
            domains=sorted(Counter(hit.domain for hit in everything).items()),
            tiers=[(name, count) for name in TIERS if (count := sum(hit.tier == name for hit in everything))],
            domain=domain,
            tier=tier,
        )

    def search(self, words: str, hits: Sequence[Hit], locale: str = "en") -> str:
        """Entries found by words."""
        return self._page("search.html", locale, kind="search", hits=hits, words=words)

    def paste_box(self, locale: str = "en", *, matcher: bool) -> str:
        """The first page of a published site."""
        words = page_words(locale)
        named = (
            "loading",
            "loaded",
            "trouble",
            "unknown",
            "fixes",
            "trade_off",
            "causes",
            "for_cause",
            "condition",
            "dead_ends",
            "also",
            "understood",
            "related",
        )
        shown_words = json.dumps({name: words[name] for name in named}, ensure_ascii=False)
        count = len(self.base.index.list())
        return self._page("paste.html", locale, kind="home", count=count, matcher=matcher, words_json=shown_words)

    def listing(self, locale: str = "en") -> str:
        """All entries on one page, by domain."""
        hits = self.base.index.list()
        domains = sorted(Counter(hit.domain for hit in hits).items())
        return self._page("listing.html", locale, kind="browse", hits=hits, domains=domains)

    def matrix(self, locale: str = "en") -> str:
        """Entries by machines: how many trials bore their claim out."""
        cells = self.base.index.tally()
        columns = sorted({column for _, column in cells}, key=lambda name: (name.startswith("CPU"), name))
        ids = sorted({entry_id for entry_id, _ in cells})
        rows = [(entry_id, [cells.get((entry_id, column)) for column in columns]) for entry_id in ids]
        return self._page("matrix.html", locale, kind="matrix", columns=columns, rows=rows)

    def whole_graph(self, locale: str = "en") -> str:
        """Every known transition."""
        drawn = drawings(self.base.index.edges())
        return self._page("graph.html", locale, kind="graph", drawings=drawn, box=(BOX_WIDTH, BOX_HEIGHT))

    def problem(self, title: str, text: str, locale: str = "en") -> str:
        """A page that says what went wrong."""
        return self._page("problem.html", locale, kind="home", title=title, text=text)

    def script(self, entry_id: str, locale: str = "en") -> str | None:
        """The verification script with highlighting; None if there is none. Raises UnknownEntryError."""
        name = self.base.get(entry_id)["id"]
        source = self._source(name)
        return None if source is None else self._page("script.html", locale, kind="script", name=name, source=source)

    def _codes(self, match: Match) -> dict[str, str]:
        record = self.base.get(match.entry_id)
        return _arms(self._source(match.entry_id) or "", record)

    def _source(self, entry_id: str) -> str | None:
        if self.folders is not None:
            folder = self.folders.get(entry_id)
            return read_script(folder) if folder else None
        return verification_script(self.base, entry_id)

    def _page(self, template: str, locale: str, *, kind: str, name: str = "", **values: Any) -> str:
        words = page_words(locale)
        here = {
            "browse": {"domain": values.get("domain", ""), "tier": values.get("tier", "")},
            "search": {"q": values.get("words", "")},
        }
        return _TEMPLATES.get_template(template).render(
            t=words,
            locale=locale,
            links=lambda kind, name="", **query: self.links(kind, name, locale=locale, **query),
            switch=self.links(kind, name, locale=words["other"], **here.get(kind, {})),
            recover=RECOVER_ZH if locale == "zh" else RECOVER,
            tier_name=lambda tier: TIERS_ZH[tier] if locale == "zh" else TIERS[tier][1],
            tier_mark=lambda tier: TIERS[tier][0],
            state_mark=lambda state: STATES[state][0],
            version=kb.__version__,
            searchable=self.searchable,
            name=name,
            **values,
        )


def locale_of(wanted: str | None) -> str:
    """A language that pages exist in."""
    return wanted if wanted in LOCALES else "en"


def _arms(script: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Source of the arm of each claim that has one, by the id of the claim."""
    found = {}
    for item in (*record["workarounds"], *(record.get("dead_ends") or ())):
        reference = item.get("verification")
        if isinstance(reference, str) and (code := arm_source(script, reference)):
            found[item["id"]] = code
    return found


def inline(text: str) -> Markup:
    """Prose with what stands between backticks as code. Everything else is escaped."""
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if number % 2 else piece
        for number, piece in enumerate(spans(safe(text)))
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


_TEMPLATES = Templates(
    loader=PackageLoader("kb.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.filters.update(
    safe_text=safe,
    inline=inline,
    meant=meant,
    percent=_percent,
    python=highlight.python,
    shell=highlight.shell,
    parts=parts,
    place=place,
    shown=shown,
)
