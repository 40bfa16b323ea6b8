"""Patterns find their entry in the right incident, say where and why, and the more specific entry wins."""

from __future__ import annotations

from typing import Any

from kb.denoise import denoise
from kb.index import Signature
from kb.literals import required_literals
from kb.matcher import error_line, find
from kb.models.result import Incident
from kb.parse import parse


def signature(entry_id: str, regex: str, **more: Any) -> Signature:
    plain: dict[str, Any] = {
        "ordinal": 0, "signature": regex, "engine": "re2", "frames": (), "exceptions": (), "kind": "error",
        "supersedes": (), "legacy": False, "literals": required_literals(regex),
    }  # fmt: skip
    return Signature(entry_id=entry_id, regex=regex, **{**plain, **more})


OOM = signature(
    "cuda/out-of-memory", r"CUDA out of memory\. Tried to allocate", exceptions=("OutOfMemoryError", "RuntimeError")
)
LINEAR = signature("pytorch/linear", r"mat1 and mat2 to have the same dtype", exceptions=("RuntimeError",))
NEMO = signature(
    "nemo/lora",
    r"mat1 and mat2 to have the same dtype",
    frames=(r"nemo_automodel/.{0,80}lora",),
    supersedes=("pytorch/linear",),
)
WATCHDOG = signature("distributed/watchdog", r"Watchdog caught collective operation timeout")

NEMO_TRACE = """\
Traceback (most recent call last):
  File "/opt/venv/lib/python3.12/site-packages/nemo_automodel/components/_peft/lora.py", line 88, in forward
    return self.lora_B(self.lora_A(x))
RuntimeError: expected mat1 and mat2 to have the same dtype, but got: float != c10::BFloat16
"""


def matched(paste: str, *signatures: Signature) -> list[tuple[str, str]]:
    _, found = find(parse(denoise(paste)), signatures)
    return [(match.entry_id, match.level) for match in found]


def test_an_exception_with_its_type_and_message_is_exact() -> None:
    assert matched("RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB", OOM) == [
        ("cuda/out-of-memory", "exact")
    ]


def test_the_message_under_another_type_is_only_a_line() -> None:
    assert matched("ValueError: CUDA out of memory. Tried to allocate 2.00 GiB", OOM) == [
        ("cuda/out-of-memory", "line")
    ]


def test_a_log_line_is_a_line() -> None:
    paste = "[rank7]:[E816 02:10:22.18 ProcessGroupNCCL.cpp:607] [Rank 7] Watchdog caught collective operation timeout: WorkNCCL"
    incidents, (found,) = find(parse(denoise(paste)), [WATCHDOG])
    assert found.level == "line"
    assert incidents[found.incident].ranks == ("rank7",)
    assert paste[found.span[0] : found.span[1]] == "Watchdog caught collective operation timeout"


def test_the_span_is_that_of_the_raw_line() -> None:
    paste = "first\n\x1b[31m[rank1]: RuntimeError\x1b[0m: CUDA  out of memory. Tried to allocate 2.00 GiB"
    _, (found,) = find(parse(denoise(paste)), [OOM])
    assert found.line == 2
    assert paste.split("\n")[1][slice(*found.span)] == "CUDA  out of memory. Tried to allocate"


def test_frames_decide_between_the_general_and_the_specific_entry() -> None:
    assert matched(NEMO_TRACE, LINEAR, NEMO) == [("nemo/lora", "exact")]
    plain = NEMO_TRACE.replace("nemo_automodel/components/_peft/lora.py", "torch/nn/modules/linear.py")
    assert matched(plain, LINEAR, NEMO) == [("pytorch/linear", "exact")]


def test_frames_of_windows_paths_count() -> None:
    paste = NEMO_TRACE.replace("/", "\\")
    assert matched(paste, LINEAR, NEMO)[0][0] == "nemo/lora"


def test_a_message_broken_over_lines_is_found() -> None:
    paste = "the job logged\nCUDA out of\nmemory. Tried to allocate 2.00 GiB\nand died"
    assert matched(paste, OOM) == [("cuda/out-of-memory", "line")]


def test_source_code_in_a_traceback_matches_nothing() -> None:
    paste = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    raise E("CUDA out of memory. Tried to allocate")\nKeyError: 1'
    assert matched(paste, OOM) == []


def test_an_entry_is_reported_once_with_all_ranks() -> None:
    paste = "\n".join(f"[rank{n}]: RuntimeError: CUDA out of memory. Tried to allocate {n}.00 GiB" for n in range(3))
    incidents, found = find(parse(denoise(paste)), [OOM])
    assert [match.entry_id for match in found] == ["cuda/out-of-memory"]
    assert incidents[found[0].incident].ranks == ("rank0", "rank1", "rank2")


def test_a_wrapper_never_wins_over_a_concrete_error_in_the_same_text() -> None:
    wrapper = signature("distributed/wrapper", r"CUDA out of memory", kind="wrapper")
    assert (
        matched("RuntimeError: CUDA out of memory. Tried to allocate 1 GiB", wrapper, OOM)[0][0] == "cuda/out-of-memory"
    )


def test_an_imported_pattern_outside_the_linear_dialect_cannot_stall() -> None:
    bomb = signature("imported/bomb", r"(a|aa)+$(?!b)", engine="regex", legacy=True, literals=())
    assert matched("a" * 3_000 + "!", bomb) == []


def test_the_line_to_find_relatives_with_is_the_last_exception() -> None:
    incidents, _ = find(parse(denoise("ValueError: first\n\nKeyError: 'second'")), [])
    assert error_line(incidents) == "KeyError: 'second'"
    assert error_line([Incident(kind="log", type=None, message="x", line=1)]) == ""


def test_another_rank_with_other_frames_repeats_the_entry() -> None:
    def rank(number: int, function: str) -> str:
        lines = ("Traceback (most recent call last):", f'  File "/w/{function}.py", line 3, in {function}')
        return "".join(
            f"[rank{number}]: {line}\n"
            for line in (*lines, "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB")
        )

    incidents, (found,) = find(parse(denoise(rank(0, "forward") + rank(1, "evaluate"))), [OOM])
    assert [incidents[place].ranks for place in (found.incident, *found.repeats)] == [("rank0",), ("rank1",)]
