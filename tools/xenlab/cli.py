"""`tools/lab`: the commands, their help, their exit codes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from xenlab import cache, console, pair_cli, runstate, ssh
from xenlab.errors import Interrupted, LabError, raise_on_signals, say
from xenlab.machine import (
    ARM64_DOM0_MEMORY_MIB,
    ARM64_MEMORY_MIB,
    CHECKOUT,
    DOM0_MEMORY_MIB,
    MEMORY_MIB,
    Machine,
)
from xenlab.variants import ARCHITECTURES, DEFAULT, VARIANTS, of_architecture

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_DESCRIPTION = """\
A real Xen host in software emulation, for development: no Xen hardware, no KVM. Its dom0 is a Debian
with all the project needs; every boot starts from the same disk.

  tools/lab up                      build what is missing, boot, wait for dom0      (first time: minutes)
  tools/lab push                    compile this checkout for dom0 and install it there
  tools/lab ssh -- pysave --help    run a command in dom0
  tools/lab ssh -- lab-guest create g1 --kind pv && tools/lab ssh -- lab-guest wait g1
  tools/lab down

In dom0: `xl`, the commands pushed, and `lab-guest` (creates and watches self-checking guests).
"""

_EPILOG = f"""\
variants: {
    ", ".join(
        f"{v.name} ({v.suite}{', shadow paging: PV log-dirty works' if v.shadow else ''}"
        f"{', stock xl only' if v.stock else ''}{f', {v.arch}, GICv{v.gic}' if v.is_arm64 else ''})"
        for v in VARIANTS.values()
    )
}; default {DEFAULT}
files:    $PYSAVE_LAB_CACHE, else pysave-lab in $XDG_CACHE_HOME or ~/.cache; removing it is safe when down
exit:     0 done, 1 failed (one line says what to do), 2 wrong usage; `ssh` exits as its command did
"""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="lab", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, help_text: str, details: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=help_text, description=f"{help_text}.\n\n{details}", formatter_class=raw
        )
        sub.set_defaults(run=globals()[f"_{name}"])
        return sub

    def with_variant(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("--xen", choices=VARIANTS, default=DEFAULT, help=f"variant (default {DEFAULT})")
        sub.add_argument(
            "--arch", choices=ARCHITECTURES, help="the variant with that Xen on this architecture"
        )
        return sub

    with_variant(add("build", "build what `up` needs and is not in the cache", "Needs root the first time."))

    up = with_variant(add("up", "boot the lab and wait until its dom0 is ready", "Builds what is missing."))
    up.add_argument("--memory", type=int, metavar="MIB",
                    help=f"default {MEMORY_MIB}, on arm64 {ARM64_MEMORY_MIB}")  # fmt: skip
    up.add_argument("--dom0-memory", type=int, metavar="MIB",
                    help=f"default {DOM0_MEMORY_MIB}, on arm64 {ARM64_DOM0_MEMORY_MIB}")  # fmt: skip

    run = with_variant(add("ssh", "run a command in dom0, or a shell", "Exits with the command's status."))
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="one word: a shell line")

    with_variant(
        add(
            "push",
            "install this checkout in dom0",
            "Compiled and installed with the suite's own Python; then /opt/pysave in dom0, importable\n"
            "everywhere, commands on the PATH; tests/ and pyproject.toml in /root/pysave. Needs root.",
        )
    )

    term = with_variant(add("console", "attach to the serial console (Ctrl-] leaves)"))
    term.add_argument("--log", action="store_true", help="print what the console said since boot instead")

    add("status", "show every variant: built, up since when, ssh port, pid")

    add(
        "matrix",
        "save on each Xen, restore on it and on newer ones: the table of versions in docs/reference/tested.md",
        "Guests are saved by stock xl and by pysave, and restored by pyrestore and by stock xl. Boots one Xen after\n"
        "the other; half an hour. Exits with 1 when a cell failed.",
    )

    down = with_variant(add("down", "switch the lab off; what dom0 wrote is forgotten"))
    down.add_argument("--all", action="store_true", help="every variant")

    pair_cli.add_to(commands)
    return parser


def _build(args: argparse.Namespace) -> int:
    start = time.monotonic()
    Machine(args.xen).build()
    say(f"{args.xen}: built ({time.monotonic() - start:.1f} s)")
    return OK


def _up(args: argparse.Namespace) -> int:
    machine = Machine(args.xen)
    before = machine.state
    state = machine.up(memory_mib=args.memory, dom0_memory_mib=args.dom0_memory)
    already = " already" if before == state else ""
    print(f"{args.xen} is up{already}: ssh port {state.ssh_port}, pid {state.pid}")
    return OK


def _ssh(args: argparse.Namespace) -> int:
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    state = Machine(args.xen).require_up()
    argv = ssh.command(args.xen, state, words) if words else ssh.interactive(args.xen, state)
    return subprocess.run(argv, check=False).returncode


def _push(args: argparse.Namespace) -> int:
    start = time.monotonic()
    shipped = Machine(args.xen).push(CHECKOUT)
    took = time.monotonic() - start
    print(f"{args.xen}: {'installed in dom0' if shipped else 'dom0 has it already'} ({took:.1f} s)")
    return OK


def _console(args: argparse.Namespace) -> int:
    machine = Machine(args.xen)
    if args.log:
        try:
            sys.stdout.buffer.write(machine.serial_log.read_bytes())
        except FileNotFoundError:
            raise LabError(f"{args.xen} was never up: run `tools/lab up --xen {args.xen}`") from None
        return OK
    machine.require_up()
    console.attach(machine.folder / "console.sock")
    return OK


def _status(_args: argparse.Namespace) -> int:
    print(f"cache: {cache.cache_root()}")
    for name in VARIANTS:
        machine = Machine(name)
        state = machine.state
        built = "built" if machine.is_built else "not built"
        if state is None:
            print(f"{name:12} {built:10} down")
            continue
        age = runstate.age_text(time.time() - state.since_s)
        try:
            said = machine.run("xl info xen_version", timeout=20).stdout.decode().strip()
        except LabError as error:
            said = f"does not answer ({error})"
        print(f"{name:12} {built:10} up for {age}, Xen {said}, ssh port {state.ssh_port}, pid {state.pid}")
    pair_cli.print_hosts()
    return OK


def _matrix(_args: argparse.Namespace) -> int:
    from xenlab.matrix import fill

    table, failed = fill()
    print(table)
    return FAILED if failed else OK


def _down(args: argparse.Namespace) -> int:
    for name in VARIANTS if args.all else [args.xen]:
        print(f"{name}: {'switched off' if Machine(name).down() else 'was down'}")
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of `tools/lab` and return its exit code."""
    args = _parser().parse_args(argv)
    raise_on_signals()
    try:
        if getattr(args, "arch", None):
            args.xen = of_architecture(args.xen, args.arch)
        code: int = args.run(args)
    except LabError as error:
        if error.tail:
            print(error.tail, file=sys.stderr)
        say(f"error: {error}")
        return FAILED
    except (KeyboardInterrupt, Interrupted):
        say("interrupted: cleaned up")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    return code
