"""Entry point. A plain `kb match` runs without loading the command-line framework, which costs ten times a look-up."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `kb` and exit with its code: 2 for every deliberate error, which goes to standard error with its remedy."""
    from kb.errors import KbError

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KbError as error:
        from kb.render.page import safe

        print("error: " + "\n".join(safe(line) for line in str(error).split("\n")), file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:  # the reader has gone, as in `kb list | head`
        _abandon_output()
        code = 0
    except OSError as error:
        print(f"error: {error}\n  remedy: check the disk, and where the output goes", file=sys.stderr)
        _abandon_output()
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _abandon_output() -> None:
    """Keep the interpreter from flushing, and failing, once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["match"] and (code := _match(arguments[1:])) is not None:
        return code
    from kb.cli import app

    return app.main(arguments)


def _match(arguments: list[str]) -> int | None:
    """Exit code of a plain `kb match`, None if the command line is not plain."""
    import gc

    gc.disable()  # a look-up is over before garbage matters, and collecting takes a twentieth of it
    try:
        from kb.cli import match

        options = match.plain(arguments)
        return None if options is None else match.run(options)
    finally:
        gc.enable()


if __name__ == "__main__":
    main()
