"""`tools/lab pair`: its commands, their help."""

from __future__ import annotations

import argparse
import subprocess
import time

from xenlab import link, runstate, ssh
from xenlab.errors import LabError
from xenlab.pair import DOM0_MEMORY_MIB, MEMORY_MIB, NAMES, Pair, variants_of
from xenlab.variants import ARCHITECTURES, DEFAULT, VARIANTS, of_architecture

_DESCRIPTION = f"""\
Two Xen hosts in software emulation, for migration: hosta (10.0.9.1) and hostb (10.0.9.2) on a cable of their own,
which is in the bridge xenbr0 of each. Root of each may ssh to the other. /dev/vdb is the same disk in both.

  tools/lab pair up                                      4.17 on both; some {2 * MEMORY_MIB / 1024:.0f} GiB of memory
  tools/lab pair up --xen 4.17:4.20
  tools/lab pair push                                    compile this checkout and install it in both
  tools/lab pair ssh a -- lab-guest create g1 --memory 128
  tools/lab pair ssh a -- xl migrate g1 hostb
  tools/lab pair link --rate 100mbit --delay 20ms --loss 0.1%
  tools/lab pair link cut && tools/lab pair link heal
  tools/lab pair off b && tools/lab pair on b            its plug is pulled; its disk is kept
  tools/lab pair down                                    and all disks are forgotten
"""

_LINK = """\
netem on what each host sends, in its dom0: --delay is one way, so an answer takes twice that. A new setting replaces
the one before. `cut` loses every frame without a word, in both directions or, with --sent-by, in one.
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `pair` and its commands."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "pair", help="two hosts, for migration", description=_DESCRIPTION, formatter_class=raw
    )
    own = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, help_text: str, details: str = "") -> argparse.ArgumentParser:
        sub = own.add_parser(
            name, help=help_text, description=f"{help_text}.\n\n{details}", formatter_class=raw
        )
        sub.set_defaults(run=globals()[f"_{name}"])
        return sub

    up = add(
        "up",
        "boot both, or those that are off, and wait until their dom0s are ready",
        "Builds what is missing. A host that was switched off with `off` finds its disk as it left it.",
    )
    up.add_argument(
        "--xen",
        type=_variants,
        metavar="A[:B]",
        help=f"variant of both, or of each: {', '.join(VARIANTS)} (default {DEFAULT})",
    )
    up.add_argument(
        "--arch",
        dest="architecture",
        choices=ARCHITECTURES,
        help="the variants with that Xen on this architecture",
    )
    up.add_argument("--memory", type=int, metavar="MIB", help=f"of each host (default {MEMORY_MIB})")
    up.add_argument(
        "--dom0-memory", type=int, metavar="MIB", help=f"of each dom0 (default {DOM0_MEMORY_MIB})"
    )

    run = add("ssh", "run a command in a dom0, or a shell", "Exits with the command's status.")
    run.add_argument("host", choices=NAMES)
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="one word: a shell line")

    add("push", "install this checkout in both dom0s", "As `tools/lab push` does.")
    for name, help_text in (
        ("off", "pull a host's plug: its guests are gone, its disk is kept"),
        ("on", "boot a host that is off, from its disk as it is"),
    ):
        add(name, help_text).add_argument("host", choices=NAMES)

    shape = add("link", "slow the cable down, cut it, heal it, show how it is", _LINK)
    shape.add_argument("action", nargs="?", choices=("cut", "heal", "show"), help="or any of the options")
    shape.add_argument("--rate", metavar="RATE", help="such as 100mbit: bit, kbit, mbit, gbit per second")
    shape.add_argument("--delay", metavar="TIME", help="such as 20ms: us, ms, s")
    shape.add_argument("--loss", metavar="PART", help="such as 0.1%%")
    shape.add_argument("--sent-by", choices=NAMES, help="only what this host sends")

    add("status", "show both hosts: Xen, up since when, ssh port, pid")
    add("down", "switch both off; what they wrote, and the disk that both see, is forgotten")


def _variants(text: str) -> dict[str, str]:
    try:
        return variants_of(text)
    except LabError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _up(args: argparse.Namespace) -> int:
    variants: dict[str, str] | None = args.xen
    if args.architecture:
        asked = variants or variants_of(DEFAULT)
        variants = {name: of_architecture(variant, args.architecture) for name, variant in asked.items()}
    start = time.monotonic()
    Pair().up(variants, memory_mib=args.memory, dom0_memory_mib=args.dom0_memory)
    print(f"the pair is up ({time.monotonic() - start:.1f} s)")
    return _status(args)


def _ssh(args: argparse.Namespace) -> int:
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    host = Pair().host(args.host)
    state = host.require_up()
    argv = ssh.command(host.place, state, words) if words else ssh.interactive(host.place, state)
    return subprocess.run(argv, check=False).returncode


def _push(_args: argparse.Namespace) -> int:
    start = time.monotonic()
    for name, shipped in zip(NAMES, Pair().push(), strict=True):
        print(f"host{name}: {'installed in dom0' if shipped else 'dom0 has it already'}")
    print(f"({time.monotonic() - start:.1f} s)")
    return 0


def _off(args: argparse.Namespace) -> int:
    print(f"host{args.host}: {'its plug is pulled' if Pair().power_off(args.host) else 'was off'}")
    return 0


def _on(args: argparse.Namespace) -> int:
    Pair().power_on(args.host)
    return _status(args)


def _link(args: argparse.Namespace) -> int:
    pair = Pair()
    shaped = any(value is not None for value in (args.rate, args.delay, args.loss))
    if bool(args.action) == shaped:
        raise LabError("either one of cut, heal, show, or some of --rate, --delay, --loss")
    if args.action == "heal":
        pair.heal(sent_by=args.sent_by)
    elif args.action != "show":
        wanted = link.CUT if args.action == "cut" else link.parse(args.rate, args.delay, args.loss)
        pair.link(wanted, sent_by=args.sent_by)
    for name, found in pair.shown_link().items():
        print(f"host{name} sends: {found}")
    return 0


def _status(_args: argparse.Namespace) -> int:
    if Pair().is_there:
        print_hosts()
    else:
        print("there is no pair")
    return 0


def print_hosts() -> None:
    """Print a line for each host of the pair; nothing when there is none."""
    for host in Pair().hosts if Pair().is_there else ():
        state = host.state
        if state is None:
            print(f"{host.label}  {host.variant.name:12} off")
            continue
        age = runstate.age_text(time.time() - state.since_s)
        print(
            f"{host.label}  {host.variant.name:12} up for {age}, ssh port {state.ssh_port}, pid {state.pid}"
        )


def _down(_args: argparse.Namespace) -> int:
    print(f"the pair: {'switched off' if Pair().down() else 'was not there'}")
    return 0
