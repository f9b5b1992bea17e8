"""`pymigrate --all HOST` and `pymigrate D1 D2 HOST`: what is asked for, the processes, the summary."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.cli.many import Result
from saverestore.cli.pymigrate import command, several
from saverestore.errors import ExitCode


def parsed(*words):
    return command.command_parser().parse_args(list(words))


@pytest.mark.parametrize(
    ("words", "domains", "host"),
    [
        (["web1", "hostb"], ["web1"], "hostb"),
        (["web1", "web2", "hostb"], ["web1", "web2"], "hostb"),
        (["web1", "--dirty", "log", "web2", "-p", "hostb"], ["web1", "web2"], "hostb"),
        (["--all", "hostb"], [], "hostb"),
    ],
)
def test_the_last_argument_is_the_host(words, domains, host):
    given = parsed(*words)
    assert (given.domains, given.host) == (domains, host)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hostb"], "DOMAIN or HOST is missing"),
        (["--all", "web1", "hostb"], "--all excludes DOMAIN"),
        (["web1", "web2", "web1", "hostb"], "web1 is named twice"),
        (["--name", "x", "web1", "web2", "hostb"], "--name is for one domain only"),
        (["--all", "--events", "3", "hostb"], "--events is for one domain only"),
        (["--all", "--report", "a.json", "hostb"], "--report is for one domain only"),
        (["--parallel", "3", "web1", "hostb"], "--parallel needs --all or several domains"),
        (["--on-failure", "stop", "web1", "hostb"], "--on-failure needs --all or several domains"),
        (["--json", "--events", "1", "web1", "hostb"], "--json and --events 1 cannot both go to standard output"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_the_number_of_domains_are_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert caught.value.code == ExitCode.USAGE
    assert said in capsys.readouterr().err


class Ended:
    """A migration that has ended like this."""

    def __init__(self, code, out="", error=""):
        self._code, self._printed = code, (out, error)

    def poll(self):
        return self._code

    def terminate(self):
        pass

    def output(self):
        return self._printed


def test_each_domain_gets_a_line_and_a_failure_is_the_exit_code(monkeypatch, capsys):
    asked = []

    def process(prog, name, given):
        asked.append((prog, name, given.domain, given.host, given.quiet))
        if name == "web2":
            return Ended(ExitCode.XEN, json.dumps({"error": "hostb has too little memory"}))
        return Ended(ExitCode.DONE, json.dumps({"downtime": {"total_s": 0.5, "state_s": 0.25}}))

    monkeypatch.setattr(several, "Process", process)
    assert command.main(["web1", "web2", "web3", "hostb"]) == ExitCode.XEN
    said = capsys.readouterr().err
    assert asked == [("pymigrate", name, name, "hostb", True) for name in ("web1", "web2", "web3")]
    assert "pymigrate: web1: is at hostb; downtime here 0.50 s" in said
    assert "pymigrate: web2: FAILED: hostb has too little memory" in said
    assert "pymigrate: 2 domains migrated to hostb, 1 failed" in said


def test_all_are_the_domains_of_this_host(monkeypatch, capsys):
    monkeypatch.setattr(several, "_all_domains", lambda: {"web1": "7", "web2": "9"})
    asked = {}
    monkeypatch.setattr(
        several,
        "Process",
        lambda _prog, name, given: asked.update({name: given.domain}) or Ended(0, "{}"),
    )
    assert command.main(["--all", "--json", "hostb"]) == ExitCode.DONE
    assert asked == {"web1": "7", "web2": "9"}
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["web1", "web2"]


def test_of_a_dry_run_each_line_has_what_would_be_done():
    one = Result("web1", 0, "web1 would be migrated to hostb\nthere: web1", {}, 1.0)
    assert several._moved(one, parsed("--dry-run", "web1", "hostb")).startswith(
        "would be migrated: web1 would"
    )


def test_a_process_of_its_own_reports_its_failure(capsys):
    """Really started; the domains do not exist, and mostly there is no Xen either."""
    code = command.main(["no-such-1", "no-such-2", "unix:/nowhere"])
    said = capsys.readouterr().err
    assert code not in (ExitCode.DONE, ExitCode.INTERRUPTED)
    assert "pymigrate: no-such-1: FAILED: " in said
    assert "pymigrate: no-such-2: FAILED: " in said
    assert "0 domains migrated to unix:/nowhere, 2 failed" in said


@pytest.mark.parametrize(
    "words", [["--streams", "4", "--over-ssh"], ["--dscp", "cs1", "--over-ssh"], ["--ssh", ""]]
)
def test_what_cannot_be_right_for_any_is_one_error_and_no_process_is_started(words, monkeypatch, capsys):
    monkeypatch.setattr(several, "Process", lambda *_: pytest.fail("a process was started"))
    assert command.main([*words, "web1", "web2", "hostb"]) == ExitCode.USAGE
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_stock_xl_is_asked_for_by_ssh_only(capsys):
    assert command.main(["--to-xl", "web1", "tls://hostb"]) == ExitCode.USAGE
    assert "stock xl is reached by ssh only" in capsys.readouterr().err
