"""Whether a watcher watches is known when it has been started; why not, too."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

try:
    import pyxc  # noqa: F401
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from saverestore.errors import XenRefused
from saverestore.toolstack import watcher


def played_by(script: str, tmp_path: Path, monkeypatch) -> None:
    """A bash script is the watcher: `$2` is the descriptor, `$4` the name; the domid comes on its standard input."""
    program = tmp_path / "pysave-watch"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(watcher, "path_of", lambda name: program)
    monkeypatch.setattr(watcher, "LOG_DIR", tmp_path / "log")


def start(domid: int, name: str) -> None:
    with closing(watcher.Watcher(name)) as started:
        started.watch(domid)


def test_one_that_watches_is_left_to_it(tmp_path: Path, monkeypatch):
    played_by('read domid; echo "domain $domid, $4" >&2; printf ready >&$2', tmp_path, monkeypatch)
    start(7, "-web/1")  # what may look like an option is none
    log = tmp_path / "log" / "pysave-watch--web_1.log"
    assert log.read_text() == "domain 7, -web/1\n"


def test_it_starts_before_there_is_a_domain_and_ends_where_none_comes_to_be(tmp_path: Path, monkeypatch):
    played_by(
        f"touch {tmp_path}/started; read; echo $? > {tmp_path}/new; mv {tmp_path}/{{new,ended}}",
        tmp_path,
        monkeypatch,
    )
    with closing(watcher.Watcher("web1")):
        comes_to_be(tmp_path / "started")
        assert not (tmp_path / "ended").exists()
    comes_to_be(tmp_path / "ended")
    assert (tmp_path / "ended").read_text() == "1\n", "it was given a domain"


def comes_to_be(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_it_has_to_say_is_told(tmp_path: Path, monkeypatch):
    played_by("eval \"printf 'no such domain' >&$2\"", tmp_path, monkeypatch)
    with pytest.raises(XenRefused, match=r"no such domain.*pysave-watch-web1\.log"):
        start(7, "web1")


def test_one_that_ends_at_once_is_none(tmp_path: Path, monkeypatch):
    played_by("exit 0", tmp_path, monkeypatch)
    with pytest.raises(XenRefused, match="without a message"):
        start(7, "web1")


def test_one_that_says_nothing_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch):
    played_by("exec sleep 5", tmp_path, monkeypatch)
    monkeypatch.setattr(watcher, "READY_TIMEOUT_S", 0.1)
    with pytest.raises(XenRefused, match=r"process \d+ has not begun to watch within 0 s, but it may still"):
        start(7, "web1")


def test_one_that_cannot_be_started_is_told(tmp_path: Path, monkeypatch):
    played_by("", tmp_path, monkeypatch)
    monkeypatch.setattr(watcher, "path_of", lambda name: tmp_path / "nothing")
    with pytest.raises(XenRefused, match="could not be started"):
        start(7, "web1")


def asked_for(domid: bytes, tmp_path: Path) -> tuple[int, str]:
    """Our own watcher, where there is no Xen: its exit code, and what it answers to its starter."""
    answers, write_fd = os.pipe()
    words = [sys.executable, "-m", "saverestore.cli.watch", "--ready-fd", str(write_fd), "--", "web1"]
    with os.fdopen(answers, "rb") as answer, (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[write_fd])
        os.close(write_fd)
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(domid)
            if domid:
                pipe.flush()  # and left open, as by a process that was forked meanwhile
                return process.wait(60), answer.read().decode()
        return process.wait(60), answer.read().decode()


def test_it_begins_with_the_line_that_has_the_domain(tmp_path: Path):
    code, answer = asked_for(b"7\n", tmp_path)
    assert code != 0, "there is no Xen here"
    assert answer not in ("", watcher.READY)


def test_without_a_domain_it_ends_without_a_word(tmp_path: Path):
    assert asked_for(b"", tmp_path) == (0, "")
    assert (tmp_path / "log").read_bytes() == b""
