"""Pastes of every shape become incidents with type, message, frames, ranks and chains."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kb.denoise import denoise
from kb.models.result import Incident
from kb.parse import Parsed, parse


def read(paste: str) -> Parsed:
    return parse(denoise(paste))


def incidents(paste: str) -> list[Incident]:
    return [failure.incident for failure in read(paste).failures]


PLAIN = """\
Traceback (most recent call last):
  File "/home/ml/train.py", line 12, in <module>
    main()
    ~~~~^^
  File "/opt/conda/lib/python3.11/site-packages/torch/nn/modules/linear.py", line 134, in forward
    return F.linear(input, self.weight, self.bias)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
RuntimeError: expected mat1 and mat2 to have the same dtype
"""


def test_a_plain_traceback() -> None:
    (incident,) = incidents(PLAIN)
    assert (incident.type, incident.message) == ("RuntimeError", "expected mat1 and mat2 to have the same dtype")
    assert [frame.function for frame in incident.frames] == ["<module>", "forward"]
    assert incident.line == 8
    assert incident.package == "torch"
    assert incident.user_frame is not None
    assert (incident.user_frame.file, incident.user_frame.line) == ("/home/ml/train.py", 12)


def test_indentation_lost_on_the_way() -> None:
    (incident,) = incidents("\n".join(line.strip() for line in PLAIN.splitlines()))
    assert incident.type == "RuntimeError"
    assert len(incident.frames) == 2


def test_a_cut_off_head_still_gives_frames_and_type() -> None:
    (incident,) = incidents("\n".join(PLAIN.splitlines()[4:]))
    assert incident.type == "RuntimeError"
    assert incident.frames[0].function == "forward"


def test_a_cut_off_tail_gives_frames_and_no_incident() -> None:
    parsed = read("\n".join(PLAIN.splitlines()[:6]))
    assert parsed.failures == ()
    assert len(parsed.frames) == 2


def test_an_error_message_in_source_code_is_not_an_incident() -> None:
    paste = PLAIN.replace("    main()\n", '    raise ValueError("CUDA out of memory. Tried to allocate")\n')
    assert [incident.type for incident in incidents(paste)] == ["RuntimeError"]


def test_a_message_of_several_lines_is_one_message() -> None:
    paste = "RuntimeError: Error(s) in loading state_dict for Linear:\n\tsize mismatch for weight\n\tsize mismatch for bias\n\nbye"
    (incident,) = incidents(paste)
    assert incident.message.count("size mismatch") == 2
    assert "bye" not in incident.message


def test_chains_are_kept_with_their_kind() -> None:
    paste = (
        PLAIN
        + "\nThe above exception was the direct cause of the following exception:\n\n"
        + PLAIN.replace("RuntimeError: expected", "ValueError: wrapped")
        + "\nDuring handling of the above exception, another exception occurred:\n\n"
        + PLAIN.replace("RuntimeError: expected", "KeyError: last")
    )
    first, second, third = incidents(paste)
    assert (first.follows, second.follows, second.link, third.follows, third.link) == (None, 0, "cause", 1, "context")


def test_interleaved_ranks_are_unravelled_and_folded() -> None:
    lines = PLAIN.splitlines()
    woven = "\n".join(f"[rank{rank}]: {line}" for line in lines for rank in (0, 1))
    (incident,) = incidents(woven)
    assert incident.ranks == ("rank0", "rank1")
    assert len(incident.frames) == 2


def test_copies_that_differ_only_in_numbers_are_one_failure() -> None:
    one = "[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"
    two = "[rank5]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB. GPU 5 has a total capacity"
    (incident,) = incidents(f"{one}\n{two}")
    assert incident.ranks == ("rank0", "rank5")


def test_ipython() -> None:
    paste = """\
---------------------------------------------------------------------------
RuntimeError                              Traceback (most recent call last)
Cell In[11], line 1
----> 1 trainer.train()

File /usr/local/lib/python3.12/dist-packages/torch/nn/modules/linear.py:134, in Linear.forward(self, input)
    130 def forward(self, input: Tensor) -> Tensor:
--> 134     return F.linear(input, self.weight, self.bias)

RuntimeError: expected mat1 and mat2 to have the same dtype
"""
    (incident,) = incidents(paste)
    assert incident.frames[1].file.endswith("linear.py")
    assert incident.user_frame is not None
    assert incident.user_frame.file == "Cell In[11]"


def test_rich_box_with_a_location_broken_at_its_edge() -> None:
    paste = """\
╭──────────── Traceback (most recent call last) ────────────╮
│ /data/app/infer.py:63 in <module>                         │
│                                                           │
│ ❱ 63     response = model.chat(tokenizer, raise ValueErro │
│ r: nothing                                                │
│ /root/.cache/modules/chatglm-6b-int8/quantization.py:39   │
│ 1 in forward                                              │
│ ❱ 391         output = W8A16Linear.apply(input)           │
╰───────────────────────────────────────────────────────────╯
RuntimeError: expected scalar type Half but found Float
"""
    (incident,) = incidents(paste)
    assert incident.type == "RuntimeError"
    assert [(frame.line, frame.function) for frame in incident.frames] == [(63, "<module>"), (391, "forward")]


def test_windows_paths() -> None:
    paste = PLAIN.replace("/home/ml/train.py", "C:\\ml\\train.py").replace(
        "/opt/conda/lib/python3.11/site-packages/torch", "C:\\Python\\Lib\\site-packages\\torch"
    )
    (incident,) = incidents(paste)
    assert incident.package == "torch"
    assert incident.user_frame is not None
    assert incident.user_frame.file == "C:\\ml\\train.py"


def test_a_type_from_a_package_names_it() -> None:
    (incident,) = incidents("torch.cuda.OutOfMemoryError: CUDA out of memory.")
    assert incident.package == "torch"


def test_warnings_and_prose_are_not_failures() -> None:
    assert incidents("UserWarning: this may be slow\nNote: nothing failed\nEpoch 3: loss 0.2") == []


def test_launcher_lines_after_an_exception_do_not_join_its_message() -> None:
    paste = (
        "ValueError: Must flatten tensors with uniform dtype\n"
        "[2024-05-22 10:19:31,770] torch.distributed.elastic.multiprocessing.api: [ERROR] failed (exitcode: 1)"
    )
    parsed = read(paste)
    assert [failure.incident.message for failure in parsed.failures] == ["Must flatten tensors with uniform dtype"]
    assert parsed.log[0].text.startswith("failed (exitcode: 1)")


@given(
    st.lists(
        st.sampled_from([*PLAIN.splitlines(), "", "noise", "[rank1]: x", "╭─ Traceback (most recent call last) ─╮"]),
        max_size=30,
    )
)
def test_any_order_of_lines_is_survived(lines: list[str]) -> None:
    for number, failure in enumerate(parsed := read("\n".join(lines)).failures):
        follows = failure.incident.follows
        assert follows is None or (0 <= follows < len(parsed) and follows != number)


@given(st.text(max_size=300))
def test_any_text_is_survived(paste: str) -> None:
    read(paste)


def test_a_notebook_location_that_looks_odd_does_not_end_its_traceback() -> None:
    paste = """\
---------------------------------------------------------------------------
ImportError                               Traceback (most recent call last)
/usr/local/lib/python3.10/dist-packages/app/load.py in <cell line: 3>()
      2     if broken:
----> 3         raise ValueError("CUDA out of memory. Tried to allocate")
      4
somewhere strange
      5     raise ValueError("CUDA out of memory. Tried to allocate")

ImportError: no accelerate
"""
    parsed = read(paste)
    assert [failure.incident.type for failure in parsed.failures] == ["ImportError"]
    assert not any("out of memory" in line.text for line in parsed.log)


def test_a_message_cut_inside_a_word_by_a_terminal_is_whole_again() -> None:
    error = "RuntimeError: expected mat1 and mat2 to have the same dtype, but got: float != c10::BFloat16"
    frame = '  File "/opt/conda/lib/python3.11/site-packages/torch/nn/modules/linear.py", line 134, in forward'
    for width in (43, 57, 60, 79, 80):
        lines = ["Traceback (most recent call last):", frame, error]
        paste = "\n".join(line[at : at + width] for line in lines for at in range(0, len(line), width))
        subject = read(paste).failures[-1].subject
        assert subject.text == error
        line, column = subject.locate(subject.text.index("BFloat16"))
        assert paste.split("\n")[line.number - 1][line.raw_column(column) :].startswith("BFloat16"[: width - column])


def test_lines_wrapped_between_words_keep_their_spaces() -> None:
    paste = "RuntimeError: the first line of this message is wrapped between\nits words, and so it has a second line which is just as long\nand a third one that comes close to it in length, as they do.\n"
    widths = [len(line) for line in paste.splitlines()]
    assert max(widths) - min(widths) < 8
    assert "between its words" in read(paste).failures[0].subject.text
    assert "long and a third" in read(paste).failures[0].subject.text


WORKER = """\
Traceback (most recent call last):
  File "/home/ml/train.py", line 9, in <module>
    for batch in loader:
  File "/opt/conda/lib/python3.11/site-packages/torch/_utils.py", line 733, in reraise
    raise exception
KeyError: Caught KeyError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "/opt/conda/lib/python3.11/site-packages/torch/utils/data/_utils/worker.py", line 349, in _worker_loop
    data = fetcher.fetch(index)
  File "/home/ml/data.py", line 31, in __getitem__
    return self.rows[index]
KeyError: 'rows'
"""


def test_what_a_worker_raised_is_the_cause_of_what_carries_it() -> None:
    carrier, origin = incidents(WORKER)
    assert (carrier.follows, carrier.link) == (1, "cause")
    assert "Original" not in carrier.message
    assert origin.message == "'rows'"
    assert origin.user_frame is not None and origin.user_frame.file == "/home/ml/data.py"


def test_a_header_behind_a_loggers_words_begins_a_traceback() -> None:
    (incident,) = incidents("[ERROR] scheduler died: " + PLAIN)
    assert (incident.type, len(incident.frames)) == ("RuntimeError", 2)


def test_an_assertion_without_a_message_says_what_was_asserted() -> None:
    paste = (
        PLAIN.rsplit("RuntimeError", 1)[0]
        + '  File "/a/b.py", line 3, in f\n    assert heads % size == 0\nAssertionError\n'
    )
    (failure,) = read(paste).failures
    assert failure.incident.message == "assert heads % size == 0"
    assert failure.subject.text == "AssertionError assert heads % size == 0"


def test_a_whole_traceback_on_one_line_is_no_frame() -> None:
    parsed = read('File "/a/b.py", line 1, in f raise ValueError("no") ValueError: no')
    assert parsed.frames == ()
    assert "ValueError: no" in parsed.log[0].text


def test_a_traceback_cut_before_its_last_line_shows_what_was_raised() -> None:
    cut = PLAIN.rsplit("    return F.linear", 1)[0] + '    raise RuntimeError("the gizmo is jammed")\n'
    (incident,) = incidents(cut)
    assert (incident.type, incident.message, len(incident.frames)) == ("RuntimeError", "the gizmo is jammed", 2)
    assert [one.message for one in incidents(cut + "Thank you.")] == ["the gizmo is jammed"]
    for between in ("", "epoch 3 of 5\n"):
        (whole,) = incidents(cut + between + "RuntimeError: the gizmo is jammed, really")
        assert whole.message.endswith("really")


def test_what_another_program_wrote_below_a_frame_is_a_log_line() -> None:
    paste = PLAIN.replace("    return F.linear", "/usr/bin/ld: cannot find -lcuda\n    return F.linear")
    parsed = read(paste)
    assert [line.text for line in parsed.log] == ["/usr/bin/ld: cannot find -lcuda"]
    assert [failure.incident.type for failure in parsed.failures] == ["RuntimeError"]


def test_a_message_wrapped_behind_its_prefix_is_whole() -> None:
    paste = "(APIServer pid=1) RuntimeError: Engine core failed. See root\ncause above.\n(APIServer pid=1) INFO: bye"
    (incident,) = incidents(paste)
    assert incident.message.split() == ["Engine", "core", "failed.", "See", "root", "cause", "above."]


def test_source_code_that_can_raise_an_error_does_not_report_it() -> None:
    paste = """\
    if mode:
        raise ValueError(
            "Cannot merge layers in 8-bit mode. "
            "CUDA out of memory."
        )
+       TORCH_CHECK(false, "CUDA out of memory.")
    with pytest.raises(ValueError, match="CUDA out of memory"):
"CUDA out of memory", said the log
with "CUDA out of memory" it ended
if "CUDA out of memory" helps anybody
"""
    shown = [line.text for line in read(paste).log if "memory" in line.text]
    assert shown == [
        '"CUDA out of memory", said the log',
        'with "CUDA out of memory" it ended',
        'if "CUDA out of memory" helps anybody',
    ]
