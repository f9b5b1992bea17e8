"""What an administrator may set for the helper: `xl` has no way to pass options on, so a file and variables do.

    # /etc/xen/pysave.toml               variable
    dirty = "auto"                       PYXC_DIRTY          auto, log or digest
    max_rounds = 0                       PYXC_MAX_ROUNDS     live rounds at most; 0: 5, or 30 with one of the next
    downtime_ms = 0                      PYXC_DOWNTIME_MS    suspend when the rest is expected to fit; 0: no such aim
    on_stall = "stop"                    PYXC_ON_STALL       stop, abort or throttle when rounds no longer help
    max_time = 0                         PYXC_MAX_TIME       no live round is begun after so many seconds; 0: any time
    few_pages = 50                       PYXC_FEW_PAGES      suspend when fewer than this are left
    workers = 2                          PYXC_WORKERS        threads that read ahead
    check_cpu = true                     PYXC_CHECK_CPU      refuse images for a CPU that this host cannot give
    plain = false                        PYXC_PLAIN          none of our optional records
    digest = "xxh3"                      PYXC_DIGEST         xxh3, sha256, blake3 or none; plain leaves it out
    log_level = "info"                   PYXC_LOG_LEVEL      debug, info or warning: what is told to `xl`

A variable goes before the file. PYXC_CONFIG names another file; that one must exist, the usual one need not.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from saverestore.engine.policy import Limits, OnStall
from saverestore.errors import UsageError
from saverestore.stream.digest_algorithms import DEFAULT_DIGEST, DIGEST_OPTIONS

CONFIG = Path("/etc/xen/pysave.toml")
VARIABLE_PREFIX = "PYXC_"
CONFIG_VARIABLE = f"{VARIABLE_PREFIX}CONFIG"

CHOICES = {
    "dirty": ("auto", "log", "digest"),
    "digest": DIGEST_OPTIONS,
    "log_level": ("debug", "info", "warning"),
    "on_stall": tuple(one.value for one in OnStall),
}
DAY_S = 24 * 60 * 60
LEAST = {"max_rounds": 0, "downtime_ms": 0, "max_time": 0, "few_pages": 0, "workers": 1}
MOST = {
    "max_rounds": 1000,
    "downtime_ms": DAY_S * 1000,
    "max_time": DAY_S,
    "few_pages": 1 << 32,
    "workers": 64,
}
TRUTH = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}


@dataclass(frozen=True)
class Settings:
    """See above."""

    dirty: str = "auto"
    max_rounds: int = 0
    downtime_ms: int = 0
    on_stall: str = "stop"
    max_time: int = 0
    few_pages: int = 50
    workers: int = 2
    check_cpu: bool = True
    plain: bool = False
    digest: str = DEFAULT_DIGEST
    log_level: str = "info"

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


NAMES = tuple(field.name for field in fields(Settings))


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings in force. UsageError naming file or variable for what they cannot be."""
    settings = _from_file(environment.get(CONFIG_VARIABLE))
    for name in NAMES:
        variable = VARIABLE_PREFIX + name.upper()
        if (text := environment.get(variable)) is not None:
            settings = replace(settings, **{name: _checked(name, _parsed(name, text), f"${variable}")})
    return settings


def _from_file(asked_for: str | None) -> Settings:
    path = Path(asked_for) if asked_for else CONFIG
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if asked_for:
            raise UsageError(f"{path}: no such file (${CONFIG_VARIABLE} names it)") from None
        return Settings()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    unknown = sorted(found.keys() - set(NAMES))
    if unknown:
        raise UsageError(f"{path}: there is no setting {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return Settings(**{name: _checked(name, value, str(path)) for name, value in found.items()})


def _parsed(name: str, text: str) -> Any:
    """A variable's text as the type its setting has; as it is when it cannot be, for `_checked` to refuse."""
    if name in LEAST:
        return int(text) if text.strip().isdecimal() else text
    return text if name in CHOICES else TRUTH.get(text.strip().lower(), text)


def _checked(name: str, value: Any, place: str) -> Any:
    if name in CHOICES:
        good, wanted = value in CHOICES[name], " or ".join(CHOICES[name])
    elif name in LEAST:
        good = type(value) is int and LEAST[name] <= value <= MOST[name]
        wanted = f"a number from {LEAST[name]} to {MOST[name]}"
    else:
        good, wanted = isinstance(value, bool), "true or false"
    if not good:
        raise UsageError(f"{place}: {name} is {value!r}, but must be {wanted}")
    return value
