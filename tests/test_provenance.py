"""`kb provenance` as a person uses it, with wheels from a folder instead of pip."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kb.cli.commands.provenance import Options, run
from kb.errors import UnknownEntryError, UsageError
from kb.provenance import load, summary
from tests.conftest import entry
from tests.wheels import Folder, wheel

LITERAL = "the frobnicator jammed because nobody oiled it"


@pytest.fixture
def shelf(tmp_path: Path) -> Folder:
    folder = tmp_path / "wheels"
    for minor in range(4):
        text = LITERAL if minor >= 2 else "nothing"
        wheel(folder, "demo", f"1.{minor}", {"demo/a.py": f'raise E(\n    "{text}")\n'})
        wheel(folder, "other", f"0.{minor}", {"other/a.py": "pass\n"})
    return Folder(folder)


def claiming(entry_id: str = "pytorch/some-error", **raised_by: Any) -> dict[str, Any]:
    return entry(entry_id, raised_by=[{"package": "demo", "literal": LITERAL, **raised_by}])


def test_a_table_a_verdict_and_a_file(
    catalogue: Callable[..., Path], shelf: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = catalogue(claiming())
    assert run(Options(ids=("pytorch/some-error",), root=root), shelf) == 0
    printed = capsys.readouterr()
    assert "1.1  no   any\n    1.2  yes  any  demo/a.py:2" in printed.out
    assert "stands in 2 of 4 releases looked at (1.2 to 1.3); introduced in 1.2, 1.1 lacks it (any)" in printed.out
    assert printed.err == ""
    (made,) = load(root / "pytorch/some-error")
    assert made.entry == "pytorch/some-error"
    assert [one.stands for one in summary([made])] == [("1.2", "1.3")]


def test_a_literal_that_no_release_contains_is_said_loudly(
    catalogue: Callable[..., Path], shelf: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = catalogue(claiming(package="other"))
    assert run(Options(every=True, root=root, write=False), shelf) == 1
    assert "STANDS IN NONE of 4 releases looked at (0.0 to 0.3)" in capsys.readouterr().out
    assert not (root / "pytorch/some-error/provenance").exists()


def test_a_claim_without_a_literal_is_content_with_no_hits(
    catalogue: Callable[..., Path], shelf: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    refuted = entry(signature="ValueError: nobody ever wrote this sentence", regex="nobody ever wrote this sentence")
    root = catalogue(refuted)
    asked = Options(every=True, root=root, packages=("demo", "other"), write=False)
    assert run(asked, shelf) == 0
    assert capsys.readouterr().out.count("0 hits: stands in none of 4 releases") == 2


@pytest.mark.parametrize(("arm", "code"), [("refutes", 1), ("reproduces", 0)])
def test_a_refuted_claim_that_stands_after_all_is_contradicted(
    catalogue: Callable[..., Path], shelf: Folder, capsys: pytest.CaptureFixture[str], arm: str, code: int
) -> None:
    root = catalogue(entry(signature=f"ValueError: {LITERAL}", regex=LITERAL))
    script = root / "pytorch/some-error/verify.py"
    script.write_text(f"import pytest\n\n\n@pytest.mark.{arm}\ndef test_it(): ...\n")
    assert run(Options(every=True, root=root, packages=("demo",), write=False), shelf) == code
    assert "STANDS, though the entry claims no literal" in capsys.readouterr().out


def test_json_carries_the_records_and_what_they_say(
    catalogue: Callable[..., Path], shelf: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = catalogue(claiming(), claiming("pytorch/twin"))
    run(Options(every=True, root=root, as_json=True), shelf)
    told = json.loads(capsys.readouterr().out)
    assert [one["record"]["entry"] for one in told] == ["pytorch/some-error", "pytorch/twin"]
    assert told[0]["summary"][0]["introduced"] == {
        "version": "1.2",
        "neighbour": "1.1",
        "exact": True,
        "platform": "any",
        "unseen": [],
    }
    assert len(shelf.fetched) == 4, "each wheel is opened once, however many entries ask"


def test_releases_can_be_named(catalogue: Callable[..., Path], shelf: Folder) -> None:
    root = catalogue(claiming())
    run(Options(every=True, root=root, named=("1.3", "demo==1.0"), write=False), shelf)
    assert [release for release, _ in shelf.fetched] == ["1.0", "1.3"]


def test_a_release_of_which_distribution_is_asked(catalogue: Callable[..., Path], shelf: Folder) -> None:
    root = catalogue(claiming(), claiming("pytorch/twin", package="other"))
    with pytest.raises(UsageError, match="of which distribution"):
        run(Options(every=True, root=root, named=("1.3",)), shelf)


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(ids=("pytorch/some-error",), every=True),
        Options(every=True, platforms=("amiga",)),
        Options(every=True, named=("demo==new",)),
        Options(every=True, packages=("--index-url=http://example.org",)),
    ],
)
def test_nonsense_is_refused_before_anything_is_fetched(
    catalogue: Callable[..., Path], shelf: Folder, options: Options
) -> None:
    root = catalogue(claiming())
    with pytest.raises(UsageError):
        run(Options(**{**vars(options), "root": root}), shelf)
    assert shelf.fetched == []


def test_an_unknown_entry_is_an_error(catalogue: Callable[..., Path], shelf: Folder) -> None:
    with pytest.raises(UnknownEntryError):
        run(Options(ids=("pytorch/nothing",), root=catalogue(claiming())), shelf)


def test_an_index_that_does_not_answer_costs_only_the_entries_that_need_it(
    catalogue: Callable[..., Path], shelf: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = catalogue(claiming(), claiming("pytorch/twin", package="other"))
    shelf.closed = "demo"
    assert run(Options(every=True, root=root), shelf) == 2
    assert "cannot list the releases of demo" in capsys.readouterr().err
    assert load(root / "pytorch/some-error") == ()
    assert len(load(root / "pytorch/twin")) == 1


def test_nothing_to_look_at_is_not_success(
    catalogue: Callable[..., Path], shelf: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = catalogue(claiming(package="absent"))
    assert run(Options(every=True, root=root, write=False), shelf) == 3
    assert "no release has a wheel" in capsys.readouterr().out


def test_names_inside_a_wheel_cannot_paint_the_terminal(
    catalogue: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel(tmp_path / "evil", "demo", "1.0", {"demo/\x1b[31m\nred.txt": LITERAL})
    assert run(Options(every=True, root=catalogue(claiming())), Folder(tmp_path / "evil")) == 0
    assert "\x1b" not in capsys.readouterr().out
