"""Stands in for google-re2 where only Python is: the same patterns under `re`, with ASCII classes as RE2 has them."""

import re

error = re.error


class Options:
    """Accepted and ignored."""

    log_errors = False


def compile(pattern: str, options: Options | None = None) -> re.Pattern[str]:  # noqa: ARG001
    """A compiled pattern with `search` and `match`."""
    return re.compile(pattern, re.ASCII)
