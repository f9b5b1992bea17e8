"""`tools/test`: checks, tests without Xen, and tests on real Xen in the lab, one variant after the other.

On real Xen, pytest runs in the lab's dom0, on the checkout that `push` brought there. On a pair of hosts it runs
here, with the checkout in both dom0s: a host that a test switches off cannot run that test. How long all that takes
depends much on the machine: with `--minutes` it ends in time, and names the tests that were not reached. With
`--all-within` such tests are a failure. The last lines count the tests of each Xen.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from xenlab import environment, package, ssh
from xenlab.errors import Interrupted, LabError, raise_on_signals, say
from xenlab.machine import CHECKOUT, Machine
from xenlab.pair import Pair, variants_of

OK, FAILED, INTERRUPTED = 0, 1, 130

FIRST_ROWS = {
    "4.17": ["tests/xen/test_first_row.py"],
    "4.17-shadow": ["tests/xen/test_shadow.py"],
    "4.20": ["tests/xen/test_first_row.py"],
}
"""What runs on real Xen with --quick: the first row of the support table, on every variant."""

ELSEWHERE = (
    "2vcpu",
    "bare",
    "restores_our_image[pv]",
    "of_stock_xl[pvh]",
    "digests_the_original_goes_on_and_a_copy_restores[pvh]",
)

SHORTER = {"4.20": ["-k", " and ".join(f"not {name}" for name in ELSEWHERE)]}
"""What of them is enough without --slow, as another Xen shows the rest."""

ARM_TESTS = [
    "tests/xen/test_arm.py",
    "tests/xen/test_arm_devices.py",
    "tests/xen/test_arm_faults.py",
    "tests/xen/test_arm_registers.py",
]

PAIRS = {"pair": "4.17", "pair-4.17-4.20": "4.17:4.20", "pair-arm64": "4.17-arm64"}
"""Two hosts of these variants, by the name for --variant."""

PAIR_TESTS = ["tests/pair"]

PAIR_CORE = [*PAIR_TESTS, "-m", "core"]
"""A migration of each kind, faults at a few points, Ctrl-C, a dry run: what runs where no pair is asked for."""

FIELDS_OF_LIBXL = "tests/unit/toolstack/test_decisions.py"
"""Needs no Xen, but the headers of its libxl."""

EVERYTHING = {
    "4.17-arm64": ARM_TESTS,
    "4.20": [*FIRST_ROWS["4.20"], FIELDS_OF_LIBXL],
    "4.17-shadow": FIRST_ROWS["4.17-shadow"],
    "pair": PAIR_CORE,
    "4.17": ["tests/xen", "tests/contract", "--xen", "--ignore=tests/xen/test_shadow.py"],
}
"""What runs without it: on the default variant also faults, memory page by page, the contract …; arm64; a pair."""

WITH_SLOW = {
    "4.17-arm64-gic2": ARM_TESTS,
    "4.20": [
        *EVERYTHING["4.20"],
        "tests/xen/test_save_restore.py",
        "tests/xen/test_image_forms.py",
        "tests/xen/test_helper.py",
        "tests/xen/test_devices.py",
    ],
}
"""What runs in place of that, and besides, with --slow."""

XEN_TIMEOUT_S = 4200
"""After so long a run of pytest in dom0 is taken to hang."""

LAST_TEST_S = 900
"""So long the last test may take when the time is over, with repetitions, before it is taken to hang."""

LAST_FAILED_TEST_S = 120
"""The same where the run has failed by then, as not all was reached."""

PACKAGE = "/root/pysave.deb"
"""Where the Debian package is in dom0, with --slow."""

SUMMARY = "/root/pysave-summary.json"
"""Where pytest leaves its counts in dom0."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for: 0 when all of it passed."""
    options = parser().parse_args(argv)
    raise_on_signals()
    os.chdir(CHECKOUT)
    failed: list[str] = []
    started = time.monotonic()
    limit = options.minutes or options.all_within
    deadline = None if limit is None else started + limit * 60
    counts: list[str] = []
    try:
        if not options.xen_only:
            python = environment.ensure()
            for name, command in _checks(python, options.pytest, slow=options.slow).items():
                _run(name, command, failed)
        if not options.no_xen:
            for variant, tests in tests_on_xen(options).items():
                if deadline is not None and time.monotonic() > deadline:
                    failed.append(f"tests on Xen {variant} (not reached within {limit:g} min)")
                else:
                    run = _run_on_pair if variant in PAIRS else _run_on_xen
                    counts.append(run(variant, tests, options, deadline, failed))
    except LabError as error:
        print(f"test: {error}", file=sys.stderr)
        return FAILED
    except (Interrupted, KeyboardInterrupt):
        print("test: interrupted", file=sys.stderr)
        return INTERRUPTED
    minutes = (time.monotonic() - started) / 60
    for line in counts:
        print(f"test: {line}")
    passed = "all passed" if options.minutes is None else "all that were reached passed"
    print(f"test: {'FAILED: ' + ', '.join(failed) if failed else passed} ({minutes:.1f} min)")
    return FAILED if failed else OK


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    found = argparse.ArgumentParser(prog="test", description=__doc__)
    found.add_argument("--no-xen", action="store_true", help="only what needs no Xen: three minutes")
    found.add_argument("--xen-only", action="store_true", help="only what runs in the lab")
    found.add_argument(
        "--quick",
        action="store_true",
        help="on Xen, only the first row of the support table, on each variant: a quarter of an hour in all",
    )
    found.add_argument(
        "--variant",
        action="append",
        choices=[*dict.fromkeys([*EVERYTHING, *WITH_SLOW, *PAIRS])],
        help="on Xen, only on this variant of the lab, or on this pair of hosts (may be repeated)",
    )
    found.add_argument(
        "--slow",
        action="store_true",
        help="also Debian packages; on Xen, also guests with devices, with four vCPUs and with 1 GiB, all of arm64, "
        "and GICv2",
    )
    limit = found.add_mutually_exclusive_group()
    limit.add_argument(
        "--minutes",
        type=_positive,
        metavar="N",
        help="begin no test on Xen later than N minutes from now, and print which were not reached; it is a failure "
        "only if a Xen, or its first row, was not reached at all",
    )
    limit.add_argument(
        "--all-within",
        type=_positive,
        metavar="N",
        help="the same, and any test that was not reached is a failure",
    )
    found.add_argument(
        "pytest",
        nargs="*",
        help="further arguments for pytest, after --; a file of tests, "
        "or a test, is run in place of what runs by default",
    )
    return found


def tests_on_xen(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return what runs on real Xen, by variant, in this order. Nothing of it where pytest's arguments name tests."""
    chosen = FIRST_ROWS if options.quick else EVERYTHING | (WITH_SLOW if options.slow else {})
    if options.variant is not None:
        of_pairs = dict.fromkeys(PAIRS, PAIR_CORE if options.quick else PAIR_TESTS)
        known = WITH_SLOW | EVERYTHING | chosen | of_pairs
        chosen = {variant: known[variant] for variant in options.variant}
    if any((CHECKOUT / word.partition("::")[0]).exists() for word in options.pytest):
        return {variant: [] for variant in chosen}
    return dict(chosen)


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise ValueError(text)
    return value


def _checks(python: Path, more: list[str], *, slow: bool) -> dict[str, list[str]]:
    def module(name: str, *arguments: str) -> list[str]:
        return [str(python), "-m", name, *arguments]

    packages = {"Debian packages": [str(CHECKOUT / "tools" / "package")]} if slow else {}
    return {
        "ruff check": module("ruff", "check", "."),
        "ruff format": module("ruff", "format", "--check", "."),
        "mypy --strict": module("mypy"),
        **packages,
        # A file at a time: some tests of one file follow one another.
        "tests without Xen": module(
            "pytest", "-q", "-n", "auto", "--dist", "loadfile", *(["--slow"] if slow else []), *more
        ),
    }


def _run(name: str, command: list[str], failed: list[str]) -> None:
    print(f"test: {name}", flush=True)
    started = time.monotonic()
    if subprocess.run(command, check=False).returncode != 0:
        failed.append(name)
        print(f"test: {name}: FAILED", flush=True)
    else:
        say(f"{name}: passed ({time.monotonic() - started:.0f} s)")


# Short tracebacks: long ones show arguments, among them arrays over memory that is no longer mapped.
_ARGUMENTS = ["-q", "--tb=short", "--durations=60"]


def _run_on_xen(
    variant: str, tests: list[str], options: argparse.Namespace, deadline: float | None, failed: list[str]
) -> str:
    """Boot the variant (unless it is up: then it is left so), push, run pytest in its dom0: what came of it."""
    slow = ["--slow"] if options.slow else SHORTER.get(variant, [])
    arguments = [*_ARGUMENTS, f"--summary={SUMMARY}", *tests, *slow, *options.pytest]
    all_reached = options.all_within is not None
    started = time.monotonic()
    with Machine(variant).up_meanwhile() as machine:
        machine.run(["rm", "-f", SUMMARY])
        if options.slow and (built := package.built_for(variant)):
            machine.run(f"cat > {PACKAGE}", stdin=built.read_bytes())
        left_s = None if deadline is None else deadline - time.monotonic()
        line = _in_dom0(variant, arguments, left_s, all_reached=all_reached)
        _run(f"tests on Xen {variant}", ssh.command(variant, machine.require_up(), [line]), failed)
        counts = machine.run(["cat", SUMMARY], check=False).stdout.decode()
    return f"Xen {variant}: {_told(counts)} ({(time.monotonic() - started) / 60:.1f} min)"


def _run_on_pair(
    variant: str, tests: list[str], options: argparse.Namespace, deadline: float | None, failed: list[str]
) -> str:
    """Boot the pair (unless it is up: then it is left so), push, run pytest here: what came of it."""
    python = environment.ensure()
    started = time.monotonic()
    with Pair().up_meanwhile(variants_of(PAIRS[variant])), tempfile.TemporaryDirectory() as folder:
        summary = Path(folder) / "summary.json"
        slow = ["--slow"] if options.slow else []
        arguments = [*_ARGUMENTS, f"--summary={summary}", *tests, *slow, *options.pytest]
        left_s = None if deadline is None else deadline - time.monotonic()
        limits, timeout_s = _limits(left_s, all_reached=options.all_within is not None)
        command = ["timeout", str(timeout_s), str(python), "-u", "-m", "pytest", *arguments, *limits]
        _run(f"tests on the {variant}", ["env", "PYSAVE_REQUIRE_PAIR=1", *command], failed)
        counts = summary.read_text() if summary.exists() else ""
    return f"{variant}: {_told(counts)} ({(time.monotonic() - started) / 60:.1f} min)"


def _told(counts: str) -> str:
    """Return pytest's counts in words."""
    if not counts:
        return "pytest did not come to its end: it hung, or was stopped as the time was over"
    found: dict[str, int] = json.loads(counts)
    words = [f"{found['passed']} passed", f"{found['failed']} failed", f"{found['not_reached']} not reached"]
    words.append(f"{found['repeated']} repeated after triple faults")
    if found["maybe_ours"]:
        words.append(f"{found['maybe_ours']} of them with the guest's own registers (see above)")
    if found["boots_repeated"]:
        words.append(f"{found['boots_repeated']} guests booted again")
    return ", ".join(words)


def _in_dom0(variant: str, arguments: list[str], left_s: float | None, *, all_reached: bool = False) -> str:
    """Return the command line that runs pytest in dom0, where tests begin for `left_s` seconds only."""
    limits, timeout_s = _limits(left_s, all_reached=all_reached)
    return (
        f"cd /root/pysave && PYSAVE_REQUIRE_XEN=1 PYSAVE_XEN_VARIANT={variant} "
        f"timeout {timeout_s} python3 -u -m pytest {shlex.join([*arguments, *limits])}"
    )


def _limits(left_s: float | None, *, all_reached: bool) -> tuple[list[str], int]:
    """Return pytest's options for beginning tests for `left_s` seconds only, and when it is taken to hang (in s)."""
    if left_s is None:
        return [], XEN_TIMEOUT_S
    within_s = max(0, round(left_s))
    limits = [f"--begin-within={within_s}", *(["--all-reached"] if all_reached else [])]
    return limits, min(XEN_TIMEOUT_S, within_s + (LAST_FAILED_TEST_S if all_reached else LAST_TEST_S))
