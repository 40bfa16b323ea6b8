"""Regular expressions that are compiled when they are first used.

Compiling costs a third of a millisecond each, and a look-up uses a few of the many that are there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from re import Pattern

    def pattern(source: str, flags: int = 0) -> Pattern[str]: ...

else:

    class pattern:  # noqa: N801  (stands for what re.compile gives)
        """As `re.compile(source, flags)`, later."""

        def __init__(self, source: str, flags: int = 0) -> None:
            self.pattern = source
            self._flags = flags

        def __getattr__(self, name: str) -> Any:
            compiled = re.compile(self.pattern, self._flags)
            for method in ("match", "search", "findall", "finditer", "sub", "fullmatch"):
                setattr(self, method, getattr(compiled, method))
            return getattr(compiled, name)
