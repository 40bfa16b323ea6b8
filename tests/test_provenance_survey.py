"""Which releases are looked at, and what the looks say together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from kb.errors import UsageError
from kb.models.entry import AuthoredEntry
from kb.models.provenance import Look, Provenance, Search
from kb.provenance.question import Question, constant_part, ordered, pick, questions
from kb.provenance.summary import standing, summary, version_rows
from kb.provenance.survey import Choice, survey
from tests.conftest import entry
from tests.wheels import Content, Folder, wheel

LITERAL = "the frobnicator jammed because nobody oiled it"
ASKED = Question("demo", "", LITERAL)
WITH: dict[str, Content] = {"demo/a.txt": LITERAL}
WITHOUT: dict[str, Content] = {"demo/a.txt": "nothing"}


def authored(**changes: Any) -> AuthoredEntry:
    return AuthoredEntry.model_validate(entry(**changes), strict=False)


def look(version: str, stands: bool | None, platform: str = "any", previous: str | None = None) -> Look:
    return Look(
        version=version,
        previous=previous,
        platform=platform,
        wheel="demo.whl" if stands is not None else None,
        sha256="0" * 64 if stands is not None else None,
        size=1,
        stands=stands,
        files=1 if stands else 0,
        places=(),
        reason=None if stands is not None else "no wheel",
    )


def test_an_entry_asks_for_its_literals_in_their_distributions() -> None:
    raised_by = [
        {"package": "Demo.Kit", "versions": ">=2", "literal": LITERAL},
        {"package": "demo-kit", "literal": LITERAL},
        {"package": "other", "literal": "another text"},
    ]
    assert questions(authored(raised_by=raised_by)) == (
        Question("demo-kit", ">=2", LITERAL),
        Question("other", "", "another text"),
    )


def test_further_distributions_are_asked_for_every_literal() -> None:
    raised_by = [{"package": "demo", "literal": LITERAL}]
    assert questions(authored(raised_by=raised_by), ["more"])[-1] == Question("more", "", LITERAL)


def test_a_claim_without_a_literal_is_looked_for_by_its_signature() -> None:
    signature = "ValueError: You passed `mode=4` but its torch.float16 cannot be oiled with 12 drops"
    refuted = authored(signature=signature, versions=[{"version": "demo 1.2"}, {"version": "torch 2.0"}])
    part = "cannot be oiled with"
    assert [(one.package, one.literal, one.origin) for one in questions(refuted)] == [
        ("demo", part, "signature"),
        ("torch", part, "signature"),
    ]


@pytest.mark.parametrize(
    ("signature", "part"),
    [
        (
            "RuntimeError: expected mat1 and mat2 to have the same dtype, but got: float != c10::BFloat16",
            "to have the same dtype, but got",
        ),
        ("cannot open '/data/x 1' for reading, it isn't there", "for reading, it isn't there"),
        ("KeyError: 'weight'", ""),
        ("E: 17", ""),
    ],
)
def test_the_constant_part_leaves_out_what_changes(signature: str, part: str) -> None:
    assert constant_part(signature) == part


@pytest.mark.parametrize("name", ["-e", "git+https://example.org/x", "demo==1", "demo @ file:///x", "a b", "--help"])
def test_only_names_reach_pip(name: str) -> None:
    with pytest.raises(UsageError):
        questions(authored(raised_by=[{"package": name, "literal": LITERAL}]))


def test_the_range_its_neighbours_and_an_even_spread_are_picked() -> None:
    releases = [f"{major}.{minor}.{patch}" for major in (1, 2, 3) for minor in range(10) for patch in range(3)]
    chosen = pick(releases, ">=2,<3", 8)
    assert len(chosen) == 8
    assert {"1.9.2", "2.0.0", "2.9.2", "3.0.0"} <= set(chosen)
    assert len({version.rpartition(".")[0] for version in chosen}) == 8


def test_pre_releases_local_builds_and_nonsense_are_no_releases() -> None:
    assert ordered(["2.0", "1.10.0", "1.9.0", "2.1rc1", "2.0+cpu", "2.1.dev3", "old"]) == ("1.9.0", "1.10.0", "2.0")


RELEASES = st.lists(
    st.builds(lambda a, b, c: f"{a}.{b}.{c}", *[st.integers(0, 5)] * 3), min_size=1, max_size=40, unique=True
)


@settings(deadline=None)
@given(RELEASES, st.sampled_from(["", ">=2.0", "<3", ">=1.2,<2.1", ">=99"]), st.integers(1, 12))
def test_picked_releases_exist_are_few_and_hold_the_newest_of_the_range(
    releases: list[str], versions: str, count: int
) -> None:
    chosen = pick(releases, versions, count)
    assert len(chosen) == len(set(chosen)) <= count
    assert set(chosen) <= set(releases)
    assert list(chosen) == sorted(chosen, key=Version)
    inside = [release for release in releases if Version(release) in SpecifierSet(versions)] or releases
    assert max(inside, key=Version) in chosen
    if count > 1:
        assert min(inside, key=Version) in chosen


def test_each_release_says_whether_the_literal_stands(tmp_path: Path) -> None:
    for version, files in {"1.0": WITHOUT, "1.1": WITH, "1.2": WITH, "1.3": WITHOUT}.items():
        wheel(tmp_path, "demo", version, files)
    (search,) = survey("demo", [ASKED], Folder(tmp_path), Choice()).values()
    assert [(one.version, one.stands, one.previous) for one in search.looks] == [
        ("1.0", False, None),
        ("1.1", True, "1.0"),
        ("1.2", True, "1.1"),
        ("1.3", False, "1.2"),
    ]
    assert search.looks[1].wheel == "demo-1.1-py3-none-any.whl"
    assert search.looks[1].places[0].file == "demo/a.txt"
    assert len(search.looks[1].sha256 or "") == 64
    found = standing("demo", LITERAL, search.looks)
    assert found.introduced and (found.introduced.version, found.introduced.exact) == ("1.1", True)
    assert found.removed and (found.removed.version, found.removed.neighbour) == ("1.3", "1.2")


def test_larger_wheels_are_only_fetched_where_the_small_one_lacks_it(tmp_path: Path) -> None:
    wheel(tmp_path, "demo", "1.0", WITHOUT, "macos-arm64")
    wheel(tmp_path, "demo", "1.0", WITH, "linux-x86_64")
    wheel(tmp_path, "demo", "2.0", WITH, "macos-arm64")
    wheel(tmp_path, "demo", "2.0", WITH, "linux-x86_64")
    shelf = Folder(tmp_path)
    (search,) = survey("demo", [ASKED], shelf, Choice()).values()
    assert shelf.fetched == [("1.0", "macos-arm64"), ("1.0", "linux-x86_64"), ("2.0", "macos-arm64")]
    assert [(one.version, one.platform, one.stands) for one in search.looks] == [
        ("1.0", "linux-x86_64", True),
        ("1.0", "macos-arm64", False),
        ("2.0", "macos-arm64", True),
    ]


def test_a_wheel_over_the_limit_is_said_with_its_size_and_leaves_the_answer_open(tmp_path: Path) -> None:
    wheel(tmp_path, "demo", "1.0", WITHOUT, "macos-arm64")
    big = wheel(tmp_path, "demo", "1.0", {"demo/a.so": bytes(5000)}, "linux-x86_64", compression=0)
    (search,) = survey("demo", [ASKED], Folder(tmp_path), Choice(limit=2000)).values()
    large = next(one for one in search.looks if one.platform == "linux-x86_64")
    assert (large.stands, large.wheel, large.size) == (None, None, big.stat().st_size)
    assert "too large" in (large.reason or "")
    found = standing("demo", LITERAL, search.looks)
    assert (found.unknown, found.nowhere) == (("1.0",), False)


def test_a_release_without_a_wheel_says_so(tmp_path: Path) -> None:
    wheel(tmp_path, "demo", "1.0", WITH)
    (search,) = survey("demo", [ASKED], Folder(tmp_path), Choice(named=("0.9", "1.0"))).values()
    assert [(one.version, one.stands, one.reason) for one in search.looks] == [
        ("0.9", None, "no wheel"),
        ("1.0", True, None),
    ]


def test_a_wheel_that_cannot_be_read_whole_proves_no_absence(tmp_path: Path) -> None:
    broken = wheel(tmp_path, "demo", "1.0", {"demo/a.txt": "x" * 500}, compression=0)
    broken.write_bytes(broken.read_bytes().replace(b"xxxx", b"xyxx", 1))
    (tmp_path / "demo-2.0-py3-none-any.whl").write_text("404")
    (search,) = survey("demo", [ASKED], Folder(tmp_path), Choice()).values()
    assert [one.stands for one in search.looks] == [None, None]
    assert all(one.reason and one.sha256 for one in search.looks)


def test_one_pass_answers_every_literal_of_a_distribution(tmp_path: Path) -> None:
    wheel(tmp_path, "demo", "1.0", WITH)
    shelf = Folder(tmp_path)
    other = Question("demo", "", "another text altogether")
    answers = survey("demo", [ASKED, other], shelf, Choice())
    assert shelf.fetched == [("1.0", "any")]
    assert [answers[one].looks[0].stands for one in (ASKED, other)] == [True, False]


@settings(deadline=None, max_examples=20)
@given(first=st.integers(1, 39), last=st.integers(1, 39))
def test_the_very_releases_are_found_in_few_looks(
    tmp_path_factory: pytest.TempPathFactory, first: int, last: int
) -> None:
    first, last = sorted((first, last))
    folder = tmp_path_factory.mktemp("wheels")
    for minor in range(41):
        wheel(folder, "demo", f"1.{minor}", WITH if first <= minor <= last else WITHOUT)
    shelf = Folder(folder)
    middle = f"1.{(first + last) // 2}"
    (search,) = survey("demo", [ASKED], shelf, Choice(named=("1.0", middle, "1.40"), pinpoint=True)).values()
    found = standing("demo", LITERAL, search.looks)
    assert found.introduced and (found.introduced.version, found.introduced.exact) == (f"1.{first}", True)
    assert found.removed and (found.removed.version, found.removed.exact) == (f"1.{last + 1}", True)
    assert len(shelf.fetched) <= 16


def test_absence_on_a_platform_that_never_has_it_means_nothing() -> None:
    found = standing(
        "demo",
        LITERAL,
        [look("1.0", False, "macos-arm64"), look("2.0", True, "linux-x86_64"), look("3.0", False, "linux-x86_64")],
    )
    assert (found.unknown, found.stands, found.lacks) == (("1.0",), ("2.0",), ("3.0",))
    assert found.introduced is None
    assert found.removed and found.removed.neighbour == "2.0"


def test_absence_where_others_have_it_counts_whatever_else_was_not_looked_at() -> None:
    found = standing(
        "demo",
        LITERAL,
        [look("1.0", False, "macos-arm64"), look("1.0", None, "linux-x86_64"), look("2.0", True, "macos-arm64")],
    )
    assert found.introduced and found.introduced.neighbour == "1.0"
    assert (found.introduced.platform, found.introduced.unseen) == ("macos-arm64", ("linux-x86_64",))


def record(made_at: str, *looks: Look, literal: str = LITERAL) -> Provenance:
    search = Search(package="demo", versions="", literal=literal, origin="raised_by", looks=looks)
    return Provenance(schema_version=1, entry="demo/x", made_at=made_at, kb_version="0.1", searches=(search,))


def test_records_add_up_and_an_unanswered_look_takes_nothing_back() -> None:
    older = record("2026-01-01T00:00:00Z", look("1.0", False), look("2.0", True))
    newer = record("2026-02-01T00:00:00Z", look("2.0", None), look("3.0", True, previous="2.0"))
    (found,) = summary([newer, older])
    assert (found.lacks, found.stands, found.looked) == (("1.0",), ("2.0", "3.0"), 3)
    assert (found.first, found.last) == ("2.0", "3.0")
    assert found.introduced and not found.introduced.exact


def test_a_literal_the_entry_no_longer_claims_is_left_out() -> None:
    records = [
        record("2026-01-01T00:00:00Z", look("1.0", True)),
        record("2026-01-02T00:00:00Z", look("1.0", True), literal="old text"),
    ]
    now = authored(raised_by=[{"package": "demo", "literal": LITERAL}])
    assert len(summary(records)) == 2
    assert [one.literal for one in summary(records, now)] == [LITERAL]


def test_an_entry_that_names_nonsense_still_has_its_summary() -> None:
    raised_by = [{"package": "no name!", "versions": "newest", "literal": LITERAL}]
    found = summary([record("2026-01-01T00:00:00Z", look("1.0", True))], authored(raised_by=raised_by))
    assert [one.stands for one in found] == [("1.0",)]


def test_what_a_claim_without_a_literal_was_looked_for_stays_in_its_summary() -> None:
    signature = f"ValueError: {LITERAL}"
    found = summary([record("2026-01-01T00:00:00Z", look("1.0", False))], authored(signature=signature))
    assert [one.nowhere for one in found] == [True]


def test_rows_for_a_record_tell_what_came_and_went() -> None:
    looks = [look("1.0", False), look("1.1", True, previous="1.0"), look("1.2", False, previous="1.1")]
    rows = version_rows([standing("demo", LITERAL, looks)])
    assert [row.version for row in rows] == ["demo 1.1", "demo 1.2"]
    assert "1.0 is the last release" in (rows[0].introduced or "")
    assert "1.1 is the last release" in (rows[1].removed or "")
