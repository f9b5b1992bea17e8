"""One contender's run: a process, timed from outside; and what a process of ours says of itself.

outside   whole process: wall, CPU of it and its children, most memory resident (wait4)
inside    `benchmarks.child` tells when its imports were done, so that Python's start can be told apart
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchError

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 900.0
SAMPLE_S = 0.02
WORK_LINE = "bench-work-seconds "


@dataclass(frozen=True)
class Run:
    """What one run took. `work_s`: without the start of Python, and `wall_s` where there is none."""

    wall_s: float
    work_s: float
    cpu_s: float
    peak_mib: float


def ours(*arguments: str) -> list[str]:
    """Argv that runs a subject's child module (see `benchmarks.child`) with the Python we run in."""
    return [sys.executable, "-m", "benchmarks.child", *arguments]


def run(
    argv: Sequence[str],
    *,
    cores: int,
    stdin: Path | None = None,
    stdout: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Run:
    """Run a command on so many cores, its standard input and output being these files (else none).

    BenchError when it is not there, fails, or takes longer than `timeout_s`; it has ended in any case.
    """
    with contextlib.ExitStack() as files:
        source = files.enter_context((stdin or Path(os.devnull)).open("rb"))
        sink = files.enter_context((stdout or Path(os.devnull)).open("wb"))
        started = time.perf_counter()
        try:
            process = subprocess.Popen(
                argv,
                stdin=source,
                stdout=sink,
                stderr=subprocess.PIPE,
                env=_environment(),
                preexec_fn=lambda: os.sched_setaffinity(0, _cores(cores)),
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise BenchError(
                f"{argv[0]} is not installed: install it, or leave it out with --only"
            ) from error
        said, peak_mib, usage = _wait(process, argv, timeout_s)
        wall_s = time.perf_counter() - started
    if process.returncode != 0:
        raise BenchError(f"{' '.join(argv)}: exit {process.returncode}: {said.strip()[-300:]}")
    return Run(wall_s, _work_seconds(said, wall_s), usage.ru_utime + usage.ru_stime, peak_mib)


def _wait(
    process: subprocess.Popen[bytes], argv: Sequence[str], timeout_s: float
) -> tuple[str, float, resource.struct_rusage]:
    """Read what it says on standard error to its end, and reap it: (text, peak in MiB, rusage).

    The peak is looked at while it runs: that of rusage begins with what this process has, from which it was forked.
    """
    assert process.stderr is not None
    deadline = time.monotonic() + timeout_s
    peak_mib, said = 0.0, b""
    try:
        while True:
            ready, _, _ = select.select([process.stderr], [], [], SAMPLE_S)
            peak_mib = _peak_mib(process.pid) or peak_mib
            if ready:
                part = os.read(process.stderr.fileno(), 65536)
                if not part:
                    break
                said += part
            if time.monotonic() > deadline:
                raise BenchError(f"{' '.join(argv)}: not finished after {timeout_s:g} s")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        process.stderr.close()
    return said.decode(errors="replace"), peak_mib or usage.ru_maxrss / 1024, usage


def _peak_mib(pid: int) -> float:
    """Most memory that a process had resident so far; 0 once it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _work_seconds(said: str, wall_s: float) -> float:
    """What a child of ours says of its own time; another command's is that of the process."""
    for line in said.splitlines():
        if line.startswith(WORK_LINE):
            return float(line.removeprefix(WORK_LINE))
    return wall_s


def usable_cores() -> list[int]:
    """The cores that this process may use, by number."""
    return sorted(os.sched_getaffinity(0))


def _cores(number: int) -> list[int]:
    """The last ones of them: the first is where a machine does most else."""
    return usable_cores()[-number:]


def _environment() -> dict[str, str]:
    path = [str(CHECKOUT), str(CHECKOUT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "LC_ALL": "C.UTF-8"}
