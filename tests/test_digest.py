"""Digests change exactly when what would run changes."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.digest import arm_digests, file_sha256

SCRIPT = '''\
"""A script."""
import os
import pytest
import torch
from torch.nn import functional as F, Linear

pytestmark = pytest.mark.requires(torch=">=2.1")
WIDTH = 64
DTYPES = {"a": WIDTH, "b": 2}
UNUSED = 1


class Block:
    """A block."""
    size = WIDTH

    def forward(self, x):
        # a comment
        return F.silu(build(x))


def build(x):
    """Builds."""
    return Linear(x, x)


def other():
    return os.getpid()


@pytest.fixture(params=["one", "two"])
def config(request):
    return DTYPES[request.param]


@pytest.fixture(name="model")
def make_model(config):
    return Block()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.reproduces
def test_reproduces(model):
    model.forward(1)


@pytest.mark.workaround("build")
def test_build(config):
    build(config)


@pytest.mark.dead_end("other")
def test_other():
    other()


class TestGroup:
    limit = 1

    def test_inside(self):
        other()

    def test_beside(self):
        build(1)
'''
ALL = set(arm_digests(SCRIPT))
REACHED = [
    # (text, its replacement, arms that reach it)
    ("Linear(x, x)", "Linear(x, x + 1)", {"test_reproduces", "test_build", "TestGroup.test_beside"}),
    ("return os.getpid()", "return 1", {"test_other", "TestGroup.test_inside"}),
    ("WIDTH = 64", "WIDTH = 65", {"test_reproduces", "test_build"}),
    ("UNUSED = 1", "UNUSED = 2", set()),
    ("model.forward(1)", "model.forward(2)", {"test_reproduces"}),
    ('"one", "two"', '"one", "three"', {"test_reproduces", "test_build"}),
    ("    size = WIDTH", "    size = 3", {"test_reproduces"}),
    ("torch.manual_seed(0)", "torch.manual_seed(1)", ALL),
    ('torch=">=2.1"', 'torch=">=2.2"', ALL),
    ('workaround("build")', 'workaround("built")', {"test_build"}),
    ("functional as F", "functional2 as F", {"test_reproduces"}),
    ("import os", "import posix as os", {"test_other", "TestGroup.test_inside"}),
    ("    limit = 1", "    limit = 2", {"TestGroup.test_inside", "TestGroup.test_beside"}),
]


def changed(before: str, after: str) -> set[str]:
    first, second = arm_digests(before), arm_digests(after)
    assert first.keys() == second.keys()
    return {name for name in first if first[name] != second[name]}


@pytest.mark.parametrize(("old", "new", "arms"), REACHED, ids=[old for old, _, _ in REACHED])
def test_a_change_reaches_exactly_the_arms_that_use_it(old: str, new: str, arms: set[str]) -> None:
    assert SCRIPT.count(old) == 1
    assert changed(SCRIPT, SCRIPT.replace(old, new)) == arms


def test_arms_are_named_by_function_and_class() -> None:
    arms = {"test_reproduces", "test_build", "test_other", "TestGroup.test_inside", "TestGroup.test_beside"}
    assert arms == ALL


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    # a comment\n", ""),
        ('    """Builds."""\n', '    """Builds a layer, in other words."""\n'),
        ('    """Builds."""\n', ""),
        ('"""A script."""\n', ""),
        ("WIDTH = 64", "WIDTH = (\n    0x40\n)"),
        ('{"a": WIDTH, "b": 2}', "{u'a': WIDTH,\n    'b': 2,\n}"),
        ("import os\nimport pytest\n", "import pytest\nimport os\n"),
        ("functional as F, Linear", "Linear, functional as F"),
        ("import pytest\n", "import pytest\nimport math\n"),
        ("F, Linear", "F, Linear, Conv1d"),
    ],
)
def test_what_runs_the_same_keeps_the_digest(old: str, new: str) -> None:
    assert SCRIPT.count(old) == 1
    assert changed(SCRIPT, SCRIPT.replace(old, new)) == set()


def test_reformatting_keeps_the_digest() -> None:
    assert changed(SCRIPT, ast.unparse(ast.parse(SCRIPT))) == set()


def test_order_of_definitions_does_not_matter_but_order_of_effects_does() -> None:
    tree = ast.parse(SCRIPT)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    others = [node for node in tree.body if node not in functions]
    moved = ast.unparse(ast.Module(body=[*others, *reversed(functions)], type_ignores=[]))
    assert changed(SCRIPT, moved) == set()
    effects = "import a\na.first()\na.second()\ndef test_x(): pass\n"
    assert changed(effects, "import a\na.second()\na.first()\ndef test_x(): pass\n") == {"test_x"}


def test_effects_on_import_count_for_every_arm() -> None:
    source = "import os\n{}\ndef test_x(): pass\n"
    for effect in ('os.environ["A"] = "1"', "os.chdir('x')", "if os.name:\n    os.a = 1", "from os import *"):
        assert changed(source.format(""), source.format(effect)) == {"test_x"}
    for harmless in (
        "OTHER = 1",
        'if __name__ == "__main__":\n    os.abort()',
        "try:\n    import x\nexcept E:\n    x = 1",
    ):
        assert changed(source.format(""), source.format(harmless)) == set()


def test_fixtures_are_reached_through_names_in_texts() -> None:
    source = (
        "import pytest\n@pytest.fixture\ndef patched(): return {}\n"
        "@pytest.mark.usefixtures('patched')\ndef test_x(): 1\n"
    )
    assert changed(source.format(1), source.format(2)) == {"test_x"}


def test_conditional_definitions_are_reached() -> None:
    source = "try:\n    import a\nexcept ImportError:\n    a = {}\ndef test_x(): a\ndef test_y(): 1\n"
    assert changed(source.format("None"), source.format("1")) == {"test_x"}


def test_the_digest_is_the_same_under_every_python() -> None:
    # A fixed value: `ast.dump`, for one, prints other text from one release to the next.
    assert arm_digests("def test_x(a, *, b=1):\n    return [a, None, f'{b!r:>3}']\n") == {
        "test_x": "ff052addbb4f72bcc1c5e1bd6b9133331d7470dc10865ef7e01ea1c1971b5100"
    }


def test_a_script_that_does_not_parse_is_refused() -> None:
    with pytest.raises(SyntaxError):
        arm_digests("def test_x(:")


NAMES = ["alpha", "beta", "gamma", "delta", "epsilon"]


@given(
    calls=st.lists(st.sets(st.sampled_from(NAMES)), min_size=len(NAMES), max_size=len(NAMES)),
    roots=st.sets(st.sampled_from(NAMES)),
    edited=st.sampled_from(NAMES),
)
def test_an_edit_changes_an_arm_if_and_only_if_the_arm_reaches_it(
    calls: list[set[str]], roots: set[str], edited: str
) -> None:
    graph = dict(zip(NAMES, calls, strict=True))

    def script(value: int) -> str:
        builders = [
            f"def {name}():\n    return [{value if name == edited else 0}, {', '.join(sorted(graph[name]))}]"
            for name in NAMES
        ]
        arm = "\n    ".join(["def test_arm():", *(f"{name}()" for name in sorted(roots)), "pass"])
        return "\n".join([*builders, arm, ""])

    reached, waiting = set(), list(roots)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(graph[name])
    assert bool(changed(script(0), script(1))) == (edited in reached)


def test_file_digest_is_over_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "verify.py"
    path.write_bytes(b"x = 1\r\n")
    assert file_sha256(path) == hashlib.sha256(b"x = 1\r\n").hexdigest()
