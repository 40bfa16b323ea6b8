# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.46"]
# ///
"""TrainingArguments finds no accelerate, or one that is too old. The program trains a tiny BERT for one step.

For lack of an environment without it, the packages are linked into a folder, all but accelerate and what needs it, and
the program sees only that folder; installing is linking accelerate too. A fix passes if the loss is that of float64.
"""

import site
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.requires(transformers=">=4.46")

PROGRAM = """
import sys

sys.path = [folder for folder in sys.path if "site-packages" not in folder] + [FOLDER]

import importlib
import os


def install():
    for name in os.listdir(FOLDER):
        if name.startswith("accelerate"):
            os.unlink(os.path.join(FOLDER, name))
    for source in ACCELERATE:
        os.symlink(source, os.path.join(FOLDER, os.path.basename(source)))
    importlib.invalidate_caches()
"""
TRAIN = """
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments


def train():
    args = TrainingArguments(output_dir="out", max_steps=1, save_strategy="no", report_to=[], disable_tqdm=True)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForSequenceClassification(BertConfig(vocab_size=32, **shape, **no_dropout))
    rows = [{"input_ids": torch.arange(6) + number, "labels": number % 2} for number in range(4)]
    ids, labels = torch.stack([row["input_ids"] for row in rows]), torch.tensor([row["labels"] for row in rows])
    with torch.no_grad():
        wanted = torch.nn.functional.cross_entropy(model.double()(ids).logits, labels).item()
    loss = transformers.Trainer(model=model.float(), args=args, train_dataset=rows).train().training_loss
    print("losses", loss, wanted)
"""


@pytest.fixture(
    params=[
        pytest.param("hidden-package", marks=pytest.mark.requires(accelerate=">=1.1")),
        pytest.param("installed-meanwhile", marks=pytest.mark.requires(accelerate=">=1.1")),
        pytest.param("too-old", marks=pytest.mark.requires(accelerate="<0.26")),
    ]
)
def config(request):
    """No accelerate; none when transformers was imported, but now; a real old one, with a newer on `sys.path`."""
    return request.param


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"is not about {config}")


def accelerate_files(folders):
    """The package and its metadata, from the first folder that has it."""
    found = next(iter(metadata.distributions(name="accelerate", path=list(folders))))
    home = Path(str(found.locate_file("")))
    return [str(home / "accelerate"), *map(str, home.glob("accelerate-*-info"))]


def environment(config, folder):
    """A folder with links to all packages but accelerate and those that need it, or with the old accelerate."""
    folder.mkdir()
    paths = [path for source in sys.path if "site-packages" in source for path in Path(source).iterdir()]
    kept = [path for path in paths if not path.name.startswith(("accelerate", "peft", "trl"))]
    for path in [*kept, *map(Path, accelerate_files(sys.path) if config == "too-old" else [])]:
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    return folder


def newer_accelerate():
    """Files of a release that is new enough: another one on `sys.path` where the first is old."""
    for folder in [*sys.path, *site.getsitepackages()]:
        found = [d.version.split(".") for d in metadata.distributions(name="accelerate", path=[folder])]
        if found and tuple(map(int, found[0][:2])) >= (1, 1):
            return accelerate_files([folder])
    return pytest.skip("needs a second accelerate, 1.1 or newer, beside this one")


def program(folder, *parts):
    here = PROGRAM.replace("FOLDER", repr(str(folder))).replace("ACCELERATE", repr(newer_accelerate()))
    return "\n".join([here, *parts])


INSTALL_AND_RETRY = """
try:
    train()
except ImportError:
    install()
    AGAIN
    train()
"""


def retry(folder, again="pass"):
    """The cell runs, accelerate is installed, something may be tried, the cell runs again."""
    return program(environment("installed-meanwhile", folder), TRAIN, INSTALL_AND_RETRY.replace("AGAIN", again))


def losses(printed):
    return [float(number) for number in printed.rpartition("losses ")[2].split()[:2]]


@pytest.mark.reproduces
def test_reproduces(config, run_script, tmp_path):
    if config == "installed-meanwhile":
        run_script(retry(tmp_path / "site-packages"))
    run_script(program(environment(config, tmp_path / "site-packages"), TRAIN, "train()"))


@pytest.mark.workaround("install")
def test_install(config, measure, run_script, tmp_path):
    only_for(config, "hidden-package", "too-old")
    folder = environment(config, tmp_path / "site-packages")
    run_script(program(folder, "install()"))
    measure.compare(*losses(run_script(program(folder, TRAIN, "train()"))), tolerance=1e-4)


@pytest.mark.workaround("restart-kernel")
def test_restart_kernel(config, measure, run_script, tmp_path):
    only_for(config, "installed-meanwhile")
    folder = environment(config, tmp_path / "site-packages")
    run_script(program(folder, TRAIN, "try:\n    train()\nexcept ImportError:\n    install()"))
    measure.compare(*losses(run_script(program(folder, TRAIN, "train()"))), tolerance=1e-4)


@pytest.mark.dead_end("install-without-restart")
def test_install_without_restart(config, run_script, tmp_path):
    only_for(config, "hidden-package")
    run_script(retry(tmp_path / "site-packages"))


@pytest.mark.dead_end("import-accelerate")
def test_import_accelerate(config, run_script, tmp_path):
    only_for(config, "installed-meanwhile")
    run_script(retry(tmp_path / "site-packages", "import accelerate; print(accelerate.__version__)"))


@pytest.mark.dead_end("reload-transformers")
def test_reload_transformers(config, run_script, tmp_path):
    only_for(config, "installed-meanwhile")
    run_script(retry(tmp_path / "site-packages", "importlib.reload(transformers)"))
