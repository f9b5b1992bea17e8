"""Man pages, completion scripts and the file of settings, made of the code when the package is built.

    share/man/man1/COMMAND.1                          argparse-manpage
    share/bash-completion/completions/COMMAND         shtab
    share/zsh/site-functions/_COMMAND                 shtab
    share/doc/pysave/pysave.toml                      every setting, commented out: a start for /etc/xen/pysave.toml

Used by setup.py, in a Python that has neither numpy nor
Xen's bindings; without argparse-manpage and shtab there are no pages, see setup.py.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import saverestore
from saverestore.cli.arguments import Parser, words_of
from saverestore.cli.parsers import COMMANDS, parser_of_table, subcommands_of
from saverestore.cli.pymigrate import command as pymigrate
from saverestore.cli.settings import OPTIONS, actions_of
from saverestore.helper.settings import VARIABLE_PREFIX, Choice, Settings

MAN, BASH, ZSH = "share/man/man1", "share/bash-completion/completions", "share/zsh/site-functions"
DOC = "share/doc/pysave"

DATE = "2026-11-30"
"""Of the pages: that of the version in debian/changelog, not of the build, so that two builds are the same."""

OTHERS = " ".join(pymigrate.OTHERS)

PREAMBLE = {
    "bash": f"""\
_pysave_domains() {{
  compgen -W "$(xl list 2>/dev/null | awk 'NR > 1 && $1 != "Domain-0" {{ print $1 }}')" -- "$1"
}}
_pymigrate_words() {{
  local IFS=$' \\t\\n'  # older shtabs call this with newline alone
  _pysave_domains "$1"
  if ((COMP_CWORD == 1)); then compgen -W "{OTHERS}" -- "$1"; else compgen -A hostname -- "$1"; fi
}}
""",
    "zsh": f"""\
_pysave_domains() {{
  local -a names
  names=(${{(f)"$(xl list 2>/dev/null | awk 'NR > 1 && $1 != "Domain-0" {{ print $1 }}')"}})
  compadd -a names
}}
_pymigrate_words() {{
  _pysave_domains
  if (( CURRENT == 2 )); then compadd {OTHERS}; else _hosts; fi
}}
""",
}
"""How running domains are completed; domain 0 cannot be saved. Of pymigrate's words, the first may be another
command, and the last is a host."""


def write_pages(folder: Path) -> list[tuple[str, list[str]]]:
    """Write all of them below a folder: (directory, files in it), as setuptools' data_files has them."""
    written: dict[str, list[str]] = {MAN: [], BASH: [], ZSH: [], DOC: []}
    for place in written:
        (folder / place).mkdir(parents=True, exist_ok=True)

    def write(place: str, name: str, text: str) -> None:
        path = folder / place / name
        path.write_text(text)
        written[place].append(str(path))

    for name, (make, description) in COMMANDS.items():
        parser = make()
        write(MAN, f"{name}.1", man_page(parser, name, description))
        for place, file, shell in ((BASH, name, "bash"), (ZSH, f"_{name}", "zsh")):
            write(place, file, completion(make(), shell))
    write(DOC, "pysave.toml", settings_file())
    return list(written.items())


def settings_file() -> str:
    """Every setting, of the helper's with its default, commented out: with this file, all is as without one."""
    lines = [
        "# Settings of pysave-helper, by which xl runs on pysave's engine: see pysave-helper(1).",
        "# Each line that is commented out shows a default. Those of other commands are in tables, below.",
    ]
    for one in fields(Settings):
        kind, text = one.metadata["kind"], one.metadata["help"]
        if isinstance(kind, Choice):
            text = text.format(words=words_of(kind.words))
        lines += ["", *_commented(text)]
        lines.append(f"# Variable: {VARIABLE_PREFIX}{one.name.upper()}")
        lines.append(f"#{one.name} = {json.dumps(one.default)}")
    for table in OPTIONS:
        lines += ["", *_commented(f"Options of {table.replace('-', ' ')}, if the command line has none:")]
        lines.append(f"#[{table}]")
        for key, action in actions_of(parser_of_table(table)):
            text = argparse.HelpFormatter(table)._expand_help(action)
            lines += _commented(f"{key}: {text}", indent="    ")
    return "\n".join(lines) + "\n"


def _commented(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 98, initial_indent="# ", subsequent_indent=f"# {indent}")


def completion(parser: Parser, shell: str) -> str:
    """The completion script of a command, and of the others that are called by its name and a word."""
    if not parser.others:
        return _script(parser, shell)
    others = subcommands_of(parser)
    for one in others.values():
        one.prog = parser.prog
    scripts = {word: _script(one, shell, f"{parser.prog}_{word}") for word, one in others.items()}
    both = _bash_of_several if shell == "bash" else _zsh_of_several
    return both(parser.prog, _script(parser, shell), scripts)


def _script(parser: argparse.ArgumentParser, shell: str, prefix: str | None = None) -> str:
    """What shtab makes of one parser; its functions are called _shtab_PREFIX, by default PREFIX is the command."""
    import shtab

    repeated = False
    for action in parser._get_positional_actions():
        if repeated:  # completed as the repeated one is: nobody knows where it begins
            action.help = argparse.SUPPRESS
        repeated = repeated or action.nargs in ("*", "+")
    text = str(shtab.complete(parser, shell=shell, root_prefix=prefix, preamble=PREAMBLE))  # type: ignore[arg-type]
    if shell == "zsh":
        # "(*)" is one argument after which there is no other; "*" is any number of them.
        text = text.replace("='(*)'", "='*:'")  # where the script looks for such an argument
        text = text.replace('"(*)::', '"*:').replace('"(*):', '"*:')
    return text


def _bash_of_several(name: str, main: str, others: Mapping[str, str]) -> str:
    """A script for all of them, that looks at the first word."""
    cases = "\n".join(f"    {word}) other=_shtab_{name}_{word.replace('-', '_')} ;;" for word in others)
    chosen = f"""
_{name}_any() {{
  local other=
  if ((COMP_CWORD > 1)); then
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
  fi
  if [[ -z $other ]]; then _shtab_{name} "$@"; return; fi
  COMP_WORDS=("$1" "${{COMP_WORDS[@]:2}}")
  ((COMP_CWORD -= 1))
  $other "$@"
}}
"""
    at_the_end = re.compile(rf"^(complete .*-F )_shtab_{name} {name}$", re.MULTILINE)
    ours, count = at_the_end.subn(rf"{chosen}\1_{name}_any {name}", main)
    if count != 1:
        raise ValueError(f"shtab's script for {name} does not end as expected")
    return "\n".join([*others.values(), ours])


def _zsh_of_several(name: str, main: str, others: Mapping[str, str]) -> str:
    """The same. Each script stands in a function, as it ends by completing."""
    functions = "\n".join(
        f"_{name}_script_{word.replace('-', '_')}() {{\n{text}\n}}"
        for word, text in {"": main, **others}.items()
    )
    return f"""#compdef {name}

{functions}

if (( CURRENT > 2 && ${{+functions[_{name}_script_${{words[2]//-/_}}]}} )); then
  shift words
  (( CURRENT -= 1 ))
  _{name}_script_${{words[1]//-/_}} "$@"
else
  _{name}_script_ "$@"
fi
"""


def man_page(parser: argparse.ArgumentParser, name: str, description: str) -> str:
    """A page of section 1: name, synopsis, description, options, and the parts of the epilog."""
    try:
        from argparse_manpage.manpage import Manpage
    except ImportError:  # before its version 4, as in Debian 12
        from build_manpages.manpage import Manpage

    others = subcommands_of(parser) if isinstance(parser, Parser) and parser.others else {}
    text, epilog = parser.description or "", parser.epilog or ""
    parser.description = parser.epilog = None  # set below, as they stand: there are lines to be kept
    parser.man_short_description = description  # type: ignore[attr-defined]
    page = Manpage(parser)
    page.date, page.manual = DATE, "pysave"
    page.source = f"pysave {saverestore.__version__}"
    # An apostrophe at the start of a line would be a request of troff's.
    lines = [f"\\&{line}" if line.startswith("'") else line for line in str(page).splitlines()]
    synopsis_at = lines.index(".SH SYNOPSIS")
    return "\n".join(
        [
            *lines[:synopsis_at],
            section("SYNOPSIS", usage_of(parser)),
            section("DESCRIPTION", text),
            *options_in(lines),
            *(line for one in others.values() for line in other_command(one)),
            *(section(*one) for one in sections_of(epilog)),
            section("AUTHORS", "the pysave developers"),
            "",
        ]
    )


def usage_of(parser: argparse.ArgumentParser) -> str:
    """The command line in one line."""
    return f"{parser.prog} {' '.join(parser.format_usage().split()).removeprefix(f'usage: {parser.prog} ')}"


def options_in(lines: list[str]) -> list[str]:
    """Arguments and options, of a page that argparse-manpage made."""
    begin = lines.index(".SH SYNOPSIS") + 3  # set anew: older releases cut it at a colon
    found = [line for line in lines[begin:] if line]
    return [*([".SH ARGUMENTS"] if found[0] == ".TP" else []), *found]


def other_command(parser: argparse.ArgumentParser) -> list[str]:
    """What the page of a command has of another that is called by its name and a word, but for the exit codes."""
    lines = man_page(parser, parser.prog, "").splitlines()
    begin, codes, end = (lines.index(f".SH {title}") for title in ("DESCRIPTION", "EXIT STATUS", "AUTHORS"))
    after = next((at for at in range(codes + 1, end) if lines[at].startswith(".SH ")), end)
    parts = [line.replace(".SH ", ".SS ", 1) for line in lines[begin + 1 : codes] + lines[after:end]]
    return [section(parser.prog.upper(), usage_of(parser)), ".PP", *parts]


TITLES = {
    "examples": "EXAMPLES",
    "exit codes": "EXIT STATUS",
    "other commands": "OTHER COMMANDS",
    "settings": "SETTINGS",
}
"""By the words up to a comma of a line that ends with a colon."""


def sections_of(epilog: str) -> Iterator[tuple[str, str]]:
    """An epilog's parts, titles and texts: one of TITLES begins one; all else stands in NOTES, the last."""
    notes = []
    for paragraph in re.split(r"\n\n+", epilog.strip("\n")):
        first, _, rest = paragraph.partition("\n")
        title = TITLES.get(first.rstrip(":").partition(",")[0]) if first.endswith(":") else None
        if title is None:
            notes.append(paragraph)
        else:
            yield title, rest if title != "SETTINGS" else paragraph
    if notes:
        yield "NOTES", "\n\n".join(notes)


def section(title: str, text: str) -> str:
    """A section of a man page: paragraphs are filled, indented lines are kept as they are."""
    lines = [f".SH {title}"]
    is_kept = False
    for line in text.rstrip("\n").split("\n"):
        keeps = line.startswith(" ")
        if keeps != is_kept:
            lines.append(".nf" if keeps else ".fi")
            is_kept = keeps
        # A dot or an apostrophe at the start of a line would be a request.
        escaped = line.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
        lines.append(escaped if not escaped.startswith(".") else f"\\&{escaped}")
        if not line:
            lines[-1] = ".PP" if not keeps else ""
    return "\n".join([*lines, *([".fi"] if is_kept else [])])
