"""Secrets go, tracebacks stay readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.redact import MARK, redact

BODY = "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8S9t0"

SECRETS = [
    ("hf_" + BODY[:34], "hf_"),
    ("sk-proj-" + BODY, "sk-"),
    ("sk-ant-api03-" + BODY, "sk-ant"),
    ("ghp_" + BODY[:36], "ghp_"),
    ("github_pat_" + BODY, "github_pat_"),
    ("AKIA" + "ABCDEFGH12345678", "AKIA"),
    ("AIza" + BODY[:35], "AIza"),
    ("xoxb-" + "123456789012-abcdefghijkl", "xoxb"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "eyJ"),
    ("nvapi-" + BODY, "nvapi-"),
    ("npm_" + BODY, "npm_"),
    ("pypi-Ag" + BODY, "pypi-Ag"),
    ("sk_live_" + BODY, "sk_live_"),
    ("SG." + BODY[:22] + "." + BODY, "SG."),
    ("gsk_" + BODY, "gsk_"),
    ("r8_" + BODY, "r8_"),
    ("https://hooks.slack.com/services/T0001/B0001/" + BODY[:24], "T0001"),
    ("Authorization: Bearer " + BODY, BODY),
    ('{"authorization": "Basic dXNlcjpwYXNz"}', "dXNlcjpwYXNz"),
    ("curl -H 'X-Api-Key: " + BODY + "'", BODY),
    ("https://user:pa55word@example.org/simple", "pa55word"),
    ("postgresql://admin:s3cr3t@db:5432/x", "s3cr3t"),
    ("WANDB_API_KEY=" + BODY, BODY),
    ("export HF_TOKEN='short one'", "short one"),
    ('"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfi"', "wJalr"),
    ("aws_secret_access_key = 'wJalrXUtnFEMI/K7MDENG+bPxRfi'", "wJalr"),
    ("login(token='abc', x=1)", "'abc'"),
    ("--api-key abcdef", "abcdef"),
    ("password=hunter2hunter2", "hunter2"),
    ("written by jane.doe+ml@example.co.uk, today", "jane.doe"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabcd\n-----END RSA PRIVATE KEY-----\n", "MIIE"),
    ("-----BEGIN PRIVATE KEY-----\nMIIE cut off here", "MIIE"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS, ids=[secret for _, secret in SECRETS])
def test_secrets_are_removed_and_what_is_around_them_stays(text: str, secret: str) -> None:
    redacted = redact(f"before\n{text} after")
    assert secret not in redacted
    assert MARK in redacted
    assert redacted.startswith("before\n")


def test_what_stands_beside_a_secret_stays() -> None:
    assert redact("https://user:pw1@example.org/a") == f"https://{MARK}@example.org/a"
    assert redact(f"WANDB_API_KEY={BODY} python train.py") == f"WANDB_API_KEY={MARK} python train.py"
    assert redact(f"x hf_{BODY}.") == f"x {MARK}."


ORDINARY = [
    "RuntimeError: expected mat1 and mat2 to have the same dtype, but got: float != c10::BFloat16",
    "KeyError: 'model.layers.0.self_attn.k_proj.weight'",
    "    past_key_values = past_key_values.update(key_states, value_states)",
    "    attn = q@k.transpose(-2, -1) @ v; y = x@w.mT",
    "    token = tokenizer.pad_token_id; tokens=12, token=token",
    "    @torch.no_grad()",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 79.25 GiB",
    "RuntimeError: CUDA error: device-side assert triggered",
    'File "/usr/lib/python3/site-packages/transformers/models/llama/modeling_llama.py", line 421, in forward',
    "sk-learn is not a secret, nor is task-management, nor risk-averse",
    "  hf_quantizer.preprocess_model(model=model, hf_token_ids=ids)",
    "git clone git@github.com:org/name.git; ssh://git@host/x; http://localhost:8080/path?x=1",
    "secret ingredients; the password is wrong; api key missing",
    "NCCL WARN [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE)",
    "<function f at 0x7f00aa>; sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_lines_are_unchanged(text: str) -> None:
    assert redact(text) == text
    assert redact(text, paths=True) == text


HOMES = [
    ("/home/jane/project/train.py", "~/project/train.py"),
    ("/Users/jane/x.py", "~/x.py"),
    (r"C:\Users\Jane Doe\x.py", r"~\x.py"),
    ("c:/Users/jane/x.py", "~/x.py"),
    ("/root/run.py", "~/run.py"),
    ("file:///home/jane/a", "file://~/a"),
    ("/data/home/jane and /rooted/x and /root_x", "/data/home/jane and /rooted/x and /root_x"),
]


@pytest.mark.parametrize(("text", "short"), HOMES, ids=[text for text, _ in HOMES])
def test_home_folders_are_shortened_only_when_asked(text: str, short: str) -> None:
    line = f'  File "{text}", line 3'
    assert redact(line) == line
    assert redact(line, paths=True) == f'  File "{short}", line 3'


PIECES = (
    [text for text, _ in SECRETS]
    + [text for text, _ in HOMES]
    + ["=", ":", "@", "'", '"', " ", "-", "_", "hf_", "TOKEN"]
)


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=12)), max_size=12).map("".join), st.booleans())
def test_redacting_twice_changes_nothing_more(text: str, paths: bool) -> None:
    once = redact(text, paths)
    assert redact(once, paths) == once


HOSTILE = [
    "eyJ-",
    "eyJa.",
    "a@",
    "a.",
    "x@a.",
    "KEY",
    "TOKEN_",
    "A_",
    "://",
    "://a:",
    "token=",
    "-----BEGIN PRIVATE KEY-----",
    "sk-",
    "C:\\Users\\",
    "bearer ",
    "a",
    "_",
    "authorization:",
    "--token ",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_repetition_is_worked_off_in_one_go(unit: str) -> None:
    # Anything worse than linear would not come to an end at this length.
    once = redact(unit * (400_000 // len(unit)), paths=True)
    assert redact(once, paths=True) == once


def test_quotations_of_a_paste_hold_no_secrets() -> None:
    import kb
    from kb.redacted import redacted

    paste = (
        'Traceback (most recent call last):\n  File "/home/jane/train.py", line 3, in main\n    login()\n'
        f"RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16 (HF_TOKEN=hf_{BODY[:34]})\n"
    )
    answer = kb.match(paste)
    clean = redacted(answer, paths=True)
    assert clean.matches == answer.matches
    assert BODY[:34] not in str(clean)
    assert "/home/jane" not in str(clean)
    assert clean.query.incidents[0].user_frame is not None
    assert clean.query.incidents[0].user_frame.file == "~/train.py"


def test_what_a_well_kept_detector_knows_is_gone() -> None:
    """The rules of detect-secrets, on secrets of the shapes its own tests use."""
    from detect_secrets.core.scan import scan_line
    from detect_secrets.settings import transient_settings

    detectors = (
        "AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "DiscordBotTokenDetector",
        "GitHubTokenDetector", "GitLabTokenDetector", "JwtTokenDetector", "NpmDetector", "OpenAIDetector",
        "PrivateKeyDetector", "PypiTokenDetector", "SendGridDetector", "SlackDetector", "StripeDetector",
        "TelegramBotTokenDetector",
    )  # fmt: skip
    secrets = (
        "AKIA" + "1234567890ABCDEF", "AccountKey=" + "lJzRc1YdHaAA2KCNJJ1tkYwF/" * 3 + "A" * 11 + "==", "https://user:pass@host/x",
        "MTk4NjIyNDgzNDcxOTI1MjQ4" + ".Cl2FMQ." + "ZnCjm1XVW7vRze4b7Cq4se7kKWs", "ghp_" + "a1B2" * 9, "glpat-" + "a1B2" * 5,
        "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "npm_" + "a1" * 18, "pypi-AgEIcHlwaS5vcmc" + "A" * 70,
        "SG." + "a" * 22 + "." + "b" * 43, "xoxb-" + "1234-5678-abcdef", "sk_live_" + "a1" * 12,
        "110201543:AA" + "HdqTcvCH1vGWJxfSeofSAs0K5PALDsaw1", "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
    )  # fmt: skip
    with transient_settings({"plugins_used": [{"name": name} for name in detectors]}):
        for secret in secrets:
            left = [
                found.type
                for line in redact(secret).split("\n")
                for found in scan_line(line)
                if found.type != "Private Key"
            ]
            assert not left, (secret, left)
