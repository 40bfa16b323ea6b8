"""What is found in a wheel, and what a hostile one cannot do."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kb.provenance.scan import PLACES, WheelRefusedError, scan
from kb.provenance.strings import MARK, find, stands
from tests.wheels import Content, wheel

LITERAL = "the frobnicator jammed because nobody oiled it"


def look(folder: Path, files: dict[str, Content], literal: str = LITERAL) -> list[tuple[str, int | None, str]]:
    found = scan(wheel(folder, "demo", "1.0", files), [literal]).found[literal]
    assert found.files >= len(found.places)
    return [(place.file, place.line, place.form) for place in found.places]


def test_a_text_says_its_file_and_line(tmp_path: Path) -> None:
    files: dict[str, Content] = {"demo/a.py": "pass\n", "demo/b.h": f'int x;\n\nCHECK(x, "{LITERAL}");\n'}
    assert look(tmp_path, files) == [("demo/b.h", 3, "text")]


@pytest.mark.parametrize(
    "name", ["demo/_C.cpython-311-x86_64-linux-gnu.so", "demo/c.pyd", "demo/c.dylib", "demo/c.dll"]
)
def test_native_libraries_are_searched_as_bytes(tmp_path: Path, name: str) -> None:
    assert look(tmp_path, {name: b"\x7fELF\0\0\n" + LITERAL.encode() + b"\0rest"}) == [(name, None, "text")]


def test_a_literal_across_two_pieces_of_a_large_library_is_found(tmp_path: Path) -> None:
    chunk = 4 * 2**20
    data = b"\0" * (9 * chunk - 7) + LITERAL.encode() + b"\0" * chunk
    assert look(tmp_path, {"demo/libbig.so": data}) == [("demo/libbig.so", None, "text")]


@pytest.mark.parametrize(
    ("source", "form"),
    [
        ('x = 1\nraise E(\n    "the frobnicator jammed "\n    "because nobody oiled it"\n)\n', "joined"),
        ("x = 1\nraise E(\n    'the frobnicator jam' f'med because {why}'\n    'nobody oiled it')\n", "placeholders"),
        ('x = 1\nraise E(\n    f"the {part} jammed because nobody "\n    f"oiled it: {step}"\n)\n', "placeholders"),
        ('x = 1\nraise E(\n    "the frobnicator jammed because " + who + " oiled it"\n)\n', "placeholders"),
        ('x = 1\nraise E(\n    "the %s jammed because nobody oiled %s" % (a, b)\n)\n', "placeholders"),
        ('x = 1\nraise E(\n    "the frobnicator {} because nobody {verb} it".format(a, verb=b)\n)\n', "placeholders"),
        ('x = 1\nraise E(\n    "the frobnicator jammed " +\n    "because nobody oiled it"\n)\n', "joined"),
        ('x = 1\nraise E(\n    "the frobnicator " + a + b + " it"\n)\n', None),
        ('x = 1\nraise E(\n    "a frobnicator jammed and nobody oiled it"\n)\n', None),
    ],
)
def test_strings_of_python_are_found_as_the_program_has_them(tmp_path: Path, source: str, form: str | None) -> None:
    found = look(tmp_path, {"demo/a.py": source})
    assert found == ([("demo/a.py", 3, form)] if form else [])


def test_escapes_in_a_source_are_no_obstacle(tmp_path: Path) -> None:
    source = 'raise E("it\\u0020can\\\'t be \\"found\\" in the frobnicator")\n'
    assert look(tmp_path, {"demo/a.py": source}, 'it can\'t be "found" in the frobnicator') == [
        ("demo/a.py", 1, "joined")
    ]


@pytest.mark.parametrize(
    "source", [b"def (", b"x = 1\0", b"(" * 5000, "print 'the frobnicator jammed'".encode("utf-16")]
)
def test_a_source_that_cannot_be_parsed_holds_nothing(source: bytes) -> None:
    assert find(source + b"# the frobnicator jammed because nobody", [LITERAL]) == {}


def test_only_the_first_places_are_kept_and_all_files_counted(tmp_path: Path) -> None:
    made = wheel(tmp_path, "demo", "1.0", {f"demo/f{n}.txt": LITERAL for n in range(9)})
    found = scan(made, [LITERAL, "something else entirely"]).found
    assert found[LITERAL].files == 9
    assert [place.file for place in found[LITERAL].places] == [f"demo/f{n}.txt" for n in range(PLACES)]
    assert found["something else entirely"].files == 0


def test_descriptions_and_file_lists_do_not_count(tmp_path: Path) -> None:
    assert look(tmp_path, {"demo-1.0.dist-info/METADATA": LITERAL, "demo-1.0.dist-info/RECORD": LITERAL}) == []


def test_files_that_lead_elsewhere_are_left_alone_and_nothing_is_unpacked(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("demo/link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = tmp_path / "wheels" / "demo-1.0-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("../up.txt", "/absolute.txt", "demo/../../up.txt", "..\\up.txt"):
            archive.writestr(name, LITERAL)
        archive.writestr(link, LITERAL)
    before = sorted(tmp_path.rglob("*"))
    assert scan(file, [LITERAL]).found[LITERAL].files == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_unpacks_to_too_much_is_left_unread_and_said(tmp_path: Path) -> None:
    made = wheel(tmp_path, "demo", "1.0", {"demo/bomb.so": b"\0" * 5_000_000, "demo/a.txt": LITERAL})
    assert made.stat().st_size < 20_000
    result = scan(made, [LITERAL], largest=1_000_000)
    assert result.found[LITERAL].files == 1
    assert result.unread == ("demo/bomb.so: unpacks to 4 MiB",)


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    made = wheel(tmp_path, "demo", "1.0", {f"demo/{n}.so": b"\0" * 1_000_000 for n in range(5)})
    with pytest.raises(WheelRefusedError, match="unpacks to"):
        scan(made, [LITERAL], whole=3_000_000)


def test_compression_that_grows_without_bounds_is_not_unpacked(tmp_path: Path) -> None:
    made = wheel(tmp_path, "demo", "1.0", {"demo/a.txt": LITERAL}, compression=zipfile.ZIP_BZIP2)
    assert scan(made, [LITERAL]).unread == ("demo/a.txt: is packed in a way that wheels are not",)


def test_a_damaged_file_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    made = wheel(
        tmp_path, "demo", "1.0", {"demo/a.txt": "x" * 500, "demo/b.txt": LITERAL}, compression=zipfile.ZIP_STORED
    )
    made.write_bytes(made.read_bytes().replace(b"xxxx", b"xyxx", 1))
    result = scan(made, [LITERAL])
    assert result.found[LITERAL].files == 1
    assert [line.split(":")[0] for line in result.unread] == ["demo/a.txt"]


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "demo-1.0-py3-none-any.whl"
    file.write_text("404 not found")
    with pytest.raises(WheelRefusedError, match="no archive"):
        scan(file, [LITERAL])


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_source_makes_the_reader_raise(source: bytes) -> None:
    find(source, [LITERAL, "x"])


@settings(deadline=None)
@given(st.lists(st.text("abcdef {}%s", max_size=12), min_size=1, max_size=5), st.data())
def test_any_part_of_a_string_stands_in_it(parts: list[str], data: st.DataObject) -> None:
    template = MARK.join(parts)
    part = data.draw(st.sampled_from(parts))
    assert stands(part, template) == "joined"


@settings(deadline=None)
@given(st.lists(st.text("abcdefghijklm", min_size=6, max_size=12), min_size=2, max_size=5))
def test_a_filled_in_string_stands_in_its_template(parts: list[str]) -> None:
    assert stands("XY".join(parts), MARK.join(parts)) == "placeholders"
