# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "datasets>=4"]
# ///
"""A data set that is defined by a Python script.

`own-script` passes the path of such a script, `cloned-repository` a folder laid out like a script data set of the Hub:
a script of the folder's name with its data beside it. The script is one that datasets 3 runs; it renames a column and
drops rows without an answer. A fix is right if it gives those rows.
"""

import json
import textwrap
from pathlib import Path

import datasets
import pytest

pytestmark = pytest.mark.requires(datasets=">=4")

RAW = [
    {"q": "Which way is up?", "a": "Away from the ground."},
    {"q": "Why?", "a": ""},
    {"q": "How many?", "a": "Seven."},
]
ROWS = [{"question": row["q"], "a": row["a"]} for row in RAW if row["a"]]
SCRIPT = """
    import json

    import datasets


    class Questions(datasets.GeneratorBasedBuilder):
        def _info(self):
            text = datasets.Value("string")
            return datasets.DatasetInfo(features=datasets.Features({"question": text, "a": text}))

        def _split_generators(self, manager):
            path = manager.download_and_extract("data/train.jsonl")
            return [datasets.SplitGenerator(name="train", gen_kwargs={"path": path})]

        def _generate_examples(self, path):
            with open(path) as lines:
                for number, row in enumerate(map(json.loads, lines)):
                    if row["a"]:
                        yield number, {"question": row["q"], "a": row["a"]}
"""


@pytest.fixture(params=["own-script", "cloned-repository"])
def config(request):
    return request.param


def repository(folder):
    """A folder like a repository of the Hub: `questions/questions.py` and `questions/data/train.jsonl`."""
    target = folder / "questions"
    (target / "data").mkdir(parents=True)
    (target / "questions.py").write_text(textwrap.dedent(SCRIPT))
    (target / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RAW))
    return target


def argument(config, folder):
    target = repository(folder)
    return str(target / "questions.py" if config == "own-script" else target)


def load(path, folder, **settings):
    return datasets.load_dataset(path, split="train", cache_dir=str(folder / "cache"), **settings)


def tidy(table):
    """What the script does to the rows, as two calls."""
    return table.filter(lambda row: bool(row["a"])).rename_column("q", "question")


def raw_rows(path):
    """What the script's `_generate_examples` yields, as a plain generator."""
    for line in Path(path).read_text().splitlines():
        row = json.loads(line)
        if row["a"]:
            yield {"question": row["q"], "a": row["a"]}


@pytest.mark.reproduces
def test_reproduces(config, measure, tmp_path):
    path = argument(config, tmp_path)
    try:
        load(path, tmp_path)
    finally:
        files = str(tmp_path / "questions" / "data" / "train.jsonl")
        measure.recovers(lambda: len(load("json", tmp_path, data_files=files)) == len(RAW))


@pytest.mark.workaround("files-directly")
def test_files_directly(config, tmp_path):
    argument(config, tmp_path)
    table = load("json", tmp_path, data_files={"train": str(tmp_path / "questions" / "data" / "train.jsonl")})
    assert tidy(table).to_list() == ROWS


@pytest.mark.workaround("generator-to-parquet")
def test_generator_to_parquet(config, tmp_path):
    argument(config, tmp_path)
    path, cache = str(tmp_path / "questions" / "data" / "train.jsonl"), str(tmp_path / "cache")
    table = datasets.Dataset.from_generator(raw_rows, gen_kwargs={"path": path}, cache_dir=cache)
    table.to_parquet(tmp_path / "converted" / "train.parquet")
    assert load(str(tmp_path / "converted"), tmp_path).to_list() == ROWS


@pytest.mark.workaround("remove-the-script")
def test_remove_the_script(config, tmp_path):
    if config == "own-script":
        pytest.skip("the script itself is what is passed here")
    path = argument(config, tmp_path)
    (tmp_path / "questions" / "questions.py").unlink()
    assert tidy(load(path, tmp_path)).to_list() == ROWS


@pytest.mark.dead_end("trust-remote-code")
def test_trust_remote_code(config, tmp_path):
    load(argument(config, tmp_path), tmp_path, trust_remote_code=True)


@pytest.mark.dead_end("streaming")
def test_streaming(config, tmp_path):
    load(argument(config, tmp_path), tmp_path, streaming=True)


@pytest.mark.dead_end("data-files-for-the-script")
def test_data_files_for_the_script(config, tmp_path):
    path = argument(config, tmp_path)
    load(path, tmp_path, data_files={"train": str(tmp_path / "questions" / "data" / "train.jsonl")})


@pytest.mark.dead_end("clone-and-load-the-folder")
def test_clone_and_load_the_folder(config, tmp_path):
    load(str(repository(tmp_path)), tmp_path, download_mode="force_redownload")
