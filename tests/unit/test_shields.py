"""What a shield holds back signals from must come to an end by itself.

- No loop without a bound stands in a `with shield()`.
- Transactions of xenstore are tried again in one place, which has a bound: `guest.common.transactions`.
- Room and fsync are asked of a file system in one place, which knows odd answers: `transport.safety`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "saverestore").rglob("*.py"))


def is_shield(item: ast.withitem) -> bool:
    call = item.context_expr
    return isinstance(call, ast.Call) and ast.unparse(call.func).endswith("shield")


def endless_loops_in_shields(tree: ast.AST) -> Iterator[int]:
    """Lines of `while True` below a `with shield()`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and any(map(is_shield, node.items)):
            for inner in ast.walk(node):
                if isinstance(inner, ast.While) and isinstance(inner.test, ast.Constant):
                    yield inner.lineno


def uses_of(tree: ast.AST, names: set[str]) -> list[str]:
    return [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in names]


# It looks every tenth of a second whether its time is up, and heeds signals at each look.
BOUNDED = {"saverestore/interrupts.py"}


def test_no_loop_without_a_bound_is_in_a_shield():
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        if str(path.relative_to(ROOT)) not in BOUNDED
        for line in endless_loops_in_shields(ast.parse(path.read_text()))
    }
    assert found == set()


def test_a_loop_in_a_shield_would_be_found():
    sin = "with interrupts.shield():\n    for x in y:\n        while True:\n            pass\n"
    assert list(endless_loops_in_shields(ast.parse(sin))) == [3]


@pytest.mark.parametrize(
    ("names", "place"),
    [
        ({"transaction"}, {"saverestore/guest/common/transactions.py"}),
        ({"statvfs", "fstatvfs"}, {"saverestore/transport/safety.py"}),
        # Journals and a domain's own disks are no images: where they cannot be brought to the disk, nothing is begun.
        ({"fsync"}, {"saverestore/transport/safety.py",
                     "saverestore/guest/arm64/journal.py", "saverestore/migrate/journal.py",
                     "saverestore/toolstack/shared_disks.py"}),
    ],
)  # fmt: skip
def test_what_needs_care_is_called_in_one_place(names, place):
    found = {str(path.relative_to(ROOT)) for path in FILES if uses_of(ast.parse(path.read_text()), names)}
    assert found == place
