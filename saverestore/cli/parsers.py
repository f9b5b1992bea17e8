"""The parser of each command, for what is made of them: man pages, completion, the reference pages.

No command is loaded to run; nothing heavy is imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from saverestore.cli import helper, pyrestore, pysave, watch
from saverestore.cli.arguments import Parser
from saverestore.cli.pyimage import command as pyimage
from saverestore.cli.pymigrate import command as pymigrate

COMMANDS: dict[str, tuple[Callable[[], Parser], str]] = {
    "pysave": (pysave.command_parser, "save a running Xen domain to a file or pipe"),
    "pyrestore": (pyrestore.command_parser, "restore a Xen domain from an image"),
    "pyimage": (pyimage.command_parser, "look into images of Xen domains"),
    "pymigrate": (pymigrate.command_parser, "move a running Xen domain to another host"),
    "pysave-helper": (helper.command_parser, "run xl save, restore and migrate on pysave's engine"),
    "pysave-watch": (watch.command_parser, "watch a restored Xen domain"),
}
"""By the command's name: what makes its parser, and its one line in whatis(1)."""


def subcommands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the subcommands, by name: argparse's own, or `Parser.others`; none of a command without."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    others = parser.others if isinstance(parser, Parser) else {}
    return {word: make() for word, make in others.items()}


def parser_of_table(name: str) -> Parser:
    """The parser of the command whose settings are in this table: "pymigrate", "pymigrate-receive"."""
    program, _, subcommand = name.partition("-")
    parser = COMMANDS[program][0]()
    return parser.others[subcommand]() if subcommand else parser
