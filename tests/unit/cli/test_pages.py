"""Man pages and completion: they are made of the parsers, read without a warning, and really complete."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from saverestore.cli.parsers import COMMANDS, subcommands_of

pytest.importorskip("shtab", reason="shtab is not installed")
pytest.importorskip("argparse_manpage", reason="argparse-manpage is not installed")

from saverestore.cli.pages import BASH, DOC, MAN, ZSH, write_pages
from saverestore.cli.settings import OPTIONS
from saverestore.helper.settings import KINDS, Settings, read_settings


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    write_pages(folder)
    return folder


def read(page: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("man") is None:
        pytest.skip("man is not installed: apt install man-db")
    command = ["man", "-l", "--warnings", "-E", "UTF-8", str(page)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={"MANWIDTH": "200", "PATH": "/usr/bin:/bin"}
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_man_page_is_shown_without_a_warning_and_has_every_option(pages, name):
    done = read(pages / MAN / f"{name}.1")
    assert (done.returncode, done.stderr) == (0, "")
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "AUTHORS"):
        assert f"\n{section}\n" in done.stdout
    parser = COMMANDS[name][0]()
    parsers = [parser, *subcommands_of(parser).values()]
    shown = {
        option
        for one in parsers
        for action in one._actions
        if action.help != "==SUPPRESS==" and action.dest != "help"
        for option in action.option_strings
    }
    assert {option for option in shown if option not in done.stdout} == set()


HEADINGS = ("examples:", "settings, ", "other commands, ")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_man_page_has_every_line_that_help_has_below_the_options(pages, name):
    shown = " ".join(read(pages / MAN / f"{name}.1").stdout.split())
    parser = COMMANDS[name][0]()
    for one in [parser, *parser.others.values()]:
        if not isinstance(one, argparse.ArgumentParser):
            one = one()
        text, _, after = str(one.epilog).partition("exit codes:\n")
        assert re.fullmatch(r"(  \d.*\n)*", after)
        lines = [" ".join(line.split()) for line in text.splitlines()]
        assert [line for line in lines if line not in shown and not line.startswith(HEADINGS)] == []


def test_a_line_that_starts_with_an_apostrophe_is_shown(pages):
    assert "'-' is standard input" in " ".join(read(pages / MAN / "pyimage.1").stdout.split())


def test_the_file_of_settings_has_each_of_them_with_its_default_commented_out(pages, tmp_path):
    text = (pages / DOC / "pysave.toml").read_text()
    assert tomllib.loads(text) == {}
    (tmp_path / "all.toml").write_text(re.sub(r"^#(?=\w)", "", text, flags=re.MULTILINE))
    assert tomllib.loads((tmp_path / "all.toml").read_text()).keys() == KINDS.keys()
    assert read_settings({"PYSAVE_CONFIG": str(tmp_path / "all.toml")}) == Settings()
    assert max(map(len, text.splitlines())) <= 100


def test_it_has_the_table_of_each_command_with_what_may_be_set_there(pages):
    text = (pages / DOC / "pysave.toml").read_text()
    uncommented = tomllib.loads(re.sub(r"^#(?=\[)", "", text, flags=re.MULTILINE))
    assert uncommented == {name: {} for name in OPTIONS}
    for name, keys in OPTIONS.items():
        part = text.partition(f"#[{name}]\n")[2].partition("\n\n")[0]
        assert [line[2:].partition(":")[0] for line in part.splitlines() if line[2] != " "] == list(keys)


XL = "xl() { printf 'Name ID\\nDomain-0 0\\nweb1 1\\nweb2 2\\n'; }"


def completed(pages: Path, *words: str) -> list[str]:
    """What a bash offers for the last of these words; `xl list` has two domains besides domain 0."""
    script = f"""
{XL}
source {pages / BASH / words[0]}
function=$(complete -p {words[0]} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}
"$function" "$1" "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def completed_by_zsh(pages: Path, *words: str) -> list[str]:
    """The same of an interactive zsh on a terminal."""
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    command = [
        "zsh",
        "-f",
        str(Path(__file__).with_name("completed_by.zsh")),
        str(pages / ZSH),
        " ".join(words),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


LINES = pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("pysave", "w"), ["web1", "web2"]),
        (("pysave", "--on-stall", ""), ["stop", "abort", "throttle"]),
        (("pysave", "--comp"), ["--compress"]),
        (("pyimage", "con"), ["convert"]),
        (("pyimage", "convert", "--to", ""), ["xen", "draft-b"]),
        (("pysave-watch", "web2"), ["web2"]),
        (("pymigrate", "c"), ["cancel"]),
        (("pymigrate", "make-"), ["make-ca", "make-cert"]),
        (("pymigrate", "w"), ["web1", "web2"]),
        (("pymigrate", "web1", "w"), ["web1", "web2"]),
        (("pymigrate", "web1", "localh"), ["localhost"]),
        (("pymigrate", "web1", "make-"), []),
        (("pymigrate", "receive", "--p"), ["--paused", "--ports"]),
        (("pymigrate", "recover", "--fo"), ["--force"]),
        (("pymigrate", "cancel", "w"), ["web1", "web2"]),
        (("pymigrate", "bwlimit", "web2"), ["web2"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)


@LINES
def test_bash_completes(pages, words, offered):
    assert sorted(set(completed(pages, *words))) == sorted(offered)


@LINES
def test_zsh_completes(pages, words, offered):
    assert sorted(set(completed_by_zsh(pages, *words))) == sorted(offered)


def test_bash_completes_names_of_files(pages, tmp_path):
    (tmp_path / "web1.img").touch()
    assert completed(pages, "pyrestore", f"{tmp_path}/we") == [f"{tmp_path}/web1.img"]


def test_zsh_completes_names_of_files_also_of_the_second_of_several(pages, tmp_path):
    (tmp_path / "web1.img").touch()
    assert completed_by_zsh(pages, "pyrestore", f"{tmp_path}/we") == ["web1.img"]
    assert completed_by_zsh(pages, "pyimage", "verify", "first.img", f"{tmp_path}/we") == ["web1.img"]


@pytest.mark.parametrize("name", COMMANDS)
def test_zsh_takes_its_completion(pages, name):
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    script = f"fpath=({pages / ZSH} $fpath); autoload -U compinit && compinit -u -D; print $_comps[{name}]; "
    script += f"zsh -n {pages / ZSH / f'_{name}'}"
    done = subprocess.run(["zsh", "-f", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"_{name}\n"


def test_two_builds_are_the_same(pages, tmp_path):
    write_pages(tmp_path)
    files = sorted(path.relative_to(pages) for path in pages.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in files if (pages / name).read_bytes() != (tmp_path / name).read_bytes()] == []
