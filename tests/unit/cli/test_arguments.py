"""What every command's line is read by."""

from __future__ import annotations

import pytest

from saverestore.cli import pysave, settings, watch
from saverestore.cli.parsers import COMMANDS, subcommands_of


@pytest.mark.parametrize("words", [["--ready-fd", "5", "--", "-web1"], ["--", "-web1"]])
def test_what_follows_two_hyphens_is_no_option(words):
    assert watch.command_parser().parse_args(words).domain == "-web1"


@pytest.mark.parametrize(
    "words", [["--live", "--", "-web1", "a.img"], ["--", "-web1", "a.img"], ["--live", "--", "-web1", "-"]]
)
def test_a_domain_whose_name_begins_with_a_hyphen_can_be_named(words):
    given = settings.parse(pysave.command_parser(), words)
    assert (given.domain, given.image, given.live) == ("-web1", words[-1], "--live" in words)


def test_two_hyphens_that_shield_nothing_change_nothing():
    given = settings.parse(pysave.command_parser(), ["web1", "--live", "--", "a.img"])
    assert (given.domain, given.image, given.live) == ("web1", "a.img", True)


def test_an_argument_before_options_and_two_hyphens_is_a_mistake_that_is_explained(capsys):
    with pytest.raises(SystemExit):
        pysave.command_parser().parse_args(["web1", "--live", "--", "-a.img"])
    assert "options must come before all arguments where '--' is used" in capsys.readouterr().err


def test_options_and_arguments_come_in_any_order():
    for words in (["web1", "--live", "a.img"], ["--live", "web1", "a.img"], ["web1", "a.img", "--live"]):
        given = pysave.command_parser().parse_args(words)
        assert (given.domain, given.image, given.live) == ("web1", "a.img", True)


def test_an_option_that_there_is_not_is_named(capsys):
    with pytest.raises(SystemExit):
        watch.command_parser().parse_args(["web1", "-web1"])
    assert "unknown option -web1" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_of_help_is_longer_than_a_wide_terminal(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = COMMANDS[name][0]()
    for one in [parser, *subcommands_of(parser).values()]:
        assert [line for line in one.format_help().splitlines() if len(line) > 120] == []
