"""What the `run.py` of a bundle does: run the bundled scripts, print what happens, leave evidence files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from kb.errors import KbError
from kb.verify import runner
from kb.verify.lines import trial_line
from kb.verify.runner import Progress, Report


def main(home: Path, arguments: Sequence[str]) -> int:
    """Run the entries below `home/entries`; the exit code of `kb verify`."""
    options = _parser(home).parse_args(arguments)
    scripts = sorted((home / "entries").glob("*/*/verify.py"))
    wanted = set(options.entries)
    entries = [script.parent for script in scripts if not wanted or "/".join(script.parts[-3:-1]) in wanted]
    if unknown := wanted - {"/".join(entry.parts[-2:]) for entry in entries}:
        print(f"not in this bundle: {', '.join(sorted(unknown))}")
        return 2
    try:
        report = runner.run(
            entries,
            device=options.device,
            cases=options.case,
            timeout=options.timeout,
            jobs=options.jobs,
            cost=not options.no_cost,
            evidence=options.results,
            contributed_by=options.contributor,
            on_trial=_print_trial,
        )
    except KbError as error:
        print(error)
        return error.exit_code
    _print_report(report)
    return report.exit_code


def _parser(home: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description="Run the verification scripts of this bundle.")
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help="entries to run, for example pytorch/some-error")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--case", action="append", default=[], help="a workaround, dead end, test or configuration")
    parser.add_argument("--jobs", type=int, default=1, help="arms side by side; those that measure cost run alone")
    parser.add_argument("--no-cost", action="store_true", help="measure no time and memory, so that none runs alone")
    parser.add_argument("--timeout", type=float, help="seconds that no arm may exceed")
    parser.add_argument("--results", type=Path, default=home / "results", help="folder for evidence files")
    parser.add_argument("--contributor", help="who runs this, if not a maintainer")
    return parser


def _print_trial(progress: Progress) -> None:
    line = trial_line(progress.trial, progress.node.control_arm)
    more = "+" if progress.scripts_left else ""
    print(f"{progress.done}/{progress.known}{more}  {line[:2]}{progress.node.entry}  {line[2:]}", flush=True)


def _print_report(report: Report) -> None:
    print()
    for one in report.runs:
        against = len(one.contradictions())
        skipped = sum(trial["outcome"] == "skipped" for trial in one.trials)
        print(f"{one.entry}: {len(one.trials)} arms, {skipped} skipped, {against} against the entry")
        if one.problem:
            print(f"  {'skipped' if one.problem.skipped else 'broken'}: {one.problem.reason}")
        if one.evidence:
            print(f"  {one.evidence}")
    print(f"{report.seconds:.0f} s{', interrupted' if report.interrupted else ''}")
