"""Patterns: compile them under RE2, fold the text they are searched in, and hold them to the regex policy."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from kb.errors import PatternError
from kb.literals import fold_case, parse_tree, required_clauses, required_literals

__all__ = [
    "Violation",
    "compile_pattern",
    "fold",
    "fold_case",
    "policy_violations",
    "required_literals",
]

_FEWEST_LITERAL_BYTES = 6
_LARGEST_PROGRAM = 20_000  # RE2 instructions; `.{0,200}` takes 1,800
_SIZE_REMEDY = "use fewer or smaller counted repetitions; RE2 allows 1000 of anything in all"
_LINEAR_REMEDY = "leave out lookaround, backreferences, possessive and atomic groups, which RE2 lacks to stay linear"
_WIDE_CATEGORIES = {"CATEGORY_NOT_DIGIT", "CATEGORY_NOT_WORD"}


class Violation(NamedTuple):
    """One way in which a pattern breaks the policy."""

    code: str
    message: str
    remedy: str


@lru_cache(maxsize=8192)
def compile_pattern(regex: str) -> Any:
    """RE2 object of `regex`: `.search(text)` gives None or a match whose `.span()` counts code points.

    Raises PatternError if RE2 refuses the pattern.
    """
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(regex, options)
    except re2.error as error:
        reason = error.args[0] if error.args else "no reason given"
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        refusal = PatternError(f"RE2 refuses the pattern `{regex}`: {text}", _LINEAR_REMEDY, reason=text)
        refusal.remedy = _SIZE_REMEDY if refusal.too_large else _LINEAR_REMEDY
        raise refusal from None
    except UnicodeEncodeError:
        reason = "it holds half of a surrogate pair"
        raise PatternError(f"RE2 refuses a pattern: {reason}", "write whole characters", reason=reason) from None


def fold(text: str) -> str:
    """`text` on one line with single spaces: the subject that every pattern is searched in."""
    return " ".join(text.split())


def policy_violations(regex: str) -> list[Violation]:
    """Every way in which `regex` breaks the policy for authored patterns, worst first; empty if it keeps it."""
    try:
        compiled = compile_pattern(regex)
    except PatternError as error:
        code = "regex-too-large" if error.too_large else "regex-not-re2"
        return [Violation(code, f"RE2 refuses it: {error.reason}", error.remedy)]
    if compiled.programsize > _LARGEST_PROGRAM:
        size = f"it compiles to {compiled.programsize} instructions, more than {_LARGEST_PROGRAM}"
        return [Violation("regex-too-large", size, "use fewer or smaller counted repetitions")]
    tree = parse_tree(regex)
    if tree is None or not _compiles_in_python(regex):
        return [_not_portable()]
    return [*_unbounded_gaps(tree), *_literal_violations(regex)]


def _compiles_in_python(regex: str) -> bool:
    try:
        re.compile(regex, re.ASCII)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _not_portable() -> Violation:
    return Violation(
        "regex-not-portable",
        "Python's re cannot read it, or reads it otherwise than RE2",
        "keep to what both know: no [[:posix:]] classes, no {,n}, no \\p, flags such as (?i) at the very start",
    )


def _unbounded_gaps(tree: Any) -> list[Violation]:
    if not _has_unbounded_gap(list(tree)):
        return []
    message = "it repeats `.` or a negated class without a bound, so unrelated text can stand between its words"
    return [Violation("regex-unbounded-gap", message, "bound the gap: `.{0,200}` for `.*`, `[^x]{0,200}` for `[^x]*`")]


def _has_unbounded_gap(items: list[tuple[Any, Any]]) -> bool:
    for operation, argument in items:
        bodies = _bodies(str(operation), argument)
        if any(_has_unbounded_gap(body) for body in bodies):
            return True
        if "REPEAT" in str(operation) and str(argument[1]) == "MAXREPEAT" and any(map(_is_wide, bodies)):
            return True
    return False


def _is_wide(items: list[tuple[Any, Any]]) -> bool:
    """Whether a piece can match nearly any character, blanks included: what stays inside one word is no gap."""
    for operation, argument in items:
        name = str(operation)
        if name == "ANY" or (name == "NOT_LITERAL" and argument != ord(" ")):
            return True
        if name == "IN" and _is_wide_class(argument):
            return True
        if any(map(_is_wide, _bodies(name, argument))):
            return True
    return False


def _is_wide_class(members: list[tuple[Any, Any]]) -> bool:
    names = {str(value) for _, value in members}
    if str(members[0][0]) == "NEGATE":
        return str(ord(" ")) not in names and "CATEGORY_SPACE" not in names
    return bool(names & _WIDE_CATEGORIES) or {"CATEGORY_SPACE", "CATEGORY_NOT_SPACE"} <= names


def _bodies(operation: str, argument: Any) -> list[list[tuple[Any, Any]]]:
    match operation:
        case "SUBPATTERN":
            return [list(argument[3])]
        case "BRANCH":
            return [list(body) for body in argument[1]]
        case "MAX_REPEAT" | "MIN_REPEAT":
            return [list(argument[2])]
        case _:
            return []


def _literal_violations(regex: str) -> list[Violation]:
    clauses = required_clauses(regex)
    found = []
    if not any(min(len(text.encode()) for text in clause) >= _FEWEST_LITERAL_BYTES for clause in clauses):
        message = f"no text of {_FEWEST_LITERAL_BYTES} or more bytes must stand in everything it matches"
        remedy = "spell out a rare word of the message; every branch of an alternation needs one"
        found.append(Violation("regex-no-literal", message, remedy))
    if any(all(_is_unfolded(text) for text in clause) for clause in clauses):
        message = "it asks for a line break, a tab or two spaces in a row, and is searched in text without any"
        found.append(Violation("regex-unfolded-space", message, "write one plain space"))
    return found


def _is_unfolded(text: str) -> bool:
    return "  " in text or any(character.isspace() and character != " " for character in text)
