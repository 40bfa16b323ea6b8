"""`pytest --kb`: below each failed test whose error is known, a section with what to do about it."""

from __future__ import annotations

from collections.abc import Generator

import pytest

_HELP = "explain failed tests from the knowledge base of CUDA, PyTorch and Hugging Face errors"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Off unless asked for."""
    parser.getgroup("kb").addoption("--kb", action="store_true", default=False, help=_HELP)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the section. The report itself is left as it was."""
    report = yield
    if call.excinfo is not None and report.failed and item.config.getoption("--kb", default=False):
        from kb.integrations.hooks import answer

        try:
            text = answer(call.excinfo.value)
        except Exception:  # the report matters more than what is known of it
            text = ""
        if text:
            report.sections.append(("kb", text))
    return report
