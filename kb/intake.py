"""Get the text to match out of files and standard input, whatever shape it is in."""

from __future__ import annotations

import sys
from pathlib import Path

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


def read_file(path: Path) -> str:
    """Text of one file. Raises PasteError if it is missing, a folder, unreadable, compressed, or not text."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PasteError(f"{path}: no such file", "check the path, or pipe the text: … | kb match -") from None
    except IsADirectoryError:
        raise PasteError(f"{path}: is a folder", f"name the files in it: kb match {path}/*.log") from None
    except OSError as error:
        raise PasteError(f"{path}: {error.strerror or error}", "check that you may read it") from error
    return decode(data, str(path))


def read_stdin() -> str:
    """Text of standard input; on a terminal, says on standard error that it waits."""
    if sys.stdin is None or sys.stdin.closed:
        raise PasteError("standard input is closed", "name a file: kb match trace.txt")
    if sys.stdin.isatty():
        print("Paste the traceback, then press Ctrl-D (Ctrl-Z and Enter on Windows).", file=sys.stderr, flush=True)
    return decode(sys.stdin.buffer.read(), "standard input")


def decode(data: bytes, name: str) -> str:
    """Bytes to text: UTF-8, or UTF-16 with its mark as PowerShell writes it; stray bytes become U+FFFD.

    Raises PasteError for nothing, for compressed data and for binary data.
    """
    if not data.strip():
        raise PasteError(
            f"{name}: nothing to match, it is empty", "paste the whole error, from `Traceback` to the last line"
        )
    for magic, kind, tool in _PACKED:
        if data.startswith(magic):
            raise PasteError(f"{name}: is {kind}-compressed", f"unpack it on the way: {tool} {name} | kb match -")
    encoding = next((codec for mark, codec in _BOMS if data.startswith(mark)), "utf-8")
    text = data.decode(encoding, errors="replace")
    for sample in (text[:_SAMPLE], text[-_SAMPLE:]):
        if len(_UNPRINTABLE.findall(sample)) > 0.3 * len(sample):
            raise PasteError(f"{name}: is binary, not text", "give the log or the pasted traceback as text")
    return text
