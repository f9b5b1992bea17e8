"""The package installed without a compiler and Xen: images can be read, the rest says what is missing.

What pip does to the folder that it installs from, and prints on a terminal, is here, too.
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PACKAGED = ("pyxc", "saverestore", "setup.py", "pyproject.toml", "README.md")

sys.path.insert(0, str(ROOT / "tests" / "vectors"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's files."""
    folder = tmp_path_factory.mktemp("source")
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if files.returncode != 0:
        pytest.skip("needs the project as a git checkout")
    for name in files.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def pip_install(source: Path, target: Path) -> tuple[list[str], dict[str, str]]:
    """The command that installs into a folder with a C compiler that does not exist, and its environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    return [*command, "--target", str(target), str(source)], {**os.environ, "CC": "/nonexistent/cc"}


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, installed into a folder of its own."""
    target = tmp_path_factory.mktemp("without") / "target"
    command, environment = pip_install(source, target)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def paths_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_pip_leaves_nothing_behind_and_a_person_at_a_terminal_reads_what_is_missing(
    source: Path, tmp_path: Path
):
    before = paths_in(source)
    command, environment = pip_install(source, tmp_path / "target")
    child, terminal = pty.fork()
    if child == 0:
        os.execve(command[0], command, environment)
    said = b""
    while chunk := _read(terminal):
        said += chunk
    os.close(terminal)
    assert os.waitpid(child, 0)[1] == 0, said.decode()
    assert paths_in(source) == before
    lines = said.decode().replace("\r", "").splitlines()
    (xen,) = [line for line in lines if "xenctrl.h" in line]
    assert xen == (
        "pysave: no xenctrl.h: installing without the binding for Xen: only pyimage will work. "
        "It needs a C compiler and libxen-dev"
    )
    assert len([line for line in lines if "xxhash.h" in line]) == 1


def _read(terminal: int) -> bytes:
    """b"" at the end, which Linux reports as an error of a terminal."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


# An editable install of this checkout would lend the copy its compiled modules.
ALONE = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
MODULE = "import runpy; sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__')"


def python(installed: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code with only the installed copy, not this checkout, as the package."""
    return subprocess.run(
        [sys.executable, "-c", ALONE + code, *arguments],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_installs_without_compiled_modules(installed: Path):
    assert list(installed.rglob("*.so")) == []
    assert (installed / "saverestore" / "cli" / "pyimage" / "command.py").is_file()
    assert (installed / "pyxc" / "py.typed").is_file()


def test_man_pages_and_completion_are_installed_where_they_belong(installed: Path):
    pytest.importorskip("shtab", reason="shtab is not installed")
    pytest.importorskip("argparse_manpage", reason="argparse-manpage is not installed")
    for name in ("man/man1/pysave.1", "bash-completion/completions/pyimage", "zsh/site-functions/_pyrestore"):
        assert (installed / "share" / name).stat().st_size > 1000


def test_the_version_says_that_xen_is_missing(installed: Path):
    done = python(installed, MODULE, "saverestore.cli.pysave", "--version")
    assert done.stdout.startswith("pysave ")
    assert "images only: built without Xen; no compiled kernels" in done.stdout


def test_importing_the_binding_says_what_to_install(installed: Path):
    done = python(installed, "import pyxc")
    assert done.returncode == 1
    assert "libxen-dev" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("Reading images (pyimage) works without it")
    assert "partially initialized" not in done.stderr


def test_pyimage_reads_an_image(installed: Path, tmp_path: Path):
    from stream_samples import golden

    image = tmp_path / "a.img"
    image.write_bytes(golden("pv-v3"))
    done = python(installed, MODULE, "saverestore.cli.pyimage", "verify", str(image))
    assert done.returncode == 0, done.stderr
    assert "whole" in done.stdout


@pytest.mark.parametrize("command", ["dump", "core", "convert"])
def test_pyimage_makes_files_of_an_image(installed: Path, tmp_path: Path, command: str):
    from stream_samples import golden

    image = tmp_path / "a.img"
    image.write_bytes(golden("pv-v3"))
    out = str(tmp_path / "out")
    done = python(installed, MODULE, "saverestore.cli.pyimage", command, str(image), "-o", out)
    assert done.returncode == 0, done.stderr
    assert Path(out).stat().st_size


def test_pysave_says_what_to_install_in_one_line(installed: Path, tmp_path: Path):
    done = python(installed, MODULE, "saverestore.cli.pysave", "web1", str(tmp_path / "a.img"))
    assert done.returncode == 6
    assert len(done.stderr.splitlines()) == 1
    assert "libxen-dev" in done.stderr
    assert done.stderr.endswith("Reading images (pyimage) works without it\n")


def test_the_helper_is_not_enabled_without_the_binding_but_its_status_is_printed(installed: Path):
    done = python(installed, MODULE, "saverestore.cli.helper", "--status")
    assert (done.returncode, done.stderr) == (0, "")
    done = python(installed, MODULE, "saverestore.cli.helper", "--enable")
    assert done.returncode == 6
    assert "libxen-dev" in done.stderr


def test_digests_fall_back_to_python(installed: Path):
    script = (
        "import numpy as np; from saverestore.kernels import xxh3;"
        "assert xxh3.compiled() is None; print(xxh3.page_digests(np.zeros((2, 4096), np.uint8)).shape)"
    )
    done = python(installed, script)
    assert done.stdout.strip() == "(2, 2)", done.stderr
