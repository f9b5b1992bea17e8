"""`pysave --all` and `pyrestore --all`: what is asked for, the processes, and what systemd runs."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import time
import uuid
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeHost
from stream_samples import golden

from saverestore.cli import all_domains, many, pyimage, pyrestore, pysave
from saverestore.cli.many import Process, Result
from saverestore.errors import DomainError, ErrorName, ExitCode, Interrupted
from saverestore.operations.pending import to_be_restored
from saverestore.toolstack import moving
from saverestore.toolstack.condition import Condition, Found
from saverestore.toolstack.domains import Domain, is_guest


def info(domid: int) -> SimpleNamespace:
    return SimpleNamespace(domid=domid, uuid=uuid.UUID(int=domid))


UNITS = Path(__file__).parents[3] / "saverestore" / "systemd"


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (pysave.main, ["--all", "web1"], "--all excludes DOMAIN"),
        (pysave.main, ["--all", "--recover"], "--all excludes --recover"),
        (pysave.main, ["--all", "--events", "3"], "--all excludes --events"),
        (pyrestore.main, ["--all", "--metrics", "/tmp/a.prom"], "--all excludes --metrics"),
        (pysave.main, ["--json", "web1", "fd:1"], "--json and the image cannot both go to standard output"),
        (
            pysave.main,
            ["--events", "1", "web1", "-"],
            "--events 1 and the image cannot both go to standard output",
        ),
        (pysave.main, ["--parallel", "3", "web1", "a.img"], "--parallel needs --all"),
        (pysave.main, ["--if-unsaveable", "leave", "web1", "a.img"], "--if-unsaveable needs --all"),
        (pysave.main, ["--all", "--max-rounds", "3"], "--max-rounds needs --live"),
        (pyrestore.main, ["--all", "a.img"], "--all excludes IMAGE"),
        (pyrestore.main, ["--all", "--name", "b"], "--all excludes --name"),
        (pyrestore.main, ["--within", "60", "a.img"], "--within needs --all"),
    ],
)
def test_what_all_excludes_and_what_needs_it_is_one_line(main, words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == ExitCode.USAGE
    assert said in capsys.readouterr().err


def test_a_process_has_the_options_and_its_result_comes_back(tmp_path):
    given = pyrestore.command_parser().parse_args(["--all"])
    one = argparse.Namespace(
        **{**vars(given), "all": False, "image": str(tmp_path / "absent.img"), "json": True}
    )
    process = Process("pyrestore", "web1", one)
    while process.poll() is None:
        time.sleep(0.05)
    out, _ = process.output()
    assert process.poll() == ExitCode.USAGE
    assert json.loads(out)["error_name"] == "file_not_found"


def test_nothing_pending_is_restored_and_a_failure_is_reported(tmp_path, capsys):
    assert pyrestore.main(["--all", "--store", str(tmp_path)]) == 0
    assert "0 domains restored, 0 failed" in capsys.readouterr().err
    image = tmp_path / "web1@2026-11-29T05-58-31Z.img"
    image.write_bytes(b"no image at all" * 100)
    with to_be_restored(image):
        pass
    assert pyrestore.main(["--all", "--store", str(tmp_path)]) == ExitCode.IMAGE
    said = capsys.readouterr().err
    assert "pyrestore: web1@2026-11-29T05-58-31Z: FAILED: " in said
    assert "0 domains restored, 1 failed" in said


def test_a_store_that_is_not_there_is_not_one_with_nothing_to_restore(tmp_path, monkeypatch, capsys):
    assert pyrestore.main(["--all", "--store", str(tmp_path / "absent")]) == ExitCode.USAGE
    assert "absent: there is no such directory" in capsys.readouterr().err
    # At the first boot nothing was saved yet.
    monkeypatch.setattr(all_domains, "STORE", str(tmp_path / "usual"))
    assert pyrestore.main(["--all"]) == 0


def test_only_those_that_are_still_pending_are_restored_by_all(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "saverestore.operations.restore.restore_domain",
        lambda request, *_, **__: asked.append(request.only_pending) or SimpleNamespace(domid=5, name="web1"),
    )
    given = pyrestore.command_parser().parse_args(["--all", "--toolstack", "bare"])
    assert pyrestore.run_one(many.one_of(given, image="a.img", store=None)) == 0
    assert pyrestore.main(["--toolstack", "bare", "a.img"]) == 0
    assert asked == [True, False]


def test_what_is_to_be_restored_is_not_pruned(tmp_path, capsys):
    for day in (27, 28, 29):
        (tmp_path / f"web1@2026-11-{day}T05-00-00Z.img").write_bytes(golden("hvm-v3"))
    with to_be_restored(tmp_path / "web1@2026-11-27T05-00-00Z.img"):
        pass
    assert pyimage.main(["prune", str(tmp_path), "--keep-last", "1"]) == 0
    assert sorted(path.name[13:15] for path in tmp_path.glob("*.img")) == ["27", "29"]
    assert "to be restored by 'pyrestore --all'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "target", "is_one"),
    [
        ({}, None, True),
        ({"domid": 0}, None, False),
        ({"dying": True}, None, False),
        ({"shutdown": True}, None, False),
        ({"shutdown": True, "suspended": True}, None, True),
        ({}, "5", False),
    ],
)
def test_dom0_stub_domains_and_what_has_ended_are_no_guests(more, target, is_one):
    info = SimpleNamespace(**{"domid": 7, "dying": False, "shutdown": False, "suspended": False, **more})
    store = SimpleNamespace(read=lambda path: target if path == "/local/domain/7/target" else None)
    handles = SimpleNamespace(store=store)
    assert is_guest(handles, Domain(info, "web1")) is is_one


def test_domains_of_one_name_are_told_apart_by_their_numbers():
    domains = [Domain(SimpleNamespace(domid=domid), name) for domid, name in ((7, "a"), (8, "b"), (9, "a"))]
    names = [name for name, _ in all_domains.named_apart(domains)]
    assert names == ["a (domain 7)", "b", "a (domain 9)"]


@pytest.mark.parametrize(("choice", "asked"), [("leave", []), ("shutdown", [["web2"]])])
def test_a_domain_that_could_not_be_saved_is_left_or_shut_down(tmp_path, monkeypatch, capsys, choice, asked):
    stopped: list[dict[str, Domain]] = []
    domains = [Domain(info(domid), f"web{domid - 6}") for domid in (7, 8)]

    class Host:
        def __enter__(self):
            return SimpleNamespace(guests=lambda: domains)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr("saverestore.operations.host.opened_host", Host)
    monkeypatch.setattr(all_domains, "shut_down", lambda _, found: stopped.append(found) or list(found))
    results = [
        Result("web1", 0, "", {"image": "x", "domain_state": "destroyed"}, 1.0),
        Result("web2", ExitCode.DOMAIN, "", {"error": "it does not answer"}, 1.0),
    ]
    monkeypatch.setattr(many, "run_all", lambda *_, **__: results)
    words = ["--all", "--store", str(tmp_path), "--if-unsaveable", choice]
    assert pysave.main(words) == ExitCode.DOMAIN
    assert stopped == [dict.fromkeys(names, domains[1]) for names in asked]
    said = capsys.readouterr().err
    assert ("1 of 1 unsaved shut down" in said) is (choice == "shutdown")


@pytest.fixture
def saves(monkeypatch):
    """Which domains are saved, by their names; `guests`: what each look finds, the last again and again."""
    found = SimpleNamespace(names=[], guests=[])

    def guests():
        now = found.guests.pop(0) if len(found.guests) > 1 else found.guests[0]
        if isinstance(now, Exception):
            raise now
        return now

    def run_all(names, _start, *, on_end, **_):
        found.names.append(names)
        results = [Result(name, ExitCode.DOMAIN if name == "bad" else 0, "", {}, 1.0) for name in names]
        for one in results:
            on_end(one)
        return results

    monkeypatch.setattr(
        "saverestore.operations.host.opened_host", lambda: nullcontext(SimpleNamespace(guests=guests))
    )
    monkeypatch.setattr(many, "run_all", run_all)
    return found


WEB1, WEB2, AGAIN = (Domain(info(domid), name) for domid, name in ((7, "web1"), (8, "web2"), (9, "web1")))


def test_domains_that_come_while_all_are_saved_are_saved_too(tmp_path, saves, capsys):
    saves.guests = [[WEB1], [WEB2, AGAIN], [WEB2]]
    assert pysave.main(["--all", "--json", "--store", str(tmp_path)]) == 0
    assert saves.names == [["web1"], ["web2", "web1 (domain 9)"]]
    out, said = capsys.readouterr()
    assert [one["name"] for one in json.loads(out)] == ["web1", "web2", "web1 (domain 9)"]
    assert "pysave: 3 domains saved, 0 failed; " in said


@pytest.mark.parametrize("option", ["--leave-running", "--leave-paused", "--dry-run"])
def test_snapshots_are_of_those_that_were_there_at_first(tmp_path, saves, option, capsys):
    saves.guests = [[WEB1], [WEB1, WEB2]]
    pysave.main(["--all", option, "--store", str(tmp_path)])
    assert saves.names == [["web1"]]
    done = "would be saved" if option == "--dry-run" else "saved"
    assert f"pysave: 1 domain {done}, 0 failed; " in capsys.readouterr().err


def test_a_dry_run_of_restores_says_what_would_be_done(tmp_path, capsys):
    assert pyrestore.main(["--all", "--dry-run", "--store", str(tmp_path)]) == 0
    assert (
        "pyrestore: 0 domains would be restored, 0 failed, nothing is pending in " in capsys.readouterr().err
    )


def test_nobody_looks_for_more_when_one_that_failed_is_to_end_it(tmp_path, saves):
    saves.guests = [[Domain(info(6), "bad"), WEB1], [WEB2]]
    assert pysave.main(["--all", "--on-failure", "stop", "--store", str(tmp_path)]) == ExitCode.DOMAIN
    assert saves.names == [["bad", "web1"]]


def test_that_nobody_can_look_for_more_loses_no_result(tmp_path, saves, capsys):
    saves.guests = [[WEB1], DomainError("xenstored does not answer")]
    assert pysave.main(["--all", "--store", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "pysave: domains that were started meanwhile are not saved: xenstored does not answer" in said
    assert "1 domain saved, 0 failed" in said


def test_a_signal_while_domains_are_listed_once_more_ends_it_with_a_summary(saves, tmp_path, capsys):
    saves.guests = [[WEB1], Interrupted("interrupted by Ctrl-C")]
    assert pysave.main(["--all", "--store", str(tmp_path)]) == ExitCode.INTERRUPTED
    said = capsys.readouterr().err
    assert "1 domain saved, 0 failed" in said
    assert "meanwhile" not in said


def test_a_signal_while_guests_power_off_leaves_out_no_summary(tmp_path, monkeypatch, capsys):
    host = SimpleNamespace(guests=lambda: [Domain(info(7), "web1")])
    monkeypatch.setattr("saverestore.operations.host.opened_host", lambda: nullcontext(host))

    def interrupted(*_):
        raise Interrupted("interrupted by Ctrl-C")

    monkeypatch.setattr(all_domains, "shut_down", interrupted)
    results = [Result("web1", ExitCode.DOMAIN, "", {"error": "it does not answer"}, 1.0)]
    monkeypatch.setattr(many, "run_all", lambda *_, **__: results)
    words = ["--all", "--json", "--store", str(tmp_path), "--if-unsaveable", "shutdown"]
    assert pysave.main(words) == ExitCode.INTERRUPTED
    out, said = capsys.readouterr()
    assert [one["name"] for one in json.loads(out)] == ["web1"]
    assert "pysave: 0 domains saved, 1 failed; " in said


class Host(FakeHost):
    """A host of web1; `busy`: another process of ours works on it."""

    def __init__(self) -> None:
        super().__init__()
        self.domain = Domain(info(7), "web1")
        self.busy = False

    @contextmanager
    def locked(self, domain):
        if self.busy:
            raise DomainError(f"{domain} is being saved by process 42", name=ErrorName.DOMAIN_BUSY)
        self.busy = True
        yield
        self.busy = False


@pytest.fixture
def xl(tmp_path, monkeypatch):
    """An `xl` that notes what it is called with."""
    program = tmp_path / "bin" / "xl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/called\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path / "called"


def test_a_guest_that_runs_and_that_nobody_works_on_is_shut_down(xl, capsys):
    host = Host()
    assert all_domains.shut_down(host, {"web1": host.domain}) == ["web1"]
    assert xl.read_text() == "shutdown -F -w 7\n"
    assert not host.busy
    assert capsys.readouterr().err == "pysave: web1: was shut down\n"


def test_while_a_guest_powers_off_nobody_begins_to_work_on_it(xl, tmp_path, monkeypatch):
    host, seen = Host(), []
    wait = all_domains.subprocess.Popen.wait
    monkeypatch.setattr(
        all_domains.subprocess.Popen, "wait", lambda *given: seen.append(host.busy) or wait(*given)
    )
    all_domains.shut_down(host, {"web1": host.domain})
    assert seen[0] is True


def test_a_signal_ends_shutting_down_and_not_only_that_of_one_guest(xl, monkeypatch):
    host = Host()

    def interrupted(_):
        raise Interrupted("interrupted by Ctrl-C")

    monkeypatch.setattr(host, "find", interrupted)
    with pytest.raises(Interrupted):
        all_domains.shut_down(host, {"web1": host.domain})


CONDITIONS = [
    (Condition.SUSPENDED, "is suspended"),
    (Condition.PAUSED, "is paused"),
    (Condition.CRASHED, "has crashed"),
    (Condition.DYING, "is being destroyed"),
    (Condition.GONE, "is gone"),
]


@pytest.mark.parametrize(("condition", "what"), CONDITIONS)
def test_a_domain_that_does_not_run_is_not_shut_down(xl, capsys, condition, what):
    """Another program saves it, or it is one that comes from another host and is not complete."""
    host = Host()
    host.found = Found(condition, what)
    assert all_domains.shut_down(host, {"web1": host.domain}) == []
    assert not xl.exists()
    assert capsys.readouterr().err == f"pysave: web1: is not shut down: web1 (domain 7) {what}\n"


def test_a_domain_that_is_being_saved_or_migrated_is_not_shut_down(xl, capsys):
    host = Host()
    host.busy = True
    assert all_domains.shut_down(host, {"web1": host.domain}) == []
    assert not xl.exists()
    assert "is not shut down: web1 (domain 7) is being saved by process 42" in capsys.readouterr().err


def test_a_domain_that_another_host_may_run_is_not_shut_down(xl, capsys):
    host = Host()
    moving.note(host.store, 7, "m")
    assert all_domains.shut_down(host, {"web1": host.domain}) == []
    assert not xl.exists()
    assert "moves to another host" in capsys.readouterr().err


def test_a_domain_whose_migration_was_aborted_is_shut_down_although_a_note_says_that_it_moves(
    xl, monkeypatch
):
    """Xenstore failed just as the migration wanted to remove it."""
    host = Host()
    moving.note(host.store, 7, "m")
    asked = []
    monkeypatch.setattr(
        "saverestore.migrate.unsettled.was_aborted", lambda _, *given: not asked.append(given)
    )
    assert all_domains.shut_down(host, {"web1": host.domain}) == ["web1"]
    assert asked == [(host.domain, "m")]


def test_a_domain_that_another_program_has_asked_to_suspend_is_not_shut_down(xl, capsys):
    host = Host()
    host.store.write("/local/domain/7/control/shutdown", "suspend")
    assert all_domains.shut_down(host, {"web1": host.domain}) == []
    assert not xl.exists()
    assert "another program has asked web1 (domain 7) to suspend" in capsys.readouterr().err


def test_where_there_is_no_xl_that_is_said_and_nothing_stays_locked(monkeypatch, tmp_path, capsys):
    host = Host()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert all_domains.shut_down(host, {"web1": host.domain}) == []
    assert not host.busy
    assert "could not be shut down: xl: No such file" in capsys.readouterr().err


# ---- units -------------------------------------------------------------------------------------------

PARSERS = {
    "pysave": pysave.command_parser,
    "pyrestore": pyrestore.command_parser,
    "pyimage": pyimage.command.command_parser,
}


def commands_of(unit: Path) -> list[list[str]]:
    found = re.findall(r"^Exec(?:Start|Stop)=-?(.*)$", unit.read_text(), re.MULTILINE)
    words = [command.split() for line in found for command in re.split(r"[;']|&&", line)]
    return [command for command in words if command and command[0] in PARSERS]


@pytest.mark.parametrize("unit", sorted(UNITS.glob("pysave-*.service")), ids=lambda unit: unit.name)
def test_units_run_command_lines_that_the_commands_take(unit):
    commands = commands_of(unit)
    assert commands
    for prog, *words in commands:
        PARSERS[prog]().parse_args(words)


def test_systemd_waits_longer_than_saves_and_shutdowns_take():
    text = (UNITS / "pysave-domains.service").read_text()
    within = int(re.search(r"--within (\d+)", text)[1])
    wait = int(re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[1])
    assert wait >= within + all_domains.SHUTDOWN_S + 60


SYSTEMCTL = """#!/bin/sh
case $1 in
    show) echo $LOADED ;;
    is-enabled) [ $ENABLED = yes ] ;;
    is-active) [ $ACTIVE = yes ] ;;
esac
"""


@pytest.mark.parametrize(
    ("loaded", "enabled", "active", "code"),
    [
        ("loaded", "yes", "yes", 1),
        ("loaded", "yes", "no", 1),
        ("loaded", "no", "yes", 1),  # when the host shuts down, it would save all domains
        ("loaded", "no", "no", 0),
        ("masked", "no", "yes", 0),
        ("not-found", "no", "no", 0),
    ],
)
def test_the_service_refuses_beside_xendomains_and_says_so(tmp_path, loaded, enabled, active, code):
    text = (UNITS / "pysave-domains.service").read_text()
    line = re.search(r"^ExecStartPre=/bin/sh -c '(.*)'$", text, re.MULTILINE)[1]
    (tmp_path / "systemctl").write_text(SYSTEMCTL)
    (tmp_path / "systemctl").chmod(0o755)
    state = {
        "LOADED": loaded,
        "ENABLED": enabled,
        "ACTIVE": active,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    command = line.replace("$$", "$")  # systemd's way to write it
    done = subprocess.run(["/bin/sh", "-c", command], env=state, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("systemctl mask xendomains.service" in done.stderr) == bool(code)


PROGRAM = """#!/bin/sh
echo $(basename $0) "$@" >>{called}
exit {code}
"""


@pytest.mark.parametrize(
    ("saved", "pruned", "code"), [(0, 0, 0), (ExitCode.DOMAIN, 0, ExitCode.DOMAIN), (0, 4, 4), (3, 4, 4)]
)
def test_old_snapshots_are_removed_also_when_a_domain_could_not_be_saved(tmp_path, saved, pruned, code):
    """Or one guest that cannot be suspended would let the store grow until it is full."""
    text = (UNITS / "pysave-snapshots.service").read_text()
    line = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1]
    assert "\nExecStartPost=" not in text  # systemd runs that after a success only
    for name, one in (("pysave", saved), ("pyimage", pruned)):
        (tmp_path / name).write_text(PROGRAM.format(called=tmp_path / "called", code=int(one)))
        (tmp_path / name).chmod(0o755)
    words = shlex.split(line.replace("$$", "$"))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(words, env=environment, check=False).returncode == code
    called = [line.split()[:2] for line in (tmp_path / "called").read_text().splitlines()]
    assert called == [["pysave", "--all"], ["pyimage", "prune"]]


def test_snapshots_are_not_taken_while_domains_are_restored_or_saved_with_the_host():
    """By this order they end before the host's shutdown saves: a domain that is being saved cannot be saved."""
    unit = (UNITS / "pysave-snapshots.service").read_text()
    after = " ".join(re.findall(r"^After=(.*)$", unit, re.MULTILINE)).split()
    assert "pysave-domains.service" in after
