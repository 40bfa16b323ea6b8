"""What `kb check` found: for a person, a program, a pull request, a code scanner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import kb
from kb.render import structured
from kb.render.github import command
from kb.render.page import safe
from kb.render.sarif import local, uri

if TYPE_CHECKING:
    from kb.lint.finding import Finding

FORMATS = ("text", "json", "github", "sarif")


def render(findings: Sequence[Finding], format: str) -> str:
    """All findings in one of `FORMATS`."""
    if format == "json":
        return structured.dumps([asdict(finding) for finding in findings])
    if format == "github":
        return "".join(_annotation(finding) for finding in findings)
    if format == "sarif":
        return _sarif(findings)
    return "".join(safe(line) + "\n" for finding in findings for line in str(finding).split("\n"))


def _annotation(finding: Finding) -> str:
    said = ": ".join(part for part in (finding.field, finding.message) if part)
    said += f"\nremedy: {finding.remedy}" if finding.remedy else ""
    return command("error", {"file": local(finding.file), "title": finding.code}, said) + "\n"


def _sarif(findings: Sequence[Finding]) -> str:
    codes = sorted({finding.code for finding in findings})
    rules = [
        {"id": code, "helpUri": f"https://github.com/provenfix/provenfix/blob/main/docs/checks.md#{code}"}
        for code in codes
    ]
    results = [
        {
            "ruleId": finding.code,
            "ruleIndex": codes.index(finding.code),
            "level": "error",
            "message": {"text": safe(f"{finding.field}: {finding.message}. {finding.remedy}".strip(": "))},
            "locations": [
                {"physicalLocation": {"artifactLocation": {"uri": uri(finding.file)}, "region": {"startLine": 1}}}
            ],
        }
        for finding in findings
    ]
    driver = {"name": "kb check", "semanticVersion": kb.__version__, "rules": rules}
    return structured.dumps(
        {
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{"tool": {"driver": driver}, "results": results}],
        }
    )
