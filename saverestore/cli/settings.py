"""Settings of the commands: tables [pysave], [pyrestore], [pymigrate] and [pymigrate-receive] in the helper's file.

A setting is an option with a value, by its name with _ for -. The command line goes before it. A setting that does
not apply to what the command line asks for is left out without a word: `from_settings` has the names of those that
are in force.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saverestore.cli.arguments import Parser
from saverestore.errors import UsageError

_LIVE = ("dirty", "downtime_ms", "max_rounds", "max_time", "on_stall")
_FILES = ("cert", "key", "ca")
_MANY = ("parallel", "within", "on_failure")

OPTIONS: dict[str, tuple[str, ...]] = {
    "pysave": (
        *(
            "compress",
            "bwlimit",
            "cache",
            "digest",
            "format",
            "codec",
            "while_suspended",
            "suspend_timeout",
            "toolstack",
        ),
        *(*_LIVE, *_MANY, "if_unsaveable", *_FILES),
    ),
    "pyrestore": ("toolstack", *_MANY, *_FILES, "allow"),
    "pymigrate": (
        *(
            "bwlimit",
            "codec",
            "xor_cache",
            "resume_for",
            "silence",
            "suspend_timeout",
            "toolstack",
            "settle_for",
        ),
        *(*_LIVE, *_MANY, *_FILES),
    ),
    "pymigrate-receive": ("ports", "data_listen", *_FILES, "allow"),
}
"""By command: the options that may be set. Those without a value are not among them: nothing could unset them."""


def parse(parser: Parser, argv: Sequence[str] | None) -> Any:
    """The arguments, with the command's settings where the command line says nothing. Exits with code 2 for a
    mistake in either."""
    given = parser.parse_args(argv)
    given.from_settings = frozenset()
    if vars(given).get("recover"):  # a mistake in the file must keep no domain suspended
        return given
    try:
        found = settings_of(parser, os.environ)
    except UsageError as error:
        parser.error(str(error))
    if found:
        parser.set_defaults(**found)
        given = parser.parse_args(argv)
        given.from_settings = frozenset(
            name for name, value in found.items() if getattr(given, name) == value
        )
    return given


def settings_of(parser: Parser, environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a command, by where argparse puts its options. UsageError naming file and key."""
    place, table = _table(table_of(parser), environment)
    actions = dict(actions_of(parser))
    unknown = sorted(table.keys() - actions.keys())
    if unknown:
        raise UsageError(f"{place} has no setting {', '.join(unknown)}; there are {', '.join(actions)}")
    return {actions[key].dest: _value(actions[key], value, f"{place} {key}") for key, value in table.items()}


def certificates_of(parser: Parser, table_name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """--cert, --key and --ca by another command's table, as `settings_of`; what else is there is not looked at."""
    place, table = _table(table_name, environment)
    actions = _by_key(parser)
    return {
        actions[key].dest: _value(actions[key], table[key], f"{place} {key}")
        for key in _FILES
        if key in table
    }


def _table(name: str, environment: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """What errors call it, and what is in it."""
    from saverestore.helper.settings import read_file

    path, found = read_file(environment)
    table = found.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {name} must be a table, [{name}]")
    return f"{path}: [{name}]", table


def table_of(parser: Parser) -> str:
    """The name of a command's table."""
    return parser.prog.replace(" ", "-")


def actions_of(parser: Parser) -> Iterator[tuple[str, argparse.Action]]:
    """The options of a command that may be set, by their names in the file."""
    by_name = _by_key(parser)
    for key in OPTIONS.get(table_of(parser), ()):
        yield key, by_name[key]


def _by_key(parser: Parser) -> dict[str, argparse.Action]:
    return {_key(action): action for action in parser._actions if action.option_strings}


def _key(action: argparse.Action) -> str:
    return action.option_strings[-1].removeprefix("--").replace("-", "_")


def _value(action: argparse.Action, value: Any, place: str) -> Any:
    """As the same words on the command line would be read."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{place}: must be a text or a number")
    text = str(value)
    try:
        found = action.type(text) if callable(action.type) else text
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise UsageError(f"{place}: {error}") from error
    if action.choices is not None and found not in action.choices:
        raise UsageError(f"{place}: '{text}' is not one of: {', '.join(map(str, action.choices))}")
    return found
