"""`pymigrate` as a user runs it on a machine without Xen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from saverestore.errors import ExitCode

ROOT = Path(__file__).parents[3]


def run(
    *arguments: str, journals: Path | None = None, typed: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; `journals`: the folder of its journals."""
    before = ""
    if journals is not None:
        before = (
            "from saverestore.migrate import journal\n"
            f"journal.Journals.__init__.__defaults__ = (journal.Path({str(journals)!r}),)\n"
        )
    code = (
        f"import sys\n{before}from saverestore.cli import pymigrate\nsys.exit(pymigrate.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=typed,
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["web1"],
        ["web1", "web1", "c"],
        ["web1", "web2", "tcp://b:8700"],
        ["--downtime-ms", "0", "web1", "b"],
        ["--name", "", "web1", "b"],
        ["--name", "f\udcff", "web1", "b"],
        ["--config", "/nowhere/web1.cfg", "web1", "b"],
        ["--config", "web1.cfg", "web1", "web2", "b"],
        ["recover"],
        ["recover", "web1", "--all"],
        ["recover", "--all", "--force", "run"],
        ["cancel"],
        ["bwlimit", "web1"],
        ["bwlimit", "web1", "50"],
        ["--streams", "0", "web1", "tls://b"],
        ["--streams", "17", "web1", "tls://b"],
        ["--streams", "2", "--over-ssh", "web1", "b"],
        ["--over-ssh", "web1", "tls://b"],
        ["--data-address", "10.0.0.2", "web1", "unix:/run/x"],
        ["--data-address", "10.0.0.2", "--over-ssh", "web1", "b"],
        ["--to-xl", "--over-ssh", "web1", "b"],
        ["receive", "--ports", "9000-8000"],
        ["receive", "--ports", "0"],
        ["receive", "--ports", "80-"],
        ["receive", "--tls", "--data-listen", "10.0.0.2"],
        ["--codec", "zip", "web1", "b"],
        ["--codec", "zstd:99", "web1", "b"],
        ["--xor-cache", "0", "web1", "b"],
        ["--to-xl", "--codec", "zstd", "web1", "b"],
        ["--to-xl", "--resume-for", "5", "web1", "b"],
        ["--to-xl", "--silence", "5", "web1", "b"],
        ["--silence", "1", "web1", "b"],
        ["--source", "10.0.0.1", "--interface", "eth1", "web1", "tls://b"],
        ["--interface", "eth1", "--over-ssh", "web1", "b"],
        ["--dscp", "64", "web1", "tls://b"],
        ["--congestion", "renno", "web1", "tls://b"],
        ["--congestion", "bbr", "--over-ssh", "web1", "b"],
        ["--to-xl", "--congestion", "bbr", "web1", "b"],
        ["receive", "more"],
        ["web1", "http://b"],
        ["web1", "tls://b:0"],
        ["receive", "--tls", "--listen", "tls://127.0.0.1"],
        ["receive", "--listen", "host2"],
        ["web1", "tcp://b"],
        ["web1", "-oProxyCommand=x"],
        ["--to-xl", "web1", "tls://b"],
        ["--to-xl", "web1", "unix:/run/x"],
        ["--to-xl", "--back", "a", "web1", "b"],
        ["--to-xl", "--trust-network", "web1", "b"],
        ["receive", "--from-xl", "--listen", "unix:/run/x"],
        ["receive", "--from-xl", "--tls"],
        ["receive", "--paused"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    done = run(*arguments)
    assert done.returncode == ExitCode.USAGE
    assert "pymigrate" in done.stderr


def test_tcp_is_refused_unless_the_network_is_called_trusted():
    done = run("web1", "tcp://10.0.0.2:8700")
    assert done.returncode == ExitCode.USAGE
    assert "must be named as trusted, on both sides; --trust-network declares it trusted" in done.stderr
    assert run("receive", "--listen", "tcp://127.0.0.1:8700").returncode == ExitCode.USAGE


@pytest.mark.parametrize("how", [["--listen", "tls://127.0.0.1"], ["--tls"]])
def test_a_receiver_by_tls_without_certificates_says_which_file_is_missing(how, tmp_path):
    files = [word for name in ("cert", "key", "ca", "allow") for word in (f"--{name}", f"{tmp_path}/{name}")]
    done = run("receive", *how, *files)
    assert done.returncode == ExitCode.USAGE
    assert f"{tmp_path}/" in done.stderr
    assert "no such file" in done.stderr


def test_a_receiver_by_tls_needs_a_connection_for_standard_input(tmp_path):
    (tmp_path / "allowed").write_text("host1")
    done = run("receive", "--tls", "--allow", f"{tmp_path}/allowed")
    assert done.returncode == ExitCode.USAGE
    assert "standard input is not a connection" in done.stderr


def test_certificates_are_where_the_help_says():
    from saverestore.cli.certificates import FILES, FOLDER
    from saverestore.transport.tls import Credentials
    from saverestore.transport.tls_peers import ALLOWED

    assert {name: str(path) for name, path in vars(Credentials()).items()} == {
        name: f"{FOLDER}/{name}.pem" for name in FILES
    }
    assert str(ALLOWED) == f"{FOLDER}/allowed"


@pytest.mark.parametrize("command", ["", "receive", "recover", "status", "cancel", "bwlimit"])
def test_every_command_has_help_with_all_exit_codes_and_loads_nothing_heavy_for_it(command):
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    _, _, codes = done.stdout.partition("exit codes:")
    assert all(f"\n  {int(code):<3}  {code.meaning}\n" in codes for code in ExitCode)
    assert "examples:" in done.stdout


def journal_of(folder: Path, state: str) -> uuid.UUID:
    from saverestore.migrate.handover import Role, State
    from saverestore.migrate.journal import Journals
    from saverestore.migrate.records import Head

    head = Head(
        Role.SOURCE, uuid.uuid4(), "web1", uuid.UUID(int=1), 7, "boot", "b", "bbbb", "2026-11-28T12:00:00.000"
    )
    with Journals(folder).create(head, State.OFFERED) as journal:
        if state != "OFFERED":
            journal.enter(State(state), reason="cancelled")
    return head.migration


def test_status_shows_each_migration_for_people_and_for_programs(tmp_path):
    number = journal_of(tmp_path, "ABORTED")
    done = run("status", journals=tmp_path)
    assert done.stdout == f"2026-11-28T12:00:00  web1  source ABORTED  b  {number}\n"
    (one,) = json.loads(run("status", "--json", "web1", journals=tmp_path).stdout)
    assert (one["state"], one["is_over"], one["process"], one["reason"]) == (
        "ABORTED",
        True,
        None,
        "cancelled",
    )


def test_a_uuid_is_known_in_any_spelling(tmp_path):
    """As for every command that takes a domain."""
    number = str(journal_of(tmp_path, "ABORTED"))
    domain = str(uuid.UUID(int=1))
    for spelled in (number.upper(), domain.replace("-", ""), f"{{{domain}}}"):
        assert number in run("status", spelled, journals=tmp_path).stdout


def test_status_and_recovery_name_an_xl_at_the_other_side(tmp_path):
    from saverestore.migrate.handover import Role, State
    from saverestore.migrate.journal import Journals
    from saverestore.migrate.records import Head

    head = Head(
        *(Role.DESTINATION, uuid.uuid4(), "web1", uuid.UUID(int=1), -1, "boot", "10.0.9.1", ""),
        "2026-11-28T12:00:00.000",
        with_xl=True,
    )
    with Journals(tmp_path).create(head, State.ACCEPTED):
        pass
    done = run("status", journals=tmp_path)
    assert "web1  destination ACCEPTED  xl at 10.0.9.1  " in done.stdout
    (one,) = json.loads(run("status", "--json", journals=tmp_path).stdout)
    assert one["with_xl"] is True


def test_a_domain_that_has_no_migration_is_reported_as_such(tmp_path):
    journal_of(tmp_path, "ABORTED")
    for command in ("status", "recover", "cancel"):
        done = run(command, "web2", journals=tmp_path)
        assert done.returncode == ExitCode.DOMAIN
        assert "no migration of web2 is recorded on this host" in done.stderr


def test_nothing_to_recover_is_no_failure(tmp_path):
    journal_of(tmp_path, "ABORTED")
    done = run("recover", "--all", journals=tmp_path)
    assert (done.returncode, done.stderr) == (0, "pymigrate: nothing to settle\n")


def test_earlier_migrations_that_were_lost_are_counted(tmp_path):
    journal_of(tmp_path, "LOST")
    said = run("recover", "--all", journals=tmp_path).stderr
    assert said == "pymigrate: nothing to settle; 1 earlier migration was lost, see 'pymigrate status'\n"


@pytest.mark.parametrize(
    ("text", "words", "cert", "warning"),
    [
        ('[pymigrate]\ncert = "/c.pem"\n', [], "/c.pem", ""),
        ('[pymigrate]\ncert = "/c.pem"\n', ["--cert", "/d.pem"], "/d.pem", ""),
        ("[pymigrate]\nbwlimit = 'none'\n", [], "/etc/xen/pymigrate/cert.pem", ""),
        ("[pymigrate]\ncert = true\n", [], "/etc/xen/pymigrate/cert.pem", "pymigrate: warning: "),
        ("[pymigrate", [], "/etc/xen/pymigrate/cert.pem", "pymigrate: warning: "),
        ("pymigrate = 5", [], "/etc/xen/pymigrate/cert.pem", "pymigrate: warning: "),
    ],
    ids=["set", "given", "not set", "no text", "no TOML", "no table"],
)
def test_recover_has_the_certificates_that_migrations_have(
    monkeypatch, tmp_path, capsys, text, words, cert, warning
):
    forced = Forced(monkeypatch, tmp_path)
    settle = pytest.importorskip("saverestore.cli.pymigrate.settle")
    one = journal_of(tmp_path, "OFFERED")
    (tmp_path / "pysave.toml").write_text(text)
    monkeypatch.setenv("PYSAVE_CONFIG", str(tmp_path / "pysave.toml"))
    had = []
    monkeypatch.setattr("saverestore.migrate.peers.connecting", lambda tls: had.append(str(tls.cert)))
    assert settle.recover([*words, "web1"]) == 0
    assert (had, forced.asked) == ([cert], [one])
    assert capsys.readouterr().err.startswith(warning)


class Forced:
    """Stands for the recovery of each migration: of which it was asked, and what each of them ends with."""

    def __init__(self, monkeypatch, folder: Path, *errors: Exception | None) -> None:
        recovery = pytest.importorskip("saverestore.migrate.recovery")
        from saverestore.migrate import journal

        self.asked: list[uuid.UUID] = []
        self._errors = list(errors)
        self._settled = recovery.Settled
        monkeypatch.setattr(journal.Journals.__init__, "__defaults__", (folder,))
        monkeypatch.setattr("saverestore.operations.host.opened_host", lambda: nullcontext())
        monkeypatch.setattr(recovery, "recover", self._recover)

    def _recover(self, log, *_args, **_):
        self.asked.append(log.head.migration)
        return self._settled(log, "is settled", self._errors.pop(0) if self._errors else None)


@pytest.mark.parametrize("force", ["run", "destroy"])
def test_a_person_decides_about_one_migration_and_not_about_all_of_that_name(
    tmp_path, monkeypatch, capsys, force
):
    forced = Forced(monkeypatch, tmp_path)
    settle = pytest.importorskip("saverestore.cli.pymigrate.settle")
    old, one, two = (journal_of(tmp_path, state) for state in ("OFFERED", "GRANTED", "GRANTED"))
    assert settle.recover(["--force", force, "web1"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert (str(one) in said, str(two) in said, str(old) in said) == (True, True, False)
    assert "no changes were made" in said
    assert forced.asked == []
    assert settle.recover(["--force", force, str(two)]) == 0
    assert forced.asked == [two]


def test_a_person_is_not_asked_about_what_this_host_decides_alone(tmp_path, monkeypatch):
    forced = Forced(monkeypatch, tmp_path)
    settle = pytest.importorskip("saverestore.cli.pymigrate.settle")
    _, granted = (journal_of(tmp_path, state) for state in ("OFFERED", "GRANTED"))
    assert settle.recover(["--force", "run", "web1"]) == 0
    assert forced.asked == [granted]


def test_what_is_in_doubt_is_the_exit_code_whatever_else_has_failed(tmp_path, monkeypatch):
    from saverestore.errors import DomainError, ErrorName

    peers = pytest.importorskip("saverestore.migrate.peers")
    busy = DomainError("another process", name=ErrorName.MIGRATION_BUSY)
    Forced(monkeypatch, tmp_path, busy, peers.InDoubt("nobody knows"))
    settle = pytest.importorskip("saverestore.cli.pymigrate.settle")
    for _ in range(2):
        journal_of(tmp_path, "GRANTED")
    (tmp_path / f"source-{uuid.uuid4()}.journal").write_bytes(b"rubbish\n")
    assert settle.recover(["--all"]) == ExitCode.IN_DOUBT


def test_cancelling_what_was_granted_is_too_late(tmp_path):
    journal_of(tmp_path, "GRANTED")
    done = run("cancel", "web1", journals=tmp_path)
    assert done.returncode == ExitCode.DOMAIN
    assert "too late" in done.stderr


def test_cancelling_what_nobody_works_on_any_more_points_to_recovery(tmp_path):
    journal_of(tmp_path, "OFFERED")
    done = run("cancel", "web1", journals=tmp_path)
    assert done.returncode == ExitCode.DOMAIN
    assert "'pymigrate recover web1'" in done.stderr


def test_a_journal_that_cannot_be_read_is_reported_beside_those_that_can(tmp_path):
    journal_of(tmp_path, "ABORTED")
    (tmp_path / f"source-{uuid.uuid4()}.journal").write_bytes(b"rubbish\n")
    done = run("status", journals=tmp_path)
    assert done.returncode == ExitCode.IO
    assert "web1" in done.stdout
    assert "empty or damaged" in done.stderr


@pytest.mark.parametrize("to_xl", [False, True], ids=["pymigrate", "xl"])
def test_the_downtime_that_is_printed_is_that_of_the_report_and_of_the_metrics(
    monkeypatch, tmp_path, capsys, to_xl
):
    pytest.importorskip("prometheus_client")
    command = pytest.importorskip("saverestore.cli.pymigrate.command")
    from saverestore.engine.downtime import Downtime
    from saverestore.migrate import source
    from saverestore.migrate import to_xl as to_stock_xl

    def migrate(_request, _progress, report, **_):
        report.downtime, report.stream_bytes = Downtime(total_s=1.25), 4096
        answer = SimpleNamespace(error=None, state="running")
        return SimpleNamespace(answer=answer, report=report, handover_s=0.5)

    monkeypatch.setattr(source, "migrate_domain", migrate)
    monkeypatch.setattr(to_stock_xl, "migrate_to_xl", migrate)
    files = [tmp_path / name for name in ("r.json", "r.html", "m.prom")]
    options = ["--report", str(files[0]), "--report", str(files[1]), "--metrics", str(files[2])]
    assert command.main([*options, *(["--to-xl"] if to_xl else []), "web1", "host2"]) == 0
    assert "downtime 1.75 s, 0.50 s of it from the grant to" in capsys.readouterr().err
    facts = json.loads(files[0].read_text())
    assert (facts["downtime"]["total_s"], facts["handover_s"]) == (1.25, 0.5)
    assert "<td>1.750 s, 0.500 s of it from the grant to the answer<" in files[1].read_text()
    assert 'pymigrate_last_downtime_seconds{domain="web1"} 1.75' in files[2].read_text()


def test_the_time_and_the_defaults_of_a_migration_are_those_of_its_report(monkeypatch, tmp_path, capsys):
    """The command prints the report's own time; options that were not given are there as they were in force."""
    command = pytest.importorskip("saverestore.cli.pymigrate.command")
    source = pytest.importorskip("saverestore.migrate.source", exc_type=ImportError)

    def migrate_domain(_request, _progress, report, **_):
        report.total_s = 99.0
        answer = SimpleNamespace(error=None, state="running")
        return SimpleNamespace(answer=answer, report=report, handover_s=0.0)

    monkeypatch.setattr(source, "migrate_domain", migrate_domain)
    file = tmp_path / "r.json"
    assert command.main(["--report", str(file), "web1", "host2"]) == 0
    facts = json.loads(file.read_text())
    assert f"{facts['seconds']['total']:.1f} s; " in capsys.readouterr().err
    assert (facts["options"]["max_rounds"], facts["options"]["suspend_timeout"]) == (5, 60.0)
