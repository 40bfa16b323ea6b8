"""The README cannot rot: its commands exist with these words, its session is what the command prints."""

from __future__ import annotations

import os
import re

import typer

from kb.cli.app import app
from kb.opening import open_base
from kb.render import text
from tests.conftest import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def test_every_command_stands_in_the_table_with_its_help() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    table = dict(re.findall(r"^\| `kb (\S+?)(?: [^`]*)?` \| (.+) \|$", README, re.MULTILINE))
    assert table == {name: command.help.strip() for name, command in commands.items()}


def shape(page: str) -> list[str]:
    """Entry and headings."""
    return [line.split("  ")[0] for line in page.splitlines() if line and not line.startswith(" ")][1:]


def test_the_session_shown_has_the_shape_of_what_the_command_prints() -> None:
    """Rates move with evidence; `KB_UPDATE_README=1` writes the session anew."""
    shown = re.search(r"```\n\$ kb match (\S+)\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    answer = open_base().match((PROJECT / shown[1]).read_text(encoding="utf-8"))
    printed = text.result(answer, width=100, color=False)
    if os.environ.get("KB_UPDATE_README"):
        new = README[: shown.start(2)] + printed + README[shown.end(2) :]
        (PROJECT / "README.md").write_text(new, encoding="utf-8")
    else:
        assert shape(printed) == shape(shown[2])
