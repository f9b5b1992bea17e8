"""What every command's line is read by."""

from __future__ import annotations

import pytest

from saverestore.cli import pysave, watch


@pytest.mark.parametrize("words", [["--ready-fd", "5", "--", "-web1"], ["--", "-web1"]])
def test_what_follows_two_hyphens_is_no_option(words):
    assert watch.command_parser().parse_args(words).domain == "-web1"


def test_options_and_arguments_come_in_any_order():
    for words in (["web1", "--live", "a.img"], ["--live", "web1", "a.img"], ["web1", "a.img", "--live"]):
        given = pysave.command_parser().parse_args(words)
        assert (given.domain, given.image, given.live) == ("web1", "a.img", True)


def test_an_option_that_there_is_not_is_named(capsys):
    with pytest.raises(SystemExit):
        watch.command_parser().parse_args(["web1", "-web1"])
    assert "unknown option -web1" in capsys.readouterr().err
