"""Import records of the reference shape: claims somebody else made, kept verbatim and apart from what was measured.

Nothing is ever overwritten. The verbatim record stands under `reported.record`; the authored fields beside it are
only what the record states. Its rates are never taken over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from kb.catalog import read_json
from kb.errors import EntryError, ImportRefusedError
from kb.models.entry import AuthoredEntry, CauseType, Reported
from kb.patterns import compile_pattern, fold, policy_violations

NOT_STATED = "(not stated by the source)"
NOTHING_RUN = "imported, nothing was run"
_REQUIRED = {"id": str, "signature": str, "regex": str, "root_cause": str, "workarounds": list}
_OPTIONAL_TEXT = ("subcategory", "error_code", "official_doc_section", "signature_zh", "root_cause_zh")


@dataclass(frozen=True)
class Imported:
    """One record taken in: which entry it became or joined, and the file written."""

    entry_id: str
    file: Path
    attached: bool


def records(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Records of one JSON file, or of every `*.json` in a folder. Raises EntryError or ImportRefusedError."""
    if not path.exists():
        raise ImportRefusedError(f"{path}: no such file or folder", "give a JSON record or a folder of them")
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ImportRefusedError(f"{path}: holds no .json file", "give a folder with one record per .json file")
    for file in files:
        data = read_json(file)
        if not isinstance(data, dict):
            raise EntryError(
                str(file), "", f"a record is a JSON object, found {type(data).__name__}", "see the reference record"
            )
        _check_shape(file, data)
        yield file, data


def _check_shape(file: Path, data: Mapping[str, Any]) -> None:
    for name, kind in _REQUIRED.items():
        if name not in data:
            raise EntryError(str(file), name, "is missing", "a reference-shaped record needs " + ", ".join(_REQUIRED))
        if not isinstance(data[name], kind):
            wanted = "a string" if kind is str else "a list"
            raise EntryError(
                str(file), name, f"expected {wanted}, found {type(data[name]).__name__}", "correct it at its source"
            )
    if not data["signature"].strip():
        raise EntryError(str(file), "signature", "is empty", "an entry needs the error line as users see it")


def as_entry(file: Path, data: dict[str, Any]) -> AuthoredEntry:
    """The authored entry a foreign record becomes. Raises EntryError if it cannot be one."""
    domain = data["id"].partition("/")[0]
    workarounds = [_workaround(n, item) for n, item in enumerate(_objects(data, "workarounds"), start=1)]
    dead_ends = [_dead_end(n, item) for n, item in enumerate(_objects(data, "dead_ends"), start=1)]
    authored: dict[str, Any] = {
        "schema_version": 1,
        "id": data["id"],
        "signature": data["signature"],
        "regex": _pattern(data),
        "domain": domain,
        "category": data.get("category") or "imported",
        "root_cause": data["root_cause"].strip() or NOT_STATED,
        "root_cause_type": data.get("root_cause_type")
        if data.get("root_cause_type") in get_args(CauseType)
        else "generic",
        "versions": _versions(data),
        "os_specific": data["os_specific"] if isinstance(data.get("os_specific"), dict) else {},
        "workarounds": workarounds,
        "dead_ends": dead_ends,
        "workarounds_zh": _lines(data, "workarounds_zh", len(workarounds)),
        "dead_ends_zh": _lines(data, "dead_ends_zh", len(dead_ends)),
        "tags": [tag for tag in data.get("tags") or () if isinstance(tag, str) and tag.strip()],
        "aliases": [alias for alias in data.get("aliases") or () if isinstance(alias, str) and alias.strip()],
        "locale": data.get("locale") or "en",
        "reported": {"origin": file.name, "record": data},
    }
    authored |= {name: data[name] for name in _OPTIONAL_TEXT if isinstance(data.get(name), str)}
    if re.match(r"https?://\S+$", str(data.get("official_doc_url") or "")):
        authored["official_doc_url"] = data["official_doc_url"]
    if data.get("resolvable") in ("true", "false", "partial", "unknown"):
        authored["resolvable"] = data["resolvable"]
    if re.match(r"\d{4}-\d{2}-\d{2}\Z", str(data.get("first_seen") or "")):
        authored["first_seen"] = data["first_seen"]
    try:
        return AuthoredEntry.model_validate_json(json.dumps(authored))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise EntryError(str(file), field, first["msg"], "correct it at its source; nothing was imported") from error


def _objects(data: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    return [item for item in data.get(field) or () if isinstance(item, dict)]


def _text(item: Mapping[str, Any], *names: str) -> str:
    return next((str(item[name]) for name in names if str(item.get(name) or "").strip()), NOT_STATED)


def _workaround(number: int, item: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"workaround-{number}",
        "action": " ".join(_text(item, "action", "how").split()),
        "how": _text(item, "how", "action"),
        "kind": "symptom",  # a record does not say; the weakest claim
        "condition": str(item.get("condition") or ""),
        "verification": {"unverifiable": NOTHING_RUN},
    }


def _dead_end(number: int, item: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"dead-end-{number}",
        "action": " ".join(_text(item, "action").split()),
        "why_fails": _text(item, "why_fails"),
        "condition": str(item.get("condition") or ""),
        "verification": {"unverifiable": NOTHING_RUN},
    }


def _versions(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = ("version", "introduced", "deprecated", "removed", "behavior_change", "status")
    kept = []
    for item in _objects(data, "versions"):
        version = {name: str(item[name]) for name in names if item.get(name) is not None}
        if version.get("version", "").strip():
            kept.append(version)
    return kept


def _lines(data: Mapping[str, Any], field: str, count: int) -> list[str]:
    lines = [line for line in data.get(field) or () if isinstance(line, str)]
    return lines if len(lines) == count else []


def _pattern(data: Mapping[str, Any]) -> str:
    """The record's own pattern if it keeps the policy and finds its signature, else the signature letter by letter."""
    pattern = data["regex"]
    if pattern and not policy_violations(pattern) and compile_pattern(pattern).search(fold(data["signature"])):
        return str(pattern)
    return re.sub(r"([^\w\s/:=,;'\"`<>!@#%&~-])", r"\\\1", fold(data["signature"]))


def take_in(source: Path, root: Path, *, into: str | None = None) -> list[Imported]:
    """Import every record of `source` below the entries folder `root`, or attach one to the entry `into`.

    All records are judged before the first file is written. Raises ImportRefusedError where something would be
    overwritten, EntryError where a record is not acceptable.
    """
    found = list(records(source))
    if into is not None:
        if len(found) != 1:
            raise ImportRefusedError(f"{source}: {len(found)} records, --into takes one", "name a single file")
        return [_attach(*found[0], root, into)]
    planned = [(root / entry.id / "entry.json", entry) for entry in (as_entry(file, data) for file, data in found)]
    for target, entry in planned:
        if target.parent.exists():
            raise ImportRefusedError(
                f"{target.parent}: exists already", f"attach the record instead: --into {entry.id}"
            )
    for target, entry in planned:
        target.parent.mkdir(parents=True)
        target.write_text(entry_text(entry), encoding="utf-8")
    return [Imported(entry.id, target, attached=False) for target, entry in planned]


def _attach(file: Path, data: dict[str, Any], root: Path, into: str) -> Imported:
    target = root / into / "entry.json"
    if not target.is_file():
        raise ImportRefusedError(f"{target}: no such entry", "give the id of an entry below the entries folder")
    raw = read_json(target)
    if raw.get("reported") is not None:
        raise ImportRefusedError(
            f"{target}: carries a reported record already", "nothing is overwritten; remove it by hand first"
        )
    raw["reported"] = Reported(origin=file.name, record=data).model_dump()
    AuthoredEntry.model_validate_json(json.dumps(raw))
    temporary = target.with_suffix(".json.new")
    temporary.write_text(json.dumps(raw, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    temporary.replace(target)
    return Imported(into, target, attached=True)


def entry_text(entry: AuthoredEntry) -> str:
    """An entry as it is written to disk: fields that differ from their default, two spaces, real characters."""
    return json.dumps(entry.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False, indent=2) + "\n"
