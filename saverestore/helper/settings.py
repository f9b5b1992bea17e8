"""What an administrator may set for the helper: `xl` has no way to pass options on, so a file and variables do.

Each setting is one field of `Settings`: its name (in the file; as a variable PYSAVE_ and the name in capitals), its
default, the values it may have, and its line of help. A variable goes before the file. PYSAVE_CONFIG names another
file; that one must exist, the usual one need not. Tables of the file are settings of commands, see `cli/settings.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from saverestore.engine.policy import Limits, OnStall
from saverestore.errors import UsageError
from saverestore.stream.digest_algorithms import DEFAULT_DIGEST, DIGEST_OPTIONS

CONFIG = Path("/etc/xen/pysave.toml")
VARIABLE_PREFIX = "PYSAVE_"
CONFIG_VARIABLE = f"{VARIABLE_PREFIX}CONFIG"

TABLES = ("pysave", "pyrestore", "pymigrate", "pymigrate-receive")
"""Of the commands that have settings of their own there."""

DAY_S = 24 * 60 * 60

MOST_DIGITS = 20
"""Of a number: no setting may have as many."""


class Kind(Protocol):
    """The values that a setting may have."""

    @property
    def wanted(self) -> str:
        """What it must be, in words."""

    def accepts(self, value: Any) -> bool:
        """Whether it may be this."""

    def parse(self, text: str) -> Any:
        """A variable's text as such a value; as it is where that cannot be, and then not accepted."""


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    @property
    def wanted(self) -> str:
        """See Kind."""
        return " or ".join(self.words)

    def accepts(self, value: Any) -> bool:
        """See Kind."""
        return value in self.words

    def parse(self, text: str) -> Any:
        """See Kind."""
        return text


@dataclass(frozen=True)
class Number:
    """A whole number within bounds, both included."""

    least: int
    most: int

    @property
    def wanted(self) -> str:
        """See Kind."""
        return f"a number from {self.least} to {self.most}"

    def accepts(self, value: Any) -> bool:
        """See Kind. A truth value is an int to Python, and not one here."""
        return type(value) is int and self.least <= value <= self.most

    def parse(self, text: str) -> Any:
        """See Kind."""
        digits = text.strip()
        # Python refuses to read very long numbers.
        return int(digits) if digits.isdecimal() and len(digits) <= MOST_DIGITS else text


@dataclass(frozen=True)
class Switch:
    """On or off."""

    wanted = "true or false"

    def accepts(self, value: Any) -> bool:
        """See Kind."""
        return isinstance(value, bool)

    def parse(self, text: str) -> Any:
        """See Kind."""
        words = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}
        return words.get(text.strip().lower(), text)


def _setting(default: Any, kind: Kind, help: str) -> Any:
    return field(default=default, metadata={"kind": kind, "help": help})


ON_STALL = tuple(one.value for one in OnStall)


@dataclass(frozen=True)
class Settings:
    """The settings in force. In a line of help, {words} stands for those of a Choice."""

    dirty: str = _setting(
        default="auto",
        kind=Choice(("auto", "log", "digest")),
        help="how dirty pages are tracked: {words}",
    )
    max_rounds: int = _setting(
        default=0,
        kind=Number(0, 1000),
        help="the largest number of live rounds; 0: 5, or 30 with downtime_ms or throttle",
    )
    downtime_ms: int = _setting(
        default=0,
        kind=Number(0, DAY_S * 1000),
        help="suspend the domain when the predicted downtime is at most this; 0: no such aim",
    )
    on_stall: str = _setting(
        default="stop",
        kind=Choice(ON_STALL),
        help="when more rounds do not help: stop (suspend the domain), abort or throttle",
    )
    max_time: int = _setting(
        default=0,
        kind=Number(0, DAY_S),
        help="start no live round after this many seconds; 0: no limit",
    )
    few_pages: int = _setting(
        default=50,
        kind=Number(0, 1 << 32),
        help="suspend the domain when fewer dirty pages than this are left",
    )
    workers: int = _setting(
        default=2,
        kind=Number(1, 64),
        help="threads that read ahead",
    )
    check_cpu: bool = _setting(
        default=True,
        kind=Switch(),
        help="refuse images that need CPU features which this host lacks",
    )
    plain: bool = _setting(
        default=False,
        kind=Switch(),
        help="write none of our optional records, the digest included",
    )
    digest: str = _setting(
        default=DEFAULT_DIGEST,
        kind=Choice(DIGEST_OPTIONS),
        help="the digest of the image: {words}",
    )
    log_level: str = _setting(
        default="info",
        kind=Choice(("debug", "info", "warning")),
        help="the least severe messages that xl prints: {words}",
    )

    @property
    def limits(self) -> Limits:
        """Those of a live save."""
        return Limits(
            max_rounds=self.max_rounds or None,
            few_pages=self.few_pages,
            max_time_s=self.max_time or None,
            downtime_s=self.downtime_ms / 1000 or None,
            on_stall=OnStall(self.on_stall),
        )


KINDS: dict[str, Kind] = {one.name: one.metadata["kind"] for one in fields(Settings)}


def table() -> str:
    """A line for each setting: as in the file, with its default; its variable; what it does."""
    lines = []
    for one in fields(Settings):
        kind, text = one.metadata["kind"], one.metadata["help"]
        if isinstance(kind, Choice):
            text = text.format(words=f"{', '.join(kind.words[:-1])} or {kind.words[-1]}")
        lines.append((f"{one.name} = {json.dumps(one.default)}", _variable_of(one.name), text))
    widths = [max(len(line[at]) for line in lines) for at in (0, 1)]
    return "".join(
        f"  {left:{widths[0]}}  {variable:{widths[1]}}  {text}\n" for left, variable, text in lines
    )


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings in force. UsageError naming file or variable for what they cannot be."""
    settings = _from_file(environment)
    for name, kind in KINDS.items():
        variable = _variable_of(name)
        if (text := environment.get(variable)) is not None:
            settings = replace(settings, **{name: _checked(name, kind.parse(text), f"${variable}")})
    return settings


def _variable_of(name: str) -> str:
    return VARIABLE_PREFIX + name.upper()


def read_file(environment: Mapping[str, str]) -> tuple[Path, dict[str, Any]]:
    """The settings file, and what is in it: nothing where there is none. UsageError for what cannot be in it."""
    asked_for = environment.get(CONFIG_VARIABLE)
    path = Path(asked_for) if asked_for else CONFIG
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        if asked_for:
            raise UsageError(f"{path}: no such file (${CONFIG_VARIABLE} names it)") from None
        return path, {}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8, at byte {error.start}") from error
    import tomllib  # most hosts have no such file

    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # no TOML, too long a number, brackets in brackets
        raise UsageError(f"{path}: {error}") from error
    unknown = sorted(found.keys() - KINDS.keys() - set(TABLES))
    if unknown:
        tables = ", ".join(f"[{name}]" for name in TABLES)
        raise UsageError(
            f"{path}: there is no setting {', '.join(unknown)}; there are {', '.join(KINDS)}, and tables {tables}"
        )
    return path, found


def _from_file(environment: Mapping[str, str]) -> Settings:
    path, found = read_file(environment)
    own = {name: value for name, value in found.items() if name not in TABLES}
    return Settings(**{name: _checked(name, value, str(path)) for name, value in own.items()})


def _checked(name: str, value: Any, place: str) -> Any:
    if not KINDS[name].accepts(value):
        shown = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str)
        raise UsageError(f"{place}: {name} is {shown}, but must be {KINDS[name].wanted}")
    return value
