"""Noise goes, the error stays, and every character still knows where it stood in the paste."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.denoise import OVERLAP, SEGMENT, denoise

ERROR = "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"

NOISES = [
    "[rank3]: {}",
    "[rank12]:{}",
    "[default0]:{}",
    "[1,3]<stderr>:{}",
    "stderr: {}",
    "(RayWorkerWrapper pid=4711, ip=10.0.0.7) {}",
    "(EngineCore_DP0 pid=318) {}",
    "(VllmWorker TP2 pid=415) {}",
    "#033[1;36m{}#033[0m#015",
    "2024-05-01T12:00:00.123456789Z stderr F {}",
    "2024-05-22 10:19:31,770 - ERROR - {}",
    "2026-11-22T13:26:21.1390001Z {}",
    "[2024-05-22 10:19:31,770] {}",
    "06/18 20:41:12 - ERROR - {}",
    "[rank0]:[E321 02:44:10.118271257 ProcessGroupNCCL.cpp:607] {}",
    "E0330 00:10:23.001000 2209180 api.py:869] {}",
    "[ERROR] {}",
    "Nov 22 13:26:21 gpu-node-7 python[4711]: {}",
    "> {}",
    "│ {} │",
    "\x1b[31m{}\x1b[0m",
    "^[[31m{}^[[0m",
    "[31m{}[39m",
    "E   {}",
    "  | {}",
    "trainer-1  | {}",
]


def texts(paste: str) -> list[str]:
    return [line.text for line in denoise(paste)]


@pytest.mark.parametrize("noise", NOISES)
def test_one_noise_is_removed(noise: str) -> None:
    assert texts(noise.format(ERROR)) == [ERROR]


@pytest.mark.parametrize("outer", NOISES)
@pytest.mark.parametrize("inner", NOISES)
def test_noise_on_noise_is_removed_in_either_order(outer: str, inner: str) -> None:
    assert texts(outer.format(inner.format(ERROR)))[0].strip() == ERROR


@pytest.mark.parametrize(
    "line",
    [
        ERROR,
        '  File "/home/ml/train.py", line 12, in main',
        "    loss = criterion(outputs, labels)  # 3: not a rank",
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
        "expected mat1 and mat2 to have the same dtype, but got: float != c10::BFloat16",
        "x = tensor[0]  # [1] is the first",
        "ValueError: rank 3 is out of range",
    ],
)
def test_plain_lines_stay_as_they_are(line: str) -> None:
    assert texts(line) == [line]


def test_the_stream_a_line_came_from_is_kept() -> None:
    sources = [line.source for line in denoise("[rank3]: a\n(Worker pid=12) b\nplain")]
    assert sources == ["rank3", "Worker pid=12", None]


def test_bare_numbers_are_ranks_only_where_most_lines_carry_one() -> None:
    many = denoise("0: Traceback (most recent call last):\n1: Traceback (most recent call last):\n0: ValueError: x")
    assert [line.source for line in many] == ["rank0", "rank1", "rank0"]
    one = denoise("0: first item\nsome text\nmore text\nand more")
    assert one[0].text == "0: first item"


def test_numbers_behind_other_noise_are_ranks_too_and_nothing_is_left_for_a_second_pass() -> None:
    paste = "\x03\x0011: [1,11]<stderr>:terminate called\n11: [1,11]<stderr>:  what()\nstderr: 0: a\n1: 0: b"
    once = texts(paste)
    assert once == texts("\n".join(once))
    assert once[0] == "terminate called"


def test_html_entities_and_typographic_quotes_become_what_was_typed() -> None:
    assert texts("&lt;module&gt; &amp; \u2018BFloat16\u2019") == ["<module> & 'BFloat16'"]


def test_text_after_a_progress_bar_on_the_same_line_is_found() -> None:
    bar = "  3%|▎         | 30/1000 [00:12<06:30,  2.49it/s]"
    assert ERROR in texts(bar + ERROR)
    assert texts(f"{bar}\r{ERROR}")[-1] == ERROR


def test_direction_overrides_and_control_characters_vanish() -> None:
    assert texts("CUDA \u202eerror\u202c: \x00\x07bad\u200b") == ["CUDA error: bad"]


def test_a_line_far_too_long_is_read_in_overlapping_segments() -> None:
    paste = "x" * (SEGMENT - 20) + ERROR + "y" * SEGMENT
    lines = denoise(paste)
    assert all(len(line.text) <= SEGMENT for line in lines)
    hit = next(line for line in lines if ERROR in line.text)
    column = hit.text.index(ERROR)
    assert paste[hit.raw_column(column) :].startswith(ERROR)
    assert len(ERROR) < OVERLAP


NOISY = st.lists(
    st.one_of(
        st.sampled_from([*NOISES, "0: {}", "[3]: {}", "\x03{}"]).map(lambda noise: noise.format(ERROR)),
        st.text(max_size=60),
    ),
    max_size=6,
).map("\n".join)


@given(NOISY)
def test_every_clean_character_points_at_itself(paste: str) -> None:
    raw = paste.split("\n")
    for line in denoise(paste):
        for column, char in enumerate(line.text):
            there = raw[line.number - 1][line.raw_column(column)]
            # An entity or a typographic character stands where its plain form is shown.
            assert there == char or there == "&" or not there.isascii()


@given(NOISY)
def test_denoising_twice_changes_nothing(paste: str) -> None:
    once = texts(paste)
    assert texts("\n".join(once)) == once


@given(st.text(max_size=400))
def test_any_text_is_survived_and_line_numbers_are_those_of_the_paste(paste: str) -> None:
    numbers = [line.number for line in denoise(paste)]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(1, paste.count("\n") + 2)) or "\r" in paste


def test_a_fence_does_not_decide_whether_numbers_are_ranks() -> None:
    paste = '```\n1:     trainer.train()\n3:   File "linear.py", line 125, in forward\nnoise\n```\nmore noise'
    once = texts(paste)
    assert texts("\n".join(once)) == once


def test_positions_survive_several_kinds_of_noise_in_one_line() -> None:
    (line,) = denoise("0\x1b0\x1f&lt;\x1b[31m1")
    assert line.text == "00<1"
    assert [line.raw_column(column) for column in range(4)] == [0, 2, 4, 13]


def test_json_logs_are_read_as_what_they_say() -> None:
    paste = (
        r'{"level": "error", "msg": "Traceback (most recent call last):\n  File \"/a/b.py\", line 1, in \u003cmodule\u003e\n'
        r'RuntimeError: \"addmm\" not implemented\n", "time": "2024-05-01T12:00:00Z"}'
    )
    lines = denoise(paste)
    assert [line.text for line in lines] == [
        "Traceback (most recent call last):",
        '  File "/a/b.py", line 1, in <module>',
        'RuntimeError: "addmm" not implemented',
    ]
    last = lines[-1]
    assert last.number == 1
    assert paste[last.raw_column(last.text.index("addmm")) :].startswith("addmm")


def test_a_container_log_in_json_is_as_the_program_wrote_it() -> None:
    wrapped = r'{"log":"[rank1]:   File \"/a/b.py\", line 1, in f\n","stream":"stderr","time":"2024-05-01T12:00:00.1Z"}'
    (line,) = denoise(wrapped)
    assert (line.text, line.source) == ('  File "/a/b.py", line 1, in f', "rank1")


@pytest.mark.parametrize("paste", ['{"a b": 1}', '{"a": "one"}', '{"a": "never closed', '{"' + '"\\"' * 400 + "}"])
def test_what_says_nothing_in_json_stays_as_it_is(paste: str) -> None:
    assert texts(paste) == [paste]


def test_a_stamp_before_every_piece_of_a_line_is_removed() -> None:
    stamp = "2025-05-06T01:27:16.259032 - "
    assert texts(f"{stamp}NameError{stamp}: name {stamp}'x'{stamp} is not defined{stamp}") == [
        "NameError: name 'x' is not defined"
    ]


def test_a_frame_that_colab_made_a_link_is_a_frame() -> None:
    paste = "[/usr/lib/python3/dist-packages/peft/config.py](https://localhost:8080/#) in load(self)"
    (line,) = denoise(paste)
    assert line.text == "/usr/lib/python3/dist-packages/peft/config.py in load(self)"
    assert paste[line.raw_column(line.text.index(" in load")) :].startswith(" in load")
