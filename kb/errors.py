"""Every error provenfix raises on purpose, with its remedy and its exit code.

KbError
├── EntryError            an entry or another catalogue file is not acceptable
├── UnknownEntryError     no entry has this id
├── PasteError            the text to match cannot be read
├── IndexUnavailableError no usable index can be opened or built
├── EvidenceError         an evidence file is not acceptable
├── ImportRefusedError    a foreign record cannot be imported
├── PatternError          a pattern is refused by RE2
└── UsageError            the command line or an option makes no sense

Exit codes follow the command table: 2 is "usage or internal error" everywhere.
"""

from __future__ import annotations


class KbError(Exception):
    """Base of all deliberate errors.

    `message` says what is wrong, `remedy` what to do about it; both are one line, meant to be read by a person.
    """

    exit_code = 2

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class EntryError(KbError):
    """A catalogue file breaks the contract. Names the file and, where there is one, the field."""

    def __init__(self, file: str, field: str, message: str, remedy: str = "") -> None:
        where = f"{file}: {field}: " if field else f"{file}: "
        super().__init__(where + message, remedy)
        self.file = file
        self.field = field
        self.detail = message


class UnknownEntryError(KbError):
    """No entry has this id."""


class PasteError(KbError):
    """The text to match cannot be read."""


class IndexUnavailableError(KbError):
    """No usable index can be opened or built."""


class EvidenceError(EntryError):
    """An evidence file breaks the contract."""


class ImportRefusedError(KbError):
    """A foreign record cannot be imported, or would overwrite something."""


class PatternError(KbError):
    """RE2 refuses a pattern. `reason` is what RE2 says; `too_large` whether its size is why."""

    def __init__(self, message: str, remedy: str = "", *, reason: str = "") -> None:
        super().__init__(message, remedy)
        self.reason = reason

    @property
    def too_large(self) -> bool:
        return "repetition size" in self.reason or "too large" in self.reason


class UsageError(KbError):
    """The command line or an option makes no sense."""
