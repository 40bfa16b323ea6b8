# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=5", "tokenizers"]
# ///
"""Checkpoints whose tokenizer has to be converted first, in an environment without the packages for it.

`sentencepiece-file` is a T5 folder with a small spiece.model, `tiktoken-file` a Llama folder with a list of base64
tokens as tokenizer.model, `no-tokenizer-files` holds config.json alone. The program runs in a process that takes its
packages from a folder of links to the installed ones, without sentencepiece, protobuf and tiktoken; arms that install
one of them add its links, and need it to be there (`kb verify --with sentencepiece --with protobuf --with tiktoken`).
"""

from __future__ import annotations

import base64
import json
import struct
import sys
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

pytestmark = pytest.mark.requires(transformers=">=5", os=("linux", "macos"))

PACKAGES = {
    "sentencepiece": ("sentencepiece", "_sentencepiece"),
    "protobuf": ("protobuf", "google"),
    "tiktoken": ("tiktoken",),
}
TEXT = "the report was late"
PIECES = ["<pad>", "</s>", "<unk>", "▁the", "▁report", "▁was", "▁late", *"abcdefghijklmnopqrstuvwxyz▁"]
BYTES = [bytes([value]) for value in range(256)] + [b"th", b"the", b" the"]
EXPECTED = {
    "sentencepiece-file": [PIECES.index(piece) for piece in ("▁the", "▁report", "▁was", "▁late", "</s>")],
    "tiktoken-file": [BYTES.index(b"the"), *(BYTES.index(bytes([value])) for value in b" report was late")],
}
EXPECTED["no-tokenizer-files"] = EXPECTED["sentencepiece-file"]


@pytest.fixture(params=list(EXPECTED))
def config(request):
    return request.param


def message(number: int, payload: bytes) -> bytes:
    """One length-delimited field of a protobuf message."""
    return bytes([number << 3 | 2, len(payload)]) + payload


def sentencepiece_model() -> bytes:
    """A unigram model with these pieces, as sentencepiece stores it."""
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    stored = b""
    for index, piece in enumerate(PIECES):
        score = b"\x15" + struct.pack("<f", -float(index))
        stored += message(1, message(1, piece.encode()) + score + bytes([0x18, kinds.get(piece, 1)]))
    return stored + message(2, b"\x18\x01\xc0\x02\x02") + message(3, message(1, b"identity"))


@pytest.fixture
def checkpoint(config, tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "t5" if config == "sentencepiece-file" else "llama"}))
    if config == "sentencepiece-file":
        (folder / "spiece.model").write_bytes(sentencepiece_model())
    elif config == "tiktoken-file":
        lines = (f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(BYTES))
        (folder / "tokenizer.model").write_text("\n".join(lines))
    return folder


def base_model(config: str, folder: Path) -> Path:
    """A folder with the same vocabulary as tokenizer.json, such as that of the base model."""
    if config == "tiktoken-file":
        letters = bytes_to_unicode()
        vocabulary = {"".join(letters[value] for value in token): rank for rank, token in enumerate(BYTES)}
        merges = [("t", "h"), ("th", "e"), (letters[ord(" ")], "the")]
        words = Tokenizer(models.BPE(vocabulary, merges))
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    else:
        scores = [(piece, -float(index)) for index, piece in enumerate(PIECES)]
        tokenizer = transformers.T5Tokenizer(vocab=scores, extra_ids=0)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def environment(tmp_path):
    """The package folder of the program's interpreter."""
    folder = tmp_path / "environment"
    folder.mkdir()
    absent = tuple(name for names in PACKAGES.values() for name in names)
    link(folder, lambda name: not name.startswith(absent))
    return folder


def install(folder: Path, *packages: str) -> None:
    names = tuple(name for package in packages for name in PACKAGES[package])
    link(folder, lambda name: name.startswith(names))


def link(folder: Path, wanted) -> None:
    for path in sys.path:
        # What lies in an earlier folder hides its other releases in later ones.
        hidden = {item.name.partition("-")[0] for item in folder.iterdir()}
        for item in Path(path).iterdir() if path.endswith("-packages") else ():
            if wanted(item.name) and item.name.partition("-")[0] not in hidden:
                (folder / item.name).symlink_to(item)


TOKENIZE = """
import json, os, sys
sys.path[:] = [path for path in sys.path if not path.endswith("-packages")] + [os.environ["ENVIRONMENT"]]
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(os.environ["CHECKPOINT"], **json.loads(os.environ["OPTIONS"]))
print("ids", tokenizer(os.environ["TEXT"]).input_ids)
"""


@pytest.fixture
def run(run_script, environment, checkpoint):
    def run(**options):
        places = {"ENVIRONMENT": str(environment), "CHECKPOINT": str(checkpoint)}
        printed = run_script(TOKENIZE, env=places | {"TEXT": TEXT, "OPTIONS": json.dumps(options)})
        line = next(line for line in printed.splitlines() if line.startswith("ids "))
        return json.loads(line.removeprefix("ids "))

    return run


@pytest.mark.reproduces
def test_reproduces(run):
    run()


@pytest.mark.workaround("install-sentencepiece")
@pytest.mark.requires(sentencepiece=">=0.1.99", protobuf=">=3.20")
def test_install_sentencepiece(config, environment, run):
    if config != "sentencepiece-file":
        pytest.skip("there is no sentencepiece file")
    install(environment, "sentencepiece", "protobuf")
    assert run() == EXPECTED[config]


@pytest.mark.workaround("install-tiktoken")
@pytest.mark.requires(tiktoken=">=0.7")
def test_install_tiktoken(config, environment, run):
    if config != "tiktoken-file":
        pytest.skip("there is no tiktoken file")
    install(environment, "tiktoken")
    assert run() == EXPECTED[config]


@pytest.mark.workaround("copy-tokenizer")
def test_copy_tokenizer(config, checkpoint, run, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_model(config, tmp_path / "base"))
    tokenizer.save_pretrained(checkpoint)
    assert run() == EXPECTED[config]


@pytest.mark.dead_end("use-slow")
def test_use_slow(run):
    run(use_fast=False)


@pytest.mark.dead_end("tiktoken-as-the-message-says")
@pytest.mark.requires(tiktoken=">=0.7")
def test_tiktoken_as_the_message_says(config, environment, run):
    if config != "sentencepiece-file":
        pytest.skip("the message is right, or another one")
    install(environment, "tiktoken")
    run()


@pytest.mark.dead_end("sentencepiece-without-protobuf")
@pytest.mark.requires(sentencepiece=">=0.1.99")
def test_sentencepiece_without_protobuf(config, environment, run):
    if config != "sentencepiece-file":
        pytest.skip("there is no sentencepiece file")
    install(environment, "sentencepiece")
    run()


@pytest.mark.dead_end("install-for-an-empty-folder")
@pytest.mark.requires(sentencepiece=">=0.1.99", protobuf=">=3.20", tiktoken=">=0.7")
def test_install_for_an_empty_folder(config, environment, run):
    if config != "no-tokenizer-files":
        pytest.skip("the folder has a tokenizer file")
    install(environment, *PACKAGES)
    run()
