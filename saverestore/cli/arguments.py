"""What the commands' parsers share: one line for a mistake, groups of options, exit codes, the version.

Nothing heavy is imported here: man pages, completion and the documentation are made of the parsers, also where
neither Xen nor numpy is installed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from saverestore.cli.version import version_text
from saverestore.errors import ExitCode

OUTPUT = "output"
"""The last group of every command."""

FILE = {"bash": "_shtab_compgen_files", "zsh": "_files"}
DOMAIN = {"bash": "_pysave_domains", "zsh": "_pysave_domains"}
MIGRATE = {"bash": "_pymigrate_words", "zsh": "_pymigrate_words"}
"""How a shell completes an argument, see `cli/pages.py`."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line that names the command's --help; exit code 2.

    Options and arguments may come in any order. What follows "--" is no option; where that matters, options come
    before all arguments.
    """

    others: Mapping[str, Callable[[], Parser]]
    """Commands that a first word stands for, beside what this parser reads: `pymigrate recover`. By that word."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self._positionals.title = "arguments"
        self.others = {}

    def parse_args(  # type: ignore[override]  # in the library it is overloaded; here all get a Namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """The arguments. Exits with code 2 for a mistake."""
        words = list(sys.argv[1:] if args is None else args)
        # Intermixed, argparse drops "--" and takes what follows for options.
        shielded = "--" in words and any(word.startswith("-") for word in words[words.index("--") + 1 :])
        if self._subparsers is not None or shielded:
            found, rest = self.parse_known_args(words, namespace)
        else:
            found, rest = self.parse_known_intermixed_args(words, namespace)
        if "--" in rest:
            self._of_command(words).error("options must come before all arguments where '--' is used")
        if rest:
            self._of_command(words).error(_unexpected(rest))
        return found

    def _of_command(self, words: Sequence[str]) -> argparse.ArgumentParser:
        """The parser of the subcommand that these words are of, whose --help has its options."""
        commands = self._subparsers._group_actions[0].choices if self._subparsers is not None else None
        named: dict[str, argparse.ArgumentParser] = dict(commands) if isinstance(commands, dict) else {}
        return next((named[word] for word in words if word in named), self)

    def error(self, message: str) -> NoReturn:
        """Print one line, and exit."""
        self.exit(ExitCode.USAGE, f"{self.prog.split()[0]}: {_plain(message)}; see '{self.prog} --help'\n")


def _unexpected(rest: Sequence[str]) -> str:
    options = [word for word in rest if word.startswith("-") and word != "-"]
    if options:
        return f"unknown option {options[0].partition('=')[0]}"
    return f"unexpected argument '{rest[0]}'"


_ARGPARSE = (
    (re.compile(r"^the following arguments are required: (?P<what>.*)$", re.S), r"\g<what> is missing"),
    (
        re.compile(r"^argument (?P<what>\S+): not allowed with argument (?P<other>\S+)$"),
        "{what} excludes {other}",
    ),
    (re.compile(r"^argument (?P<what>[^:]+): expected one argument$"), "{what} needs a value"),
    (
        re.compile(
            r"^argument (?P<what>[^:]+): invalid choice: '(?P<value>.*)' \(choose from (?P<words>.*)\)$", re.S
        ),
        "{what}: '{value}' is not one of: {words}",
    ),
    (re.compile(r"^argument (?P<what>[^:]+): (?P<text>.*)$", re.S), "{what}: {text}"),
)
"""What argparse says, and what we say instead."""


def _plain(message: str) -> str:
    for pattern, sentence in _ARGPARSE:
        if (found := pattern.match(message)) is None:
            continue
        if sentence.startswith("\\g"):
            return found.expand(sentence)
        parts = {
            name: text.rpartition("/")[2]
            for name, text in found.groupdict().items()
            if name in ("what", "other")
        }
        parts |= {name: text for name, text in found.groupdict().items() if name not in parts}
        if "words" in parts:
            parts["words"] = parts["words"].replace("'", "")
        return sentence.format(**parts)
    return message


def parser(prog: str, description: str, epilog: str, codes: str | None = None) -> Parser:
    """A parser without options; `finish` adds those that all commands have. `codes`: the text of the exit codes."""
    return Parser(
        prog=prog,
        description=description,
        epilog=f"{epilog}\n{exit_codes() if codes is None else codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )


def finish(made: argparse.ArgumentParser, *, verbosity: bool = True) -> None:
    """The group of options that every command has last: help and version, and how much is printed."""
    group = made.add_argument_group(OUTPUT)
    if verbosity:
        group.add_argument("-q", "--quiet", action="store_true", help="print only errors and warnings")
        group.add_argument(
            "-v",
            "--verbose",
            action="count",
            default=0,
            help="print more: once our steps and figures, twice libxc's messages",
        )
    group.add_argument("-h", "--help", action="help", help="print this text")
    group.add_argument("--version", action=Version, help="print the version, and which parts were compiled")


class Version(argparse.Action):
    """--version: what was built in is looked up when somebody asks."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None, **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it, and exit."""
        print(version_text(parser.prog.split()[0]))
        parser.exit()


def complete(action: argparse.Action, how: dict[str, str]) -> None:
    """Have shells complete an argument so: FILE, DOMAIN or MIGRATE, a domain or another command of pymigrate's."""
    action.complete = how  # type: ignore[attr-defined]


def exit_codes(codes: Iterable[ExitCode] = ExitCode, more: Sequence[tuple[int, str]] = ()) -> str:
    """The table of exit codes in --help; `more`: codes that are no failures."""
    table = sorted([*((int(code), code.meaning) for code in codes), *more])
    return "exit codes:\n" + "".join(f"  {code:<3}  {meaning}\n" for code, meaning in table)


def words_of(names: Sequence[str]) -> str:
    """Choices in a sentence: a, b or c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


# ---- values of options


def domain_name(text: str) -> str:
    """The name of a domain to be: UTF-8, as xenstore and libxl have it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"must be UTF-8, not {text!r}") from None
    return text


def seconds(text: str) -> float:
    """A time: a number of seconds greater than 0."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number greater than 0, not '{text}'")
    return found


def timeout(text: str) -> float:
    """A time to wait: at least a second."""
    found = seconds(text)
    if found < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 second, not '{text}'")
    return found


def seconds_or_0(text: str) -> float:
    """A time: a number of seconds, or 0."""
    return 0.0 if text == "0" else seconds(text)


def silence(text: str) -> float:
    """How long a peer may be silent: 2 to 600 seconds."""
    found = seconds(text)
    if not 2 <= found <= 600:
        raise argparse.ArgumentTypeError(f"must be from 2 to 600 seconds, not '{text}'")
    return found


def streams(text: str) -> int:
    """A number of connections."""
    if not text.isdecimal() or not 1 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 16, not '{text}'")
    return int(text)


def ports(text: str) -> tuple[int, int]:
    """A range of ports, LOW-HIGH, or one."""
    found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    low, high = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not 0 < low <= high < 1 << 16:
        raise argparse.ArgumentTypeError(
            f"must be a port or a range of ports, such as 8710-8725, not '{text}'"
        )
    return low, high


DSCP = {
    "le": 1,
    "ef": 46,
    **{f"cs{n}": 8 * n for n in range(8)},
    **{f"af{n}{drop}": 8 * n + 2 * drop for n in range(1, 5) for drop in range(1, 4)},
}
"""Names of classes (RFC 2474, 2597, 3246, 8622)."""


def mebibytes(text: str) -> int:
    """An amount of memory in MiB."""
    if not text.isdecimal() or not 1 <= int(text) <= 16384:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 16384, not '{text}'")
    return int(text)


def dscp(text: str) -> int:
    """A class for routers: 0 to 63, or its name."""
    if text.lower() in DSCP:
        return DSCP[text.lower()]
    if not text.isdecimal() or int(text) > 63:
        raise argparse.ArgumentTypeError(
            f"must be from 0 to 63, or one of cs0 to cs7, af11 to af43, ef, le, not '{text}'"
        )
    return int(text)


def milliseconds(text: str) -> float:
    """A time in milliseconds, as seconds."""
    return seconds(text) / 1000


def days(text: str) -> int:
    """A number of days."""
    if not text.isdecimal() or not 1 <= int(text) <= 36500:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 36500, not '{text}'")
    return int(text)


def rounds(text: str) -> int:
    """A number of live rounds."""
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 1000, not '{text}'")
    return int(text)


_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(?:([kKMG])(i?))?(B|bit)/s", re.ASCII)
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3}
SMALLEST_RATE = 64 << 10
"""As `transport.paced.SMALLEST_RATE`, which is not loaded to print a help text; a test holds the two together."""


def rate(text: str) -> int:
    """A rate in bytes or bits per second, as bytes per second: 50MiB/s, 400Mbit/s."""
    found = _RATE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be a rate such as 50MiB/s, 50MB/s or 400Mbit/s, not '{text}'")
    number, prefix, binary, unit = found.groups()
    base = 1024 if binary else 1000
    per_second = int(float(number) * base ** _POWERS[prefix or ""]) // (8 if unit == "bit" else 1)
    if per_second < SMALLEST_RATE:
        raise argparse.ArgumentTypeError(f"must be at least 64KiB/s, not '{text}'")
    return per_second


def rate_or_none(text: str) -> int | None:
    """The same, or no limit."""
    return None if text == "none" else rate(text)


ZSTD_LEVELS = range(1, 20)
_ZSTD = re.compile(r"zstd(?::([0-9]{1,2}))?", re.ASCII)


def zstd_level(text: str) -> int:
    """The level in "zstd" or "zstd:LEVEL"."""
    found = _ZSTD.fullmatch(text)
    level = int(found[1] or 1) if found else 0
    if level not in ZSTD_LEVELS:
        raise argparse.ArgumentTypeError(f"must be zstd, or zstd:1 to zstd:{ZSTD_LEVELS[-1]}, not '{text}'")
    return level


def zstd_level_or_none(text: str) -> int | None:
    """The same, or no compression."""
    return None if text == "none" else zstd_level(text)
