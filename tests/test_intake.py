"""Every way a paste can arrive, and every way it cannot."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kb.errors import PasteError
from kb.intake import decode, read_file


def test_utf8_with_and_without_its_mark() -> None:
    assert decode("KeyError: 'größe'".encode(), "x") == "KeyError: 'größe'"
    assert decode("\ufeffKeyError".encode(), "x") == "KeyError"


def test_what_powershell_writes() -> None:
    assert decode("RuntimeError: x\r\n".encode("utf-16"), "x") == "RuntimeError: x\r\n"


def test_stray_bytes_do_not_hide_the_rest() -> None:
    assert decode(b"RuntimeError: caf\xe9 CUDA out of memory", "x") == "RuntimeError: caf\ufffd CUDA out of memory"


@pytest.mark.parametrize("data", [b"", b"  \n\t\n"])
def test_nothing_is_said_to_be_nothing(data: bytes) -> None:
    with pytest.raises(PasteError, match="nothing to match"):
        decode(data, "trace.txt")


def test_binary_is_refused() -> None:
    with pytest.raises(PasteError, match="binary"):
        decode(bytes(range(256)) * 64, "model.bin")


def test_compressed_is_refused_with_the_way_to_unpack_it() -> None:
    with pytest.raises(PasteError) as caught:
        decode(gzip.compress(b"Traceback"), "log.gz")
    assert "zcat log.gz | kb match -" in caught.value.remedy


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(PasteError, match="no such file"):
        read_file(tmp_path / "nope.txt")
    with pytest.raises(PasteError, match="is a folder"):
        read_file(tmp_path)


def test_a_small_file_is_one_text(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text("KeyError: 'größe'", encoding="utf-8")
    assert read_file(file) == "KeyError: 'größe'"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_large_file_comes_in_pieces_that_are_its_text(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "train.log"
    text = "step größe €\r\n" * 100_000
    file.write_bytes(text.encode(encoding))
    pieces = read_file(file)
    assert not isinstance(pieces, str)
    assert "".join(pieces) == text


def test_stray_bytes_of_a_large_file_do_not_hide_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "train.log"
    file.write_bytes(b"step \xe9\n" * 200_000 + b"the end \xe2")
    assert "".join(read_file(file)) == "step \ufffd\n" * 200_000 + "the end \ufffd"


def test_large_binary_and_packed_files_are_refused(tmp_path: Path) -> None:
    for name, data in {"binary": bytes(range(256)) * 8_000, "compressed": b"\x1f\x8b" + b"x" * 2_000_000}.items():
        file = tmp_path / name
        file.write_bytes(data)
        with pytest.raises(PasteError, match=name):
            read_file(file)
