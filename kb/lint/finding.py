"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to repair: where, what, and how."""

    code: str
    file: str
    field: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        where = f"{self.file}: {self.field}" if self.field else self.file
        return f"{where}: {self.code}: {self.message}" + (f"\n  remedy: {self.remedy}" if self.remedy else "")
