"""Checks of one entry by itself."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator

from kb.catalog import LoadedEntry
from kb.lint.finding import Finding
from kb.models.entry import DeadEnd, Workaround
from kb.patterns import compile_pattern, fold, policy_violations

SAMPLES = 2
NEAR_MISSES = 1


def _file(loaded: LoadedEntry, name: str = "entry.json") -> str:
    return str(loaded.folder / name)


def regex_policy(loaded: LoadedEntry) -> Iterator[Finding]:
    """Patterns keep the linear-time dialect and have a rare literal."""
    entry = loaded.entry
    patterns = [("regex", entry.regex), *((f"variants.{n}.regex", v.regex) for n, v in enumerate(entry.variants))]
    for field, pattern in patterns:
        for violation in policy_violations(pattern):
            yield Finding(violation.code, _file(loaded), field, violation.message, violation.remedy)
    frames = [("frames", p) for p in entry.frames]
    frames += [(f"variants.{n}.frames", p) for n, v in enumerate(entry.variants) for p in v.frames or ()]
    for field, pattern in frames:
        for violation in policy_violations(pattern):
            if violation.code != "regex-no-literal":
                yield Finding(violation.code, _file(loaded), field, violation.message, violation.remedy)


def regex_matches_signature(loaded: LoadedEntry) -> Iterator[Finding]:
    """A pattern that misses its own signature is wrong."""
    entry = loaded.entry
    pairs = [("regex", entry.regex, entry.signature)]
    pairs += [(f"variants.{n}.regex", v.regex, v.signature) for n, v in enumerate(entry.variants)]
    for field, pattern, signature in pairs:
        if any(v.code in ("regex-not-re2", "regex-too-large") for v in policy_violations(pattern)):
            continue
        if not compile_pattern(pattern).search(fold(signature)):
            yield Finding(
                "regex-misses-signature",
                _file(loaded),
                field,
                f"does not match its signature {fold(signature)[:120]!r}",
                "patterns are searched in text whose white space is folded to single spaces",
            )


def ids_unique(loaded: LoadedEntry) -> Iterator[Finding]:
    """Causes, workarounds and dead ends have distinct ids, and `addresses` names causes that exist."""
    entry = loaded.entry
    for field, items in (("causes", entry.causes), ("workarounds", entry.workarounds), ("dead_ends", entry.dead_ends)):
        for item_id, count in Counter(item.id for item in items).items():
            if count > 1:
                yield Finding(
                    "id-repeated", _file(loaded), field, f"`{item_id}` stands {count} times", "give each its own id"
                )
    causes = {cause.id for cause in entry.causes}
    for number, workaround in enumerate(entry.workarounds):
        for cause in workaround.addresses:
            if cause not in causes:
                yield Finding(
                    "cause-missing",
                    _file(loaded),
                    f"workarounds.{number}.addresses",
                    f"no cause has the id `{cause}`",
                    "name a cause of this entry",
                )


def chinese_complete(loaded: LoadedEntry) -> Iterator[Finding]:
    """Translated lists are as long as the English ones, or absent."""
    entry = loaded.entry
    for field, items in (("workarounds", entry.workarounds), ("dead_ends", entry.dead_ends)):
        lines = getattr(entry, f"{field}_zh")
        if lines and len(lines) != len(items):
            yield Finding(
                "zh-length",
                _file(loaded),
                f"{field}_zh",
                f"{len(lines)} lines for {len(items)} {field.replace('_', ' ')}",
                "one line each, in the same order",
            )


def samples_present(loaded: LoadedEntry) -> Iterator[Finding]:
    """An entry written here shows pastes it wins and one it must not match."""
    if loaded.entry.withdrawn or (loaded.entry.reported and not loaded.entry.sources):
        return
    for found, wanted, name in (
        (loaded.samples, SAMPLES, "samples/*.txt"),
        (loaded.near_misses, NEAR_MISSES, "samples/not-*.txt"),
    ):
        if len(found) < wanted:
            yield Finding(
                "samples-few",
                _file(loaded, "samples"),
                "",
                f"{len(found)} of at least {wanted} {name}",
                "add real pastes, redacted",
            )


def arms_exist(loaded: LoadedEntry) -> Iterator[Finding]:
    """Every named arm stands in verify.py under its id, and every arm belongs to a claim."""
    entry = loaded.entry
    claims: list[tuple[str, str, Workaround | DeadEnd]]
    claims = [("workaround", f"workarounds.{n}", w) for n, w in enumerate(entry.workarounds)]
    claims += [("dead_end", f"dead_ends.{n}", d) for n, d in enumerate(entry.dead_ends)]
    script = loaded.folder / "verify.py"
    named = [(kind, field, item) for kind, field, item in claims if isinstance(item.verification, str)]
    if not script.is_file():
        for _, field, item in named:
            yield Finding(
                "arm-missing",
                _file(loaded),
                f"{field}.verification",
                f"{item.verification}: there is no verify.py",
                "write the arm, or say why it cannot be",
            )
        return
    try:
        arms = _arms(script.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        yield Finding("arm-unreadable", str(script), "", f"is not Python: {error}", "run it with pytest")
        return
    for kind, field, item in named:
        test = str(item.verification).partition("::")[2]
        if (kind, item.id) not in arms.get(test, set()):
            yield Finding(
                "arm-missing",
                _file(loaded),
                f"{field}.verification",
                f"verify.py has no `{test}` marked {kind}({item.id!r})",
                "the marker names the claim's id",
            )
    known = {(kind, item.id) for kind, _, item in claims}
    for test, marks in arms.items():
        for kind, claim in marks - known:
            if claim is not None:
                yield Finding(
                    "arm-unclaimed",
                    str(script),
                    test,
                    f"{kind}({claim!r}) belongs to no claim of the entry",
                    "add the claim, or correct the id",
                )
    if named and not any(kind in ("reproduces", "refutes") for marks in arms.values() for kind, _ in marks):
        yield Finding(
            "arm-missing", str(script), "", "no arm reproduces or refutes the error", "a fix proves nothing without it"
        )


def _arms(source: str) -> dict[str, set[tuple[str, str | None]]]:
    """Test function -> its markers, for example (`workaround`, id) or (`reproduces`, None)."""
    arms: dict[str, set[tuple[str, str | None]]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            arms[node.name] = {mark for decorator in node.decorator_list if (mark := _mark(decorator))}
    return arms


def _mark(decorator: ast.expr) -> tuple[str, str | None] | None:
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    if not isinstance(target, ast.Attribute) or target.attr not in ("reproduces", "refutes", "workaround", "dead_end"):
        return None
    if isinstance(decorator, ast.Call) and decorator.args and isinstance(decorator.args[0], ast.Constant):
        return target.attr, str(decorator.args[0].value)
    return target.attr, None


CHECKS: tuple[Callable[[LoadedEntry], Iterator[Finding]], ...] = (
    regex_policy,
    regex_matches_signature,
    ids_unique,
    chinese_complete,
    samples_present,
    arms_exist,
)
