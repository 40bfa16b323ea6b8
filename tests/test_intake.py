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
