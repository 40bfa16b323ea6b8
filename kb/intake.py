"""Get the text to match out of files and standard input, whatever shape it is in."""

from __future__ import annotations

import sys
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from kb import lazy
from kb.errors import PasteError

_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_PACKED = (
    (b"\x1f\x8b", "gzip", "zcat"),
    (b"BZh", "bzip2", "bzcat"),
    (b"\xfd7zXZ", "xz", "xzcat"),
    (b"(\xb5/\xfd", "zstd", "zstdcat"),
)
_UNPRINTABLE = lazy.pattern(r"[\x00-\x06\x0e-\x1a\x1c-\x1f\ufffd]")
_SAMPLE = 65_536
LARGE = 1_048_576
"""Bytes from which on an input is read piece by piece."""
_PIECE = 262_144


def read_file(path: Path) -> str | Iterator[str]:
    """Text of one file; of a large one its pieces, read as they are asked for.

    Raises PasteError if it is missing, a folder, unreadable, compressed, or not text.
    """
    try:
        with ExitStack() as closing:
            text = _read(closing.enter_context(path.open("rb")), str(path))
            if isinstance(text, str):
                return text
            return _until_read(text, closing.pop_all())
    except FileNotFoundError:
        raise PasteError(f"{path}: no such file", "check the path, or pipe the text: … | kb match -") from None
    except IsADirectoryError:
        raise PasteError(f"{path}: is a folder", f"name the files in it: kb match {path}/*.log") from None
    except OSError as error:
        raise PasteError(f"{path}: {error.strerror or error}", "check that you may read it") from error


def read_stdin() -> str | Iterator[str]:
    """Text of standard input, of much of it the pieces; on a terminal, says on standard error that it waits."""
    if sys.stdin is None or sys.stdin.closed:
        raise PasteError("standard input is closed", "name a file: kb match trace.txt")
    if sys.stdin.isatty():
        print("Paste the traceback, then press Ctrl-D (Ctrl-Z and Enter on Windows).", file=sys.stderr, flush=True)
    return _read(sys.stdin.buffer, "standard input")


def _read(stream: BinaryIO, name: str) -> str | Iterator[str]:
    return read_on(stream.read(LARGE), stream, name)


def read_on(head: bytes, stream: BinaryIO, name: str) -> str | Iterator[str]:
    """Text of a stream of which the first `LARGE` bytes are read already; of a longer one its pieces.

    Raises PasteError as `decode` does.
    """
    if len(head) < LARGE:
        return decode(head, name)
    _refuse_packed(head, name)
    _refuse_binary(head[:_SAMPLE].decode(_encoding(head), "replace"), name)
    return _pieces(head, stream)


def _until_read(pieces: Iterator[str], closing: ExitStack) -> Iterator[str]:
    with closing:
        yield from pieces


def _pieces(head: bytes, stream: BinaryIO) -> Iterator[str]:
    decoder = getincrementaldecoder(_encoding(head))(errors="replace")
    data = head
    while data:
        yield decoder.decode(data)
        data = stream.read(_PIECE)
    yield decoder.decode(b"", final=True)


def decode(data: bytes, name: str) -> str:
    """Bytes to text: UTF-8, or UTF-16 with its mark as PowerShell writes it; stray bytes become U+FFFD.

    Raises PasteError for nothing, for compressed data and for binary data.
    """
    if not data.strip():
        raise PasteError(
            f"{name}: nothing to match, it is empty", "paste the whole error, from `Traceback` to the last line"
        )
    _refuse_packed(data, name)
    text = data.decode(_encoding(data), errors="replace")
    for sample in (text[:_SAMPLE], text[-_SAMPLE:]):
        _refuse_binary(sample, name)
    return text


def _encoding(data: bytes) -> str:
    return next((codec for mark, codec in _BOMS if data.startswith(mark)), "utf-8")


def _refuse_packed(data: bytes, name: str) -> None:
    for magic, kind, tool in _PACKED:
        if data.startswith(magic):
            raise PasteError(f"{name}: is {kind}-compressed", f"unpack it on the way: {tool} {name} | kb match -")


def _refuse_binary(sample: str, name: str) -> None:
    if len(_UNPRINTABLE.findall(sample)) > 0.3 * len(sample):
        raise PasteError(f"{name}: is binary, not text", "give the log or the pasted traceback as text")
