"""Required literals: short texts of which one must stand in anything a pattern matches.

They are the cheap gate in front of a pattern. A gate may let too much through and must never hold back a match, so
everything here errs towards requiring less.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from importlib import import_module
from math import log10
from typing import Any, NamedTuple

from kb import lazy

# The only characters outside ASCII that a case-insensitive pattern takes for an ASCII letter.
_SPECIAL_FOLDS = {"\u0130": "i", "\u0131": "i", "\u017f": "s", "\u212a": "k"}

_MOST_TEXTS = 32
_LONGEST_TEXT = 240
_WIDEST_CLASS = 8
_LARGEST_CLAUSE = 256
_WEAK_BYTES = 6

# Constructs that Python's parser reads otherwise than RE2 or the regex module does: POSIX classes, `{,n}`, and
# fuzzy counts such as `{e<=1}`.
_FOREIGN = lazy.pattern(r"\[:\^?[a-z]+:\]|(?:^|[^\\])(?:\\\\)*\{\s*(?:,|(?:\d+\s*<=?\s*)?\d*[ides]\s*[<}+:,])")

# How often a character, and a word of this field, is met in logs; only the order of magnitude matters.
_OFTEN = {" ": 0.15, "e": 0.08, "t": 0.06, **dict.fromkeys("aoirns", 0.05), **dict.fromkeys("lcd", 0.03)}
_SOMETIMES = {**dict.fromkeys("upmfhg._/0", 0.02), **dict.fromkeys("ybvwk123456789-=,:'\"()[]", 0.01)}
_COMMON_WORDS = frozenset(  # a paragraph reads better than 80 quoted words
    """a an and are as at be but by can cannot call class cuda data device does dtype error exception expected failed
    file for found from function got gpu has have if in input is it line memory model module must name no not object of
    on only or python rank requires runtimeerror same should size tensor tensors that the this to torch traceback type
    typeerror use value valueerror version warning was were with you your""".split()  # noqa: SIM905
)
_CHARACTER = {**_OFTEN, **_SOMETIMES}
_RARE_CHARACTER = 0.002
_COMMON_WORD = 0.03

_Texts = frozenset[str]
_NOTHING: _Texts = frozenset({""})


def fold_case(text: str) -> str:
    """`text` with ASCII letters lowered and the four letters that pattern engines equate with ASCII ones replaced.

    Keeps the number of code points, so a position in the result is a position in `text`.
    """
    if text.isascii():
        return text.lower()
    folded = text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")
    for special, plain in _SPECIAL_FOLDS.items():
        folded = folded.replace(special, plain)
    return folded


def encodable(text: str) -> str:
    """`text` with halves of surrogate pairs replaced, one for one: engines and databases take whole characters only."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


@lru_cache(maxsize=10_000)
def required_literals(regex: str) -> tuple[str, ...]:
    """Texts of which at least one stands in `fold_case(text)` of any text that `regex` matches; the rarest such choice.

    Sorted, already folded, holds for RE2, `re` and `regex`. Empty if nothing can be required, also for a pattern that
    Python cannot parse.
    """
    best = _rarest(required_clauses(regex))
    return tuple(sorted(best)) if best else ()


def required_clauses(regex: str) -> tuple[_Texts, ...]:
    """Every OR clause that was found: of each, at least one text must stand in the folded text."""
    tree = parse_tree(regex)
    if tree is None:
        return ()
    try:
        need = _sequence(list(tree), bool(tree.state.flags & re.IGNORECASE))
    except RecursionError:
        return ()
    return tuple(dict.fromkeys(_shortest(clause) for clause in need.as_clauses()))


def parse_tree(regex: str) -> Any | None:
    """Python's syntax tree of `regex`; None if Python cannot parse it or would read it otherwise than RE2."""
    if _FOREIGN.search(regex):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("re._parser").parse(regex)
    except (re.error, RecursionError, OverflowError):
        return None


class _Need(NamedTuple):
    """What one piece of a pattern demands."""

    exact: _Texts | None
    """All texts the piece can match, folded; None if they cannot be listed."""
    clauses: tuple[_Texts, ...] = ()
    """What it demands if they cannot."""

    def as_clauses(self) -> tuple[_Texts, ...]:
        if self.exact is None:
            return self.clauses
        return () if "" in self.exact else (self.exact,)


_ANYTHING = _Need(None)


def _sequence(items: list[tuple[Any, Any]], ignore_case: bool) -> _Need:
    clauses: list[_Texts] = []
    run = _NOTHING
    listed = True
    for operation, argument in items:
        need = _piece(str(operation), argument, ignore_case)
        joined = _join(run, need.exact)
        if joined is not None and need.exact is not None:
            if len(joined) > 1:
                # Each half is required by itself too, and may be the rarer demand.
                clauses += [run, need.exact]
            run = joined
            continue
        listed = False
        clauses += [run, *need.as_clauses()]
        run = need.exact or _NOTHING
    if listed:
        return _Need(run, tuple(_usable(clauses)))
    return _Need(None, tuple(_usable([*clauses, run])))


def _piece(operation: str, argument: Any, ignore_case: bool) -> _Need:
    match operation:
        case "LITERAL":
            return _characters([argument], ignore_case)
        case "IN":
            return _class(argument, ignore_case)
        case "AT" | "ASSERT" | "ASSERT_NOT":
            return _Need(_NOTHING)
        case "SUBPATTERN":
            _, added, removed, body = argument
            inner = (ignore_case or bool(added & re.IGNORECASE)) and not removed & re.IGNORECASE
            return _sequence(list(body), inner)
        case "ATOMIC_GROUP":
            return _sequence(list(argument), ignore_case)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            low, high, body = argument
            return _repeat(int(low), int(high), _sequence(list(body), ignore_case))
        case "BRANCH":
            return _branch([_sequence(list(body), ignore_case) for body in argument[1]])
        case _:
            return _ANYTHING


def _characters(codes: list[int], ignore_case: bool) -> _Need:
    texts = set()
    for character in map(chr, codes):
        if ignore_case and not character.isascii() and not character.lower() == character.upper() == character:
            return _ANYTHING
        texts.add(fold_case(character))
    return _Need(frozenset(texts)) if len(texts) <= _WIDEST_CLASS else _ANYTHING


def _class(members: list[tuple[Any, Any]], ignore_case: bool) -> _Need:
    codes: list[int] = []
    for operation, argument in members:
        match str(operation):
            case "LITERAL":
                codes.append(argument)
            case "RANGE" if argument[1] - argument[0] < 2 * _WIDEST_CLASS:
                codes += range(argument[0], argument[1] + 1)
            case _:
                return _ANYTHING
    return _characters(codes, ignore_case)


def _repeat(low: int, high: int, body: _Need) -> _Need:
    if low == 0:
        return _Need(body.exact | _NOTHING) if high == 1 and body.exact is not None else _ANYTHING
    if body.exact is None:
        return _Need(None, body.clauses)
    power: _Texts | None = _NOTHING
    for _ in range(low):
        power = _join(power, body.exact)
        if power is None:
            return _Need(None, body.as_clauses())
    if low == high:
        return _Need(power)
    return _Need(None, _Need(power).as_clauses())


def _branch(branches: list[_Need]) -> _Need:
    exact: set[str] = set()
    either: set[str] = set()
    listed = demanded = True
    for branch in branches:
        best = _rarest(branch.as_clauses())
        demanded = demanded and best is not None
        either |= best or set()
        listed = listed and branch.exact is not None
        exact |= branch.exact or set()
    clauses = _usable([frozenset(either)]) if demanded else []
    if listed and len(exact) <= _MOST_TEXTS:
        return _Need(frozenset(exact), tuple(clauses))
    return _Need(None, tuple(clauses))


def _join(left: _Texts | None, right: _Texts | None) -> _Texts | None:
    """Every left text followed by every right one; None if those are too many or too long to list."""
    if left is None or right is None or len(left) * len(right) > _MOST_TEXTS:
        return None
    if max(map(len, left)) + max(map(len, right)) > _LONGEST_TEXT:
        return None
    return frozenset(first + second for first in left for second in right)


def _usable(clauses: list[_Texts]) -> list[_Texts]:
    return [clause for clause in clauses if clause and "" not in clause and len(clause) <= _LARGEST_CLAUSE]


def _shortest(clause: _Texts) -> _Texts:
    """The clause without texts that contain another of its texts: those demand nothing more."""
    return frozenset(text for text in clause if not any(other != text and other in text for other in clause))


def _rarest(clauses: tuple[_Texts, ...]) -> _Texts | None:
    return min(clauses, key=_commonness, default=None)


def _commonness(clause: _Texts) -> tuple[bool, float, list[str]]:
    weak = min(len(text.encode("utf-8", "surrogatepass")) for text in clause) < _WEAK_BYTES
    return weak, sum(10 ** _log_chance(text) for text in clause), sorted(clause)


def _log_chance(text: str) -> float:
    """Decimal logarithm of the chance to meet `text` at one place of a log."""
    total = 0.0
    for word in re.findall(r"[a-z]+|[^a-z]", text):
        if word in _COMMON_WORDS:
            total += log10(_COMMON_WORD)
        else:
            total += sum(log10(_CHARACTER.get(character, _RARE_CHARACTER)) for character in word)
    return max(total, -300.0)
