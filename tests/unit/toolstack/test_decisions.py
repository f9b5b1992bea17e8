"""Each field of libxl's configuration has a decision; what a restore would lose is refused or reported."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from pyxc.control import XenVersion
from saverestore.toolstack import decisions, known_bad
from saverestore.toolstack.decisions import Decision, losses

HEADERS = [Path(folder, "_libxl_types.h") for folder in ("/usr/include", "/usr/local/include")]


def fields_of(header: str, struct: str) -> set[str]:
    """The top-level members of one of libxl's structures; counts of arrays are left out."""
    body = re.search(rf"typedef struct {struct} \{{(.*?)\n\}} {struct};", header, re.S)
    assert body is not None, struct
    text, depth = "", 0
    for line in body[1].splitlines():
        depth -= line.count("}")
        if depth == 0:
            text += line + "\n"
        depth += line.count("{")
    names = re.findall(r"(\w+);", text)
    return {name for name in names if not (name.startswith("num_") and name != "num_")}


@pytest.mark.parametrize(
    ("struct", "table"),
    [
        ("libxl_domain_config", decisions.CONFIG),
        ("libxl_domain_create_info", decisions.CREATE),
        ("libxl_domain_build_info", decisions.BUILD),
    ],
)
def test_each_field_of_the_installed_libxl_has_a_decision(struct, table):
    header = next((path for path in HEADERS if path.exists()), None)
    if header is None:
        assert not os.environ.get("PYSAVE_REQUIRE_XEN"), "dom0 has the headers of its libxl"
        pytest.skip("no _libxl_types.h (libxen-dev)")
    undecided = fields_of(header.read_text(), struct) - table.keys()
    assert undecided == set(), f"decide what becomes of {sorted(undecided)} in toolstack/decisions.py"


def test_a_field_that_is_new_would_be_found():
    header = (
        "typedef struct x {\n    int num_a;\n    int * a;\n    struct {\n        int inner;\n    } b;\n} x;"
    )
    assert fields_of(header, "x") == {"a", "b"}


def test_what_is_lost_has_words_for_people():
    wordy = {name for name, one in decisions.BUILD.items() if one in (Decision.REFUSED, Decision.REPORTED)}
    assert wordy == decisions.WHAT_IS_LOST.keys()


VNODES = [{"memkb": 65536, "distances": [10, 20], "pnode": 0, "vcpus": [0]}]


@pytest.mark.parametrize(
    ("build", "refused", "reported"),
    [
        ({}, [], []),
        ({"vnuma_nodes": []}, [], []),
        ({"vnuma_nodes": VNODES}, ["vnuma"], []),
        ({"nested_hvm": "True"}, [], ["nestedhvm"]),
        ({"type.hvm": {"nested_hvm": "True", "altp2m": "False"}}, [], ["nestedhvm"]),
        ({"nested_hvm": "False", "altp2m": "disabled", "vmtrace_buf_kb": 0}, [], []),
        ({"iomem": [{"start": 1}], "irqs": [7], "altp2m": "mixed"}, [], ["irqs", "iomem", "altp2m"]),
    ],
    ids=str,
)
def test_what_a_restore_would_lose_is_named(build, refused, reported):
    found = losses({"b_info": build})
    assert [name for name in refused if name not in " ".join(found.refused)] == []
    assert len(found.refused) == len(refused)
    assert [name for name in reported if name not in " ".join(found.reported)] == []
    assert len(found.reported) == len(reported)


# ---- hypervisors that are known to be bad --------------------------------------------------------


@pytest.mark.parametrize(
    ("minor", "extra", "is_bad"),
    [
        (17, ".5", False),
        (20, ".2", False),
        (21, ".0", True),
        (21, ".1-1.fc44", True),
        (21, ".2", False),
        (22, ".0", False),
        (21, "-unstable", True),
    ],
)
def test_a_version_that_loses_registers_is_known(minor, extra, is_bad):
    assert (known_bad.found(XenVersion(4, minor, extra, "")) is not None) == is_bad
