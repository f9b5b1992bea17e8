"""Reference pages made of the code: options of the commands' parsers, settings, exit codes, names of errors.

They are files of the repository, so that they can be read without a build; a test fails when one is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import groupby
from textwrap import dedent

from saverestore.cli.arguments import OUTPUT, Parser, finish, words_of
from saverestore.cli.certificates import add_allow, add_certificates
from saverestore.cli.pages import sections_of
from saverestore.cli.parsers import COMMANDS, parser_of_table, subcommands_of
from saverestore.cli.pyimage.common import DIFFERENT, DIFFERENT_MEANING
from saverestore.cli.settings import OPTIONS, actions_of
from saverestore.errors import ErrorName, ExitCode
from saverestore.helper.settings import CONFIG, CONFIG_VARIABLE, VARIABLE_PREFIX, Choice, Settings

NOTE = "<!-- Made by tools/docs of the code: change it there. -->\n"
CERTIFICATES = frozenset({"cert", "key", "ca", "allow"})
"""Options whose texts are the same in all commands that have them."""


def commands_page() -> str:
    """docs/reference/commands.md: every command: description, options, examples and notes."""
    lines = [NOTE, "# Commands\n"]
    lines.append(
        "Every command has `--help`, and a man page after an install. Files are made with mode 0600, whole "
        "or not at all; "
        "`--overwrite` replaces one. A mistake on the command line is one line, and exit code 2. "
        "Messages go to standard error; results (JSON, domain numbers, lists, an image to `-`) go to standard "
        "output. What the exit codes mean: [exit codes and error names](errors.md).\n"
    )
    lines += _of_all_commands()
    for name, (make, _) in COMMANDS.items():
        parser = make()
        lines += [f"## {name}\n", *_command(parser, "###")]
        for sub, command in subcommands_of(parser).items():
            lines += [f"### {name} {sub}\n", *_command(command, "####")]
    return "\n".join(lines)


def _of_all_commands() -> Iterator[str]:
    """What would be the same in the table of each command: its last group, and the files for TLS."""
    common = Parser(add_help=False)
    finish(common)
    certificates = Parser(add_help=False).add_argument_group()
    add_certificates(certificates)
    add_allow(certificates)
    yield "## Options of all commands\n"
    yield "`-q` and `-v` are not for `pyimage` and `pysave-helper`.\n"
    yield from _table("option", _shown(common._action_groups[-1]))
    yield "## Certificates\n"
    yield (
        "The files for TLS, of each command whose table names them. They are explained in "
        "[migrate](../how-to/migrate.md#over-tls-without-ssh).\n"
    )
    yield from _table("option", _shown(certificates))


def _command(parser: argparse.ArgumentParser, heading: str) -> Iterator[str]:
    yield from _paragraphs(str(parser.description))
    yield f"```\n{_usage(parser)}\n```\n"
    parts = list(sections_of(parser.epilog or ""))
    yield from (f"```\n{dedent(text).strip()}\n```\n" for title, text in parts if title == "EXAMPLES")
    for group in parser._action_groups:
        shown = _shown(group)
        title = str(group.title)
        if title == OUTPUT or {action.dest for action in shown} <= {"help", "version"}:
            continue
        yield f"{heading} {title[0].upper()}{title[1:]}: {parser.prog}\n"
        if group.description:
            yield from _paragraphs(group.description)
        yield from _table("argument" if title == "arguments" else "option", shown, merged=CERTIFICATES)
    if any(title == "SETTINGS" for title, _ in parts):
        yield "Its settings are in [settings](settings.md).\n"
    notes = [text for title, text in parts if title == "NOTES"]
    if notes:
        yield f"{heading} Notes: {parser.prog}\n"
        yield from (line for text in notes for line in _paragraphs(text))


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs as one line each; indented lines are kept as they are, in a block of code."""
    for paragraph in re.split(r"\n\n+", text.strip("\n")):
        for is_kept, lines in groupby(paragraph.split("\n"), lambda line: line.startswith(" ")):
            part = "\n".join(lines)
            yield f"```\n{dedent(part)}\n```\n" if is_kept else f"{' '.join(part.split())}\n"


def _shown(group: argparse._ArgumentGroup) -> list[argparse.Action]:
    return [
        action
        for action in group._group_actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction)
    ]


def _table(first: str, actions: list[argparse.Action], merged: frozenset[str] = frozenset()) -> Iterator[str]:
    """A row for each action, and one for all of those `merged`, where the first of them would be."""
    yield f"| {first} | |\n|---|---|"
    together = [action for action in actions if action.dest in merged]
    for action in actions:
        if action not in together:
            yield f"| {_invocation(action)} | {_cell(str(action.help).replace('%%', '%'))} |"
        elif action is together[0]:
            yield f"| {', '.join(map(_invocation, together))} | see [certificates](#certificates) |"
    yield ""


def _usage(parser: argparse.ArgumentParser) -> str:
    places = []
    for action in parser._actions:
        if not action.option_strings and action.help != argparse.SUPPRESS:
            name = "COMMAND ..." if action.dest == argparse.SUPPRESS else str(action.metavar)
            places.append(
                f"[{name}]"
                if action.nargs == "?"
                else f"{name} ..."
                if action.nargs == "+"
                else f"[{name} ...]"
                if action.nargs == "*"
                else name
            )
    required = [
        f"{action.option_strings[0]} {action.metavar}"
        for action in parser._actions
        if action.option_strings and action.required
    ]
    return " ".join([parser.prog, *required, "[OPTIONS]", *places])


def _invocation(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar}`"
    value = "|".join(map(str, action.choices)) if action.choices else action.metavar
    names = ", ".join(action.option_strings)
    return "`" + _cell(names if action.nargs == 0 else f"{names} {value}") + "`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def settings_page() -> str:
    """docs/reference/settings.md: what an administrator may set for the helper and for commands."""
    lines = [NOTE, "# Settings\n"]
    lines.append(
        "When xl starts `pysave-helper`, it cannot pass our options. So its settings are in "
        f"`{CONFIG}`, or in the file that `${CONFIG_VARIABLE}` names, or in variables: `{VARIABLE_PREFIX}` and the "
        "name in capitals. A variable takes precedence over the file. `pysave-helper --check` prints the settings "
        "in force.\n"
    )
    lines += ["| setting and default | variable | |", "|---|---|---|"]
    for one in fields(Settings):
        kind, text = one.metadata["kind"], one.metadata["help"]
        if isinstance(kind, Choice):
            text = text.format(words=words_of(kind.words))
        lines.append(
            f"| `{one.name} = {json.dumps(one.default)}` | `{VARIABLE_PREFIX}{one.name.upper()}` | {_cell(text)} |"
        )
    lines += ["", *_settings_of_commands()]
    return "\n".join(lines) + "\n"


def _settings_of_commands() -> Iterator[str]:
    yield "## Of the commands\n"
    yield (
        "`pysave`, `pyrestore`, `pymigrate` and `pymigrate receive` have a table each in the same file. A setting "
        "is the default of an option, by the option's name with `_` for `-`; the command line takes precedence over "
        "it. A setting that does not apply is left out: `max_rounds` of a save that is not live, `compress` with a "
        "`--format` that compresses. A name that is not known is an error. `pymigrate recover` takes "
        "`cert`, `key` and `ca` of `[pymigrate]`.\n"
    )
    yield (
        "```toml\n"
        'digest = "sha256"            # of the helper\n\n'
        "[pysave]\n"
        'compress = "zstd:3"\n'
        "downtime_ms = 300\n\n"
        "[pymigrate]\n"
        'on_stall = "throttle"\n'
        "```\n"
    )
    yield "| table | settings: what they mean is in [commands](commands.md) |\n|---|---|"
    for name in OPTIONS:
        keys = ", ".join(f"`{key}`" for key, _ in actions_of(parser_of_table(name)))
        yield f"| `[{name}]` | {keys} |"


def errors_page() -> str:
    """docs/reference/errors.md: exit codes and names of errors."""
    lines = [NOTE, "# Exit codes and error names\n", "## Exit codes\n"]
    lines += ["| exit code | |", "|---|---|"]
    codes = [
        *((int(code), code.meaning) for code in ExitCode),
        (DIFFERENT, f"`pyimage diff`: {DIFFERENT_MEANING}"),
    ]
    lines += [f"| {code} | {meaning} |" for code, meaning in sorted(codes)]
    lines.append(
        "\n`pyimage verify` of several images exits with the code of the first that is not whole; a command for "
        "several domains with that of the first that failed, or with 130 if that one was ended or not started "
        "because of `--within`. A dry run exits as the real command would. `pysave-helper`, when libxl starts it, "
        "exits with 0 as soon as libxl has the result, also of a failure.\n\n## Names of errors\n\n"
        "The exit code says whose fault a failure is. `error_name` in a [report](report.md) says more exactly "
        "what failed. One name may come with several exit codes: a package that is missing makes an option a "
        "wrong one (2), and an image one that cannot be read (4). Texts may change with any version. A name keeps "
        "its meaning; new names may be added, so a program should be ready for one that it does not know.\n"
    )
    lines += ["| name | meaning |", "|---|---|", *(f"| `{one.value}` | {one.meaning} |" for one in ErrorName)]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/commands.md": commands_page,
    "docs/reference/settings.md": settings_page,
    "docs/reference/errors.md": errors_page,
}
"""By the file's name in the repository."""
