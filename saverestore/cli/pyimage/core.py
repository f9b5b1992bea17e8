"""`pyimage core`: a domain for debuggers."""

from __future__ import annotations

import argparse

from saverestore.cli.pyimage.common import (
    RANDOM_ACCESS,
    Bar,
    Subparsers,
    add_command,
    add_image,
    add_output,
    new_file,
    opened,
    say,
    size_text,
)
from saverestore.errors import ExitCode
from saverestore.kernels.page import PAGE_SIZE
from saverestore.words import counted


def add_to(commands: Subparsers) -> None:
    """Declare `core`."""
    command = add_command(
        commands,
        "core",
        run,
        "make an ELF core file, for gdb, drgn and crash",
        f"{RANDOM_ACCESS} Each vCPU is a thread. Addresses are the guest's physical ones (pfn << 12), virtual "
        "and physical alike. "
        "With a Linux guest that keeps a vmcoreinfo note in its memory, the core has it, and drgn and crash find the "
        "kernel by it.",
    )
    add_image(command)
    add_output(command, "the core file to be made, mode 0600")


def run(arguments: argparse.Namespace) -> int:
    """Write the core."""
    with opened(arguments.image) as (access, index):
        from saverestore.image.core import write_core
        from saverestore.image.pages import count_with_data

        nr_bytes = count_with_data(index.pages) * PAGE_SIZE
        with new_file(arguments) as file, Bar(nr_bytes, "writing") as bar:
            report = write_core(access, index, file.sink.fileno(), arguments.output, bar.update_to)
    vmcoreinfo = report.vmcoreinfo
    for text in report.without_registers:
        say(f"these registers are missing: {text}")
    release = "no vmcoreinfo found" if vmcoreinfo is None else f"vmcoreinfo of Linux {_release(vmcoreinfo)}"
    say(
        f"{arguments.output}: {counted(report.nr_vcpus, 'vCPU')}, {counted(report.nr_pages, 'page')} "
        f"({size_text(nr_bytes)}) in {counted(report.nr_segments, 'segment')}, {release}"
    )
    return ExitCode.DONE


def _release(vmcoreinfo: bytes) -> str:
    text = vmcoreinfo.decode("ascii", "backslashreplace")
    return text.partition("OSRELEASE=")[2].partition("\n")[0]
