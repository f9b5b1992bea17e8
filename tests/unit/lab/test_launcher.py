"""A command that is forked from a loaded process must be to its test what one that was started is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "xen"))

import launcher

Script = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with launcher.serving(["json"]):
        yield


@pytest.fixture(params=["forked", "cold"])
def start(request: pytest.FixtureRequest, server: None) -> type[subprocess.Popen[str]]:
    """What holds for both is what the launcher promises."""
    return launcher.Popen if request.param == "forked" else subprocess.Popen


@pytest.fixture
def script(tmp_path: Path) -> Script:
    def written(body: str) -> list[str]:
        path = tmp_path / "script.py"
        path.write_text("import os, signal, sys, time\n" + body)
        return [sys.executable, str(path)]

    return written


def said(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate(timeout=60)
    return out.splitlines()


def test_the_forked_one_has_loaded_what_the_cold_one_has_not(server: None, script: Script) -> None:
    argv = script("print('json.decoder' in sys.modules)")
    forked = launcher.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert said(forked) == ["True"]
    with launcher.cold():
        assert said(launcher.Popen(argv, stdout=subprocess.PIPE, text=True)) == ["False"]


def test_it_has_its_arguments_folder_environment_and_script_folder(
    start: type[subprocess.Popen[str]], script: Script, tmp_path: Path
) -> None:
    argv = script("print(sys.argv[1:], os.getcwd(), sorted(os.environ), sys.path[0], __name__)")
    environment = {"ONE": "1", "LC_CTYPE": "C.UTF-8"}
    found = start([*argv, "a", "ä b"], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    assert said(found) == [f"['a', 'ä b'] {tmp_path} {sorted(environment)} {tmp_path} __main__"]


def test_its_three_streams_are_those_given(
    start: type[subprocess.Popen[str]], script: Script, tmp_path: Path
) -> None:
    argv = script("print(sys.stdin.read()); print('error', file=sys.stderr)")
    with (tmp_path / "out").open("w") as sink:
        process = start(argv, stdin=subprocess.PIPE, stdout=sink, stderr=subprocess.PIPE, text=True)
        assert process.communicate("word", timeout=60) == (None, "error\n")
    assert (tmp_path / "out").read_text() == "word\n"


def test_it_has_no_descriptors_but_these_and_those_passed_on(
    start: type[subprocess.Popen[str]], script: Script
) -> None:
    argv = script("print([fd for fd in range(1 << 12) if os.path.exists(f'/proc/self/fd/{fd}')])")
    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, True)  # which does not count
    process = start(argv, stdout=subprocess.PIPE, text=True, pass_fds=[write_end])
    assert said(process) == [str([0, 1, 2, write_end])]
    for end in (read_end, write_end):
        os.close(end)


def test_its_pid_is_its_own_and_it_is_a_child_of_the_test_in_the_same_group(
    start: type[subprocess.Popen[str]], script: Script
) -> None:
    argv = script("print(os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0))")
    process = start(argv, stdout=subprocess.PIPE, text=True)
    assert said(process) == [f"{process.pid} {os.getpid()} {os.getpgid(0)} {os.getsid(0)}"]
    process = start(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert said(process) == [f"{process.pid} {os.getpid()} {process.pid} {process.pid}"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("pass", 0),
        ("sys.exit(7)", 7),
        ("sys.exit('why')", 1),
        ("os._exit(9)", 9),
        ("raise ValueError", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_its_status_is_that_of_its_end(
    start: type[subprocess.Popen[str]], script: Script, body: str, status: int
) -> None:
    process = start(script(body), stderr=subprocess.PIPE, text=True)
    process.communicate(timeout=60)
    assert process.returncode == status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_it_and_do_what_they_do(
    start: type[subprocess.Popen[str]], script: Script, number: signal.Signals
) -> None:
    process = start(
        script("print(flush=True)\ntime.sleep(60)"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert process.wait(timeout=60) == -number
    process.communicate()


def test_signals_are_handled_as_in_a_fresh_process(
    start: type[subprocess.Popen[str]], script: Script
) -> None:
    argv = script("print([str(signal.getsignal(n)) for n in range(1, 32)], signal.pthread_sigmask(0, []))")
    with launcher.cold():
        fresh = said(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
    found = said(start(argv, stdout=subprocess.PIPE, text=True))
    assert "default_int_handler" in found[0]
    assert [line.split(" at 0x")[0] for line in found] == [line.split(" at 0x")[0] for line in fresh]


def test_proc_shows_its_command_line(start: type[subprocess.Popen[str]], script: Script) -> None:
    argv = [*script("print(open('/proc/self/cmdline').read().split(chr(0)))"), "a", ""]
    assert said(start(argv, stdout=subprocess.PIPE, text=True)) == [str([*argv, ""])]


def test_what_it_starts_itself_outlives_it(
    start: type[subprocess.Popen[str]], script: Script, tmp_path: Path
) -> None:
    daemon = tmp_path / "daemon.py"
    daemon.write_text("import os, sys\nsys.stdin.read()\nprint(os.getsid(0) == os.getpid())\n")
    argv = script(
        "import subprocess\n"
        f"subprocess.Popen([sys.executable, {str(daemon)!r}], start_new_session=True)\n"
        "os._exit(0)"
    )
    process = start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.wait(timeout=60) == 0
    assert process.communicate(timeout=60)[0] == "True\n"


def test_several_at_once_each_have_their_own_status(server: None, script: Script) -> None:
    argv = script("sys.exit(int(sys.stdin.read()))")
    several = [launcher.Popen(argv, stdin=subprocess.PIPE, text=True) for _ in range(5)]
    for number, process in reversed(list(enumerate(several))):
        process.communicate(str(number), timeout=60)
        assert process.returncode == number


def test_other_programs_are_started_as_usual(server: None) -> None:
    assert said(launcher.Popen(["sh", "-c", "echo $0"], stdout=subprocess.PIPE, text=True)) == ["sh"]
