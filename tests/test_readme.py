"""The README cannot rot: its commands exist with these words, its session is what the command prints."""

from __future__ import annotations

import re

import typer

from kb.cli.app import app
from kb.layers import layers
from kb.opening import open_base
from kb.render import text
from tests.conftest import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def test_every_command_stands_in_the_table_with_its_help() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    table = dict(re.findall(r"^\| `kb (\S+?)(?: [^`]*)?` \| (.+) \|$", README, re.MULTILINE))
    assert table == {name: command.help.strip() for name, command in commands.items()}


def test_the_session_shown_is_what_the_command_prints() -> None:
    shown = re.search(r"```\n\$ kb match (\S+)\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    assert layers()
    answer = open_base().match((PROJECT / shown[1]).read_text(encoding="utf-8"))
    assert text.result(answer, width=100, color=False) == shown[2]
