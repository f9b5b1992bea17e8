"""`pysave` and `pyrestore` as a user runs them on a machine without Xen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from saverestore.errors import ExitCode

ROOT = Path(__file__).parents[3]
COMMANDS = ["pysave", "pyrestore"]

try:
    import pyxc  # noqa: F401
except ImportError:
    has_binding = False
else:
    has_binding = True
on_xen = Path("/proc/xen/capabilities").exists() or Path("/dev/xen/privcmd").exists()

needs_binding = pytest.mark.skipif(
    not has_binding, reason="pyxc is not compiled: install libxen-dev and a C compiler, then install again"
)
needs_no_xen = pytest.mark.skipif(
    on_xen, reason="this is a Xen host; what happens without one is not to be seen"
)


def run(command: str, *arguments: str | Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own; `before`: Python to be run there first."""
    code = (
        f"import sys\n{before}\nfrom saverestore.cli import {command}\nsys.exit({command}.main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("pysave", []),
        ("pysave", ["web1"]),
        ("pysave", ["web1", "out.img", "more"]),
        ("pysave", ["--frobnicate", "web1", "out.img"]),
        ("pysave", ["-c", "-p", "web1", "out.img"]),
        ("pysave", ["--live", "--dirty", "guess", "web1", "out.img"]),
        ("pysave", ["--digest", "md5", "web1", "out.img"]),
        ("pysave", ["--digest", "xxh3", "--plain", "web1", "out.img"]),
        ("pysave", ["--compress", "gzip", "web1", "out.img"]),
        ("pysave", ["--compress", "zstd:", "web1", "out.img"]),
        ("pysave", ["--compress", "zstd:20", "web1", "out.img"]),
        ("pysave", ["--compress", "zstd:-1", "web1", "out.img"]),
        ("pysave", ["--live", "--downtime-ms", "0", "web1", "out.img"]),
        ("pysave", ["--live", "--downtime-ms", "soon", "web1", "out.img"]),
        ("pysave", ["--live", "--max-rounds", "0", "web1", "out.img"]),
        ("pysave", ["--live", "--max-rounds", "1001", "web1", "out.img"]),
        ("pysave", ["--live", "--max-time", "-1", "web1", "out.img"]),
        ("pysave", ["--live", "--on-stall", "wait", "web1", "out.img"]),
        ("pysave", ["--store", "web1"]),
        ("pysave", ["web1", "out.img", "--store"]),
        ("pysave", ["--recover", "web1", "--store"]),
        ("pyrestore", ["a.img", "--store", "web1"]),
        ("pyrestore", []),
        ("pyrestore", ["a.img", "b.img"]),
        ("pyrestore", ["--name"]),
        ("pyrestore", ["--name", "f\udcff", "a.img"]),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(command, arguments):
    done = run(command, *arguments)
    assert done.returncode == ExitCode.USAGE
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{command}: ")
    assert line.endswith(f"; see '{command} --help'")
    assert done.stdout == ""


@pytest.mark.parametrize("how", ["log", "digest"])
def test_a_way_to_find_dirty_pages_without_live_is_wrong_usage(how):
    done = run("pysave", "--dirty", how, "web1", "out.img")
    assert done.returncode == ExitCode.USAGE
    assert "--dirty needs --live" in done.stderr


@pytest.mark.parametrize(
    "option",
    [("--downtime-ms", "300"), ("--max-rounds", "3"), ("--max-time", "60"), ("--on-stall", "throttle")],
    ids=lambda option: option[0],
)
def test_a_limit_of_rounds_without_live_is_wrong_usage(option):
    done = run("pysave", *option, "web1", "out.img")
    assert done.returncode == ExitCode.USAGE
    assert f"{option[0]} needs --live" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_every_exit_code_and_examples(command):
    done = run(command, "--help")
    assert done.returncode == 0
    _, _, codes = done.stdout.partition("exit codes:")
    listed = {
        int(line.split()[0]) for line in codes.splitlines() if line.split()[:1] and line.split()[0].isdigit()
    }
    assert listed == {int(code) for code in ExitCode}
    assert "examples:" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_version_is_printed(command):
    assert run(command, "--version").stdout.startswith(f"{command} ")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_neither_numpy_nor_the_bindings(command):
    watch = (
        "import atexit\n"
        "heavy = ('numpy', 'pyxc', 'tqdm', '_cffi_backend')\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules]))"
    )
    assert run(command, "--help", before=watch).stdout.endswith("[]\n")


# ---- a machine without Xen -----------------------------------------------------------------------


@needs_binding
@needs_no_xen
@pytest.mark.parametrize("domain", ["7", "web1", "5d3c9a5a-6a9e-4b7e-9d0c-0123456789ab"])
def test_saving_without_xen_is_one_clear_line_and_leaves_no_file(tmp_path, domain):
    done = run("pysave", domain, tmp_path / "out.img")
    assert done.returncode == ExitCode.XEN
    (line,) = done.stderr.splitlines()
    assert line.startswith("pysave: xc_interface_open(): [")
    assert "is this a Xen control domain, and are you root?" in line
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@needs_binding
def test_restoring_what_is_no_image_is_told_before_xen_is_asked_for(tmp_path):
    path = tmp_path / "text.img"
    path.write_text("#!/bin/sh\n" * 100)
    done = run("pyrestore", path)
    assert done.returncode == ExitCode.IMAGE
    (line,) = done.stderr.splitlines()
    assert line.startswith("pyrestore: ")
    assert str(path) in line
    assert done.stdout == ""


@needs_binding
def test_restoring_a_file_that_is_not_there_is_one_line(tmp_path):
    done = run("pyrestore", tmp_path / "absent.img")
    assert done.returncode in (ExitCode.USAGE, ExitCode.IO)
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "absent.img") in line


@needs_binding
def test_restoring_from_a_store_without_such_an_image_is_one_line(tmp_path):
    done = run("pyrestore", "--store", tmp_path / "web1@2026")
    assert done.returncode == ExitCode.USAGE
    there_is_none = (
        f"{tmp_path}: there is no image of 'web1@2026'; 'pyimage list {tmp_path}' lists those there are\n"
    )
    assert done.stderr == f"pyrestore: {there_is_none}"
    done = run("pyrestore", "--dry-run", "--store", tmp_path / "web1@2026")
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == f"problem: {there_is_none}no changes were made\n"


@needs_binding
def test_an_empty_input_is_an_image_error():
    done = run("pyrestore", "-")
    assert done.returncode == ExitCode.IMAGE
    assert len(done.stderr.splitlines()) == 1


# ---- a machine without the compiled binding ------------------------------------------------------

WITHOUT_BINDING = "sys.modules['pyxc._xen'] = None"
BUILT_FOR_ANOTHER_XEN = """
import importlib.abc
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == 'pyxc._xen':
            raise ImportError('libxenctrl.so.4.99: cannot open shared object file: No such file or directory')
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    ("command", "arguments"), [("pysave", ["web1", "out.img"]), ("pyrestore", ["a.img"])]
)
def test_without_the_binding_the_message_says_what_to_install(command, arguments):
    done = run(command, *arguments, before=WITHOUT_BINDING)
    assert done.returncode == ExitCode.XEN
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{command}: ")
    assert "libxen-dev" in line


def test_a_binding_built_for_another_xen_says_so():
    done = run("pysave", "web1", "out.img", before=BUILT_FOR_ANOTHER_XEN)
    assert done.returncode == ExitCode.XEN
    (line,) = done.stderr.splitlines()
    assert "built against another Xen" in line
    assert "libxenctrl.so.4.99" in line


def test_another_missing_module_is_not_taken_for_the_binding():
    done = run("pysave", "web1", "out.img", before="sys.modules['numpy'] = None")
    assert done.returncode not in (ExitCode.DONE, ExitCode.XEN)
    assert "numpy" in done.stderr
    assert "libxen" not in done.stderr
