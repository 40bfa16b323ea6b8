"""Text stays inside its width, in its colours, and cannot act on a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kb.render.page import Page, cells, safe, wrap


@given(st.text(max_size=200), st.integers(10, 80))
def test_wrapped_lines_fit_and_lose_no_word(text: str, width: int) -> None:
    lines = wrap(safe(text), width)
    assert all(cells(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(safe(text).split())


def test_chinese_is_broken_between_characters_and_counts_double() -> None:
    assert cells("混合精度") == 8
    assert wrap("混合精度训练", 8) == ["混合精度", "训练"]


def test_nothing_printed_can_move_the_cursor_or_reverse_text() -> None:
    assert safe("a\x1b[2Jb\u202ec\x9bd\re") == "a\ufffd[2Jb\ufffdc\ufffdd\ufffde"


def test_styles_only_where_colour_is_on() -> None:
    assert Page(80, color=False).style("x", "red") == "x"
    assert Page(80, color=True).style("x", "red") == "\x1b[31mx\x1b[0m"


def test_code_keeps_its_lines() -> None:
    page = Page(40, color=False)
    page.code("for x in y:\n    pass")
    assert [line.strip() for line in page.text().splitlines()] == ["for x in y:", "pass"]
    assert page.text().splitlines()[1].index("pass") == page.text().splitlines()[0].index("for") + 4
