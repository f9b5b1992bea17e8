"""Words for remedies: each command has some for each, and names only options and settings that there are."""

from __future__ import annotations

import json
import logging
import re

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.cli import common
from saverestore.cli.parsers import COMMANDS as COMMAND_PARSERS
from saverestore.cli.parsers import subcommands_of
from saverestore.cli.remedies import (
    ANYWHERE,
    COMMANDS,
    DECOMPRESSORS,
    HELPER,
    OWN,
    PYIMAGE,
    PYMIGRATE,
    in_full,
    words,
)
from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    ImageError,
    Remedy,
    SaveRestoreError,
    TransportError,
    advise,
    name_of,
    remedies_of,
)
from saverestore.helper.settings import KINDS, VARIABLE_PREFIX
from saverestore.toolstack.helper_link import HelperReport

OBJECTS = {
    Remedy.DECOMPRESS: tuple(DECOMPRESSORS),
    Remedy.PLUG_ALL_VCPUS: ("7 4",),
    Remedy.SAVE_WITHOUT_DEVICES: (None, "xl restore"),
    Remedy.MAKE_SEEKABLE: ("web1.img",),
    Remedy.CONVERT_TO_XEN: ("web1.img",),
}
"""What stands for the object of an Advice here; 7 for the others."""

OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
QUOTED = re.compile(r"'([^']+)'")


def options_of(prog: str) -> set[str]:
    """All options of a command of ours; those of its subcommands, each as "SUBCOMMAND OPTION", too."""
    parser = COMMAND_PARSERS[prog][0]()
    found = set(parser._option_string_actions)
    for name, sub in subcommands_of(parser).items():
        found |= set(sub._option_string_actions)
        found |= {f"{name} {option}" for option in sub._option_string_actions}
    return found


def named_in(sentence: str, prog: str) -> list[tuple[str, str]]:
    """The options that a sentence names, each with the command of ours that it must belong to."""
    found = [(prog, option) for option in OPTION.findall(QUOTED.sub("", sentence))]
    for line in (part for quoted in QUOTED.findall(sentence) for part in quoted.split("|")):
        program, *rest = line.split()
        if program not in COMMANDS:
            assert not program.startswith("-"), f"{sentence}: whose option is it?"
            continue
        is_subcommand = program in (PYIMAGE, PYMIGRATE) and rest[0].isalpha()
        subcommand = f"{rest[0]} " if is_subcommand else ""
        found += [(program, f"{subcommand}{option}") for option in OPTION.findall(line)]
    return found


EACH = [
    (prog, advice)
    for prog in COMMANDS
    for remedy in Remedy
    for advice in (Advice(remedy, thing) for thing in OBJECTS.get(remedy, (7,)))
]


@pytest.mark.parametrize("prog", COMMANDS)
def test_every_command_has_words_for_every_remedy(prog):
    sentences = [words(advice, prog) for of, advice in EACH if of == prog]
    assert [one for one in sentences if len(one) < 8 or "{" in one or "None" in one] == []


def test_every_option_in_the_words_is_one_of_the_command_that_it_is_said_of():
    absent = [
        (prog, advice, whose, option)
        for prog, advice in EACH
        for whose, option in named_in(words(advice, prog), prog)
        if option not in options_of(whose)
    ]
    assert absent == []


def test_an_option_that_there_is_not_would_be_found():
    (one,) = named_in("--toolstak bare does without", "pysave")
    assert one == ("pysave", "--toolstak")
    assert "--toolstak" not in options_of("pysave")
    assert named_in("'pyimage dump --codec x' does", "pysave") == [("pyimage", "dump --codec")]
    assert "dump --codec" not in options_of("pyimage")
    assert "convert --codec" in options_of("pyimage")


def test_every_setting_in_the_words_of_the_helper_is_one_that_it_has():
    said = " ".join(OWN[HELPER].values())
    settings = re.findall(rf"{VARIABLE_PREFIX}\w+", said)
    assert settings
    assert {one.removeprefix(VARIABLE_PREFIX).lower() for one in settings} <= set(KINDS)


def test_only_the_helper_names_its_settings():
    others = [
        *ANYWHERE.values(),
        *(text for prog, own in OWN.items() if prog != HELPER for text in own.values()),
    ]
    assert [text for text in others if VARIABLE_PREFIX in text] == []


def test_the_line_is_the_fact_then_the_state_then_the_remedy():
    error = DomainError(
        "domain 7 is lost", name=ErrorName.DOMAIN_NEEDS_RECOVERY, remedies=[Advice(Remedy.RECOVER, 7)]
    )
    error.add_note("no image was left")
    assert str(error) == "domain 7 is lost"
    assert in_full(error, "pyrestore") == (
        "domain 7 is lost; no image was left; 'pysave --recover 7' repairs and resumes it"
    )


def test_any_exception_can_be_given_a_remedy():
    error = OSError(28, "No space left on device")
    advise(error, Advice(Remedy.TRY_AGAIN))
    advise(error, Advice(Remedy.RECOVER, 7))
    assert [one.remedy for one in remedies_of(error)] == [Remedy.TRY_AGAIN, Remedy.RECOVER]
    assert in_full(error, "pysave").endswith("; try again; 'pysave --recover 7' repairs and resumes it")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (OSError(28, ""), ErrorName.DISK_FULL),
        (BrokenPipeError(32, ""), ErrorName.PEER_CLOSED),
        (PermissionError(13, ""), ErrorName.PERMISSION_DENIED),
        (OSError(5, ""), ErrorName.IO_FAILED),
        (MemoryError(), ErrorName.OUT_OF_MEMORY),
        (ModuleNotFoundError("pyxc"), ErrorName.INSTALLATION_INCOMPLETE),
        (KeyError("x"), ErrorName.UNEXPECTED),
        (ImageError("x"), ErrorName.IMAGE_DAMAGED),
        (TransportError("x", name=ErrorName.DISK_FULL), ErrorName.DISK_FULL),
        (SaveRestoreError("x"), ErrorName.UNEXPECTED),
    ],
    ids=lambda value: str(value) if isinstance(value, ErrorName) else type(value).__name__,
)
def test_every_failure_has_a_name(error, name):
    assert name_of(error) is name


def test_file_names_in_a_command_line_can_be_copied_into_a_shell():
    assert "'my image.img'" in words(Advice(Remedy.MAKE_SEEKABLE, "my image.img"), "pyimage")


def test_a_warning_has_its_remedy_behind_it_too():
    record = logging.LogRecord("x", logging.WARNING, "", 1, "nothing watches %s", ("web1",), None)
    record.remedies = (Advice(Remedy.WATCH, 7),)
    line = common.WithRemedies("pyrestore", "pyrestore: %(mark)s%(message)s").format(record)
    assert line == "pyrestore: warning: nothing watches web1; 'pysave-watch 7' watches it"


def test_what_is_no_warning_is_not_called_one():
    record = logging.LogRecord("x", logging.INFO, "", 1, "round 1", (), None)
    assert common.WithRemedies("pysave", "pysave: %(mark)s%(message)s").format(record) == "pysave: round 1"


def test_the_helpers_failure_arrives_with_its_name_and_remedies_and_without_its_words():
    error = ImageError(
        "a CPU is needed",
        name=ErrorName.CPU_FEATURES_MISSING,
        remedies=[Advice(Remedy.RESTORE_ON_OTHER_CPU), Advice(Remedy.RECOVER, 7)],
    )
    error.add_note("no domain was left")
    report = json.loads(json.dumps(HelperReport(pages=5).failed(error).__dict__))
    arrived = HelperReport(**report).as_error()
    assert isinstance(arrived, ImageError)
    assert (arrived.name, arrived.remedies) == (error.name, error.remedies)
    assert str(arrived) == "a CPU is needed; no domain was left"
    assert "with --force all the same" in in_full(arrived, "pyrestore")
    assert "PYSAVE_CHECK_CPU=no" in in_full(arrived, HELPER)
