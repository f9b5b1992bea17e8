"""`pyimage` as a user runs it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from saverestore.cli import pyimage
from saverestore.cli.parsers import COMMANDS, subcommands_of
from saverestore.cli.pyimage import meanings
from saverestore.errors import ExitCode
from saverestore.stream import DomainType, LibxcWriter, LibxlWriter, XlHeader
from saverestore.stream.layout import PageType, RecordType, entries_of
from saverestore.stream.libxl import LibxlRecordType
from saverestore.stream.records import HvmContext, Provenance, StaticDataEnd, Verify
from saverestore.transport import FdSink
from saverestore.transport.zstd_seekable import Frame, SeekTable

ROOT = Path(__file__).parents[3]
CONFIG = {
    "c_info": {"type": "pvh", "name": "web\x1b[31m", "uuid": "00000000-0000-4000-8000-000000000001"},
    "b_info": {"max_vcpus": 2, "target_memkb": 65536, "max_memkb": 131072},
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "out.img"
    with FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path)) as sink:
        XlHeader.write(sink, json.dumps(CONFIG).encode())
        outer = LibxlWriter(sink)
        outer.libxc_context()
        writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
        writer.record(Provenance({"tool": "pysave", "host": "here"}))
        writer.record(StaticDataEnd())
        writer.page_data(entries_of(np.arange(3), np.array([0, 0, 15])), [bytes(4096), b"x" * 4096])
        writer.record(HvmContext(b"context"))
        writer.end()
        outer.end()
    return path


def test_an_error_has_no_control_characters(tmp_path):
    done = run("info", tmp_path / "a\x1b[31m\nb.img")
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.endswith("/a\\x1b[31m\\x0ab.img: no such file\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_can_be_shown_where_there_is_ascii_only(command):
    parser = COMMANDS[command][0]()
    for one in (parser, *subcommands_of(parser).values()):
        assert one.format_help().isascii()


def test_one_page_is_no_plural(tmp_path):
    path = tmp_path / "one.img"
    with FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path)) as sink:
        writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
        writer.record(StaticDataEnd())
        writer.page_data(entries_of(np.arange(1), np.array([0])), [b"x" * 4096])
        writer.record(HvmContext(b"context"))
        writer.end()
    shown = run("info", path).stdout
    assert "1 entry, 1 with data (4.0 KiB)" in shown
    assert "1 pfn, 0x0 to 0x0" in shown
    assert ", 1 page of data, " in run("verify", path).stdout


def test_an_image_with_pages_for_comparison_only_can_be_shown(tmp_path):
    path = tmp_path / "compared.img"
    with FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path)) as sink:
        writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
        writer.record(StaticDataEnd())
        writer.record(Verify())
        writer.page_data(entries_of(np.arange(2), np.array([0, 0])), [b"x" * 8192])
        writer.record(HvmContext(b"context"))
        writer.end()
    done = run("info", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pages           0 entries, 0 with data (0 bytes)" in done.stdout
    assert "for comparison  2 entries after VERIFY, not counted above" in done.stdout
    assert run("cat", "--hex", "--pfn", "0", path).stderr == f"pyimage: {path} has no pages\n"


@pytest.mark.parametrize("end", ["2>/dev/full", "2>&-"])
def test_messages_that_nobody_can_read_change_no_exit_code(image, tmp_path, end):
    """Not least: 1 of diff is that the images differ."""
    for words, code in (
        (f"diff {tmp_path}/absent {image}", ExitCode.USAGE),
        (f"dump {image} -o {tmp_path}/memory", ExitCode.DONE),
        (f"info {image} >&-", ExitCode.USAGE),
        (f"info {image} >/dev/full", ExitCode.IO),
    ):
        done = subprocess.run(f"{PYIMAGE} {words} {end}", shell=True, check=False, env=os.environ)
        assert done.returncode == code, words


PYIMAGE = f"{sys.executable} -m saverestore.cli.pyimage"


def run(
    *arguments: str | Path, stdin: bytes | None = None, stdout: Any = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYIMAGE.split(), *map(str, arguments)],
        input=None if stdin is None else stdin.decode("latin-1"),
        encoding="latin-1" if stdin is not None else "utf-8",
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        check=False,
    )


def run_shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=ROOT, check=False)


def test_verify_tells_in_one_line_that_an_image_is_whole(image, capsys):
    assert pyimage.main(["verify", str(image)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{image}: whole: x86 HVM or PVH domain web")
    assert "2 pages of data" in out
    assert out.count("\n") == 1


def test_verify_tells_in_one_line_where_an_image_ends_too_early(image, capsys):
    image.write_bytes(image.read_bytes()[:-4])
    assert pyimage.main(["verify", str(image)]) == 4
    out = capsys.readouterr().out
    assert f"{image} ends after {image.stat().st_size} bytes: 4 more bytes were expected" in out
    assert out.count("\n") == 1


def test_verify_finds_bytes_behind_the_image(image, capsys):
    image.write_bytes(image.read_bytes() + b"junk")
    assert pyimage.main(["verify", str(image)]) == 4
    assert "4 bytes follow the end of the image" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify", "info"])
def test_a_compressed_image_is_read_as_it_is(image, capsys, command):
    plain = image.read_bytes()
    image.write_bytes(zstandard.compress(plain[:5000]) + zstandard.compress(plain[5000:]))
    assert pyimage.main([command, str(image)]) == 0
    assert "whole" in capsys.readouterr().out
    with image.open("ab") as file:
        file.write(b"junk")
    assert pyimage.main([command, str(image)]) == 4
    assert "6a756e6b where a zstd frame should start" in capsys.readouterr().out


def test_a_seek_table_that_lies_is_an_error_of_the_image(image, capsys):
    frame = zstandard.compress(image.read_bytes())
    table = SeekTable.of([Frame(len(frame) + 1, image.stat().st_size, 0)]).pack()
    image.write_bytes(frame + table)
    assert pyimage.main(["verify", str(image)]) == 4
    assert "the seek table is wrong" in capsys.readouterr().err


def test_duplicates_are_counted_for_info(image, capsys):
    assert pyimage.main(["info", "--json", str(image)]) == 0
    assert json.loads(capsys.readouterr().out)["pages"]["nr_duplicate"] == 0
    assert pyimage.main(["info", str(image)]) == 0
    assert "duplicates      0 more pages" in capsys.readouterr().out


def test_info_shows_headers_domain_records_and_pages(image, capsys):
    assert pyimage.main(["info", str(image)]) == 0
    out = capsys.readouterr().out
    for text in (
        "xl > libxl > libxc, version 3",
        "Xen 4.17",
        "x86 HVM or PVH (pvh)",
        "00000000-0000-4000-8000-000000000001",
        "64.0 MiB, at most 128.0 MiB",
        "pysave",
        "PAGE_DATA",
        "libxl END",
        "3 entries, 2 with data (8.0 KiB)",
        "3 pfns, 0x0 to 0x2",
        "  XTAB          1 (no memory)",
        "pages of memory",
        "the end of the image",
        "whole",
    ):
        assert text in out


def test_info_has_words_for_every_record_and_page_type():
    assert set(meanings.RECORDS) == {kind.name for kind in RecordType} | {
        f"libxl {kind.name}" for kind in LibxlRecordType
    }
    assert set(meanings.PAGE_TYPES) == set(PageType)


def test_control_characters_of_an_image_do_not_reach_the_terminal(image, capsys):
    for command in ("info", "verify"):
        pyimage.main([command, str(image)])
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert r"web\x1b[31m" in out


def test_info_shows_of_a_broken_image_what_came_before_the_damage(image, capsys):
    data = bytearray(image.read_bytes())
    data[data.index(b"context") + 7] = 1  # padding of HVM_CONTEXT
    image.write_bytes(data)
    assert pyimage.main(["info", str(image)]) == 4
    out = capsys.readouterr().out
    assert "PAGE_DATA" in out
    assert "verdict         DAMAGED: HVM_CONTEXT record: nonzero padding 01 (at byte" in out


@pytest.mark.parametrize("command", ["info", "verify"])
def test_json_carries_the_same(image, capsys, command):
    assert pyimage.main([command, "--json", str(image)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["whole"] is True
    assert found["error"] is None
    assert found["domain_type"] == "X86_HVM"
    assert found["config"]["max_vcpus"] == 2
    assert found["records"]["PAGE_DATA"] == {"count": 1, "length_bytes": 8 + 8 + 24 + 8192}
    assert found["pages"]["nr_zero"] == 1
    assert found["pages"]["by_type"] == {"NOTAB": 2, "XTAB": 1}
    assert found["total_bytes"] == image.stat().st_size


def test_json_of_a_broken_image_names_the_place(image, capsys):
    image.write_bytes(image.read_bytes()[:100])
    assert pyimage.main(["verify", "--json", str(image)]) == 4
    found = json.loads(capsys.readouterr().out)
    assert found["whole"] is False
    assert found["error"]["offset"] == 100


def test_an_empty_file_and_a_text_are_no_images(tmp_path, capsys):
    for content in (b"", b"#!/bin/sh\n"):
        path = tmp_path / "file"
        path.write_bytes(content)
        assert pyimage.main(["verify", str(path)]) == 4
        assert str(path) in capsys.readouterr().out


def test_what_is_no_file_is_wrong_usage(tmp_path, capsys):
    assert pyimage.main(["info", str(tmp_path / "absent")]) == 2
    assert pyimage.main(["info", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "absent: no such file" in error
    assert "a directory, not an image" in error


def test_reading_that_fails_is_told_apart_from_damage(capsys):
    assert pyimage.main(["verify", "/proc/self/mem"]) == 5
    assert "pyimage: /proc/self/mem: reading failed" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_ends_it_without_a_traceback(image, tmp_path, capsys, number, name):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write_half() -> None:
        with pipe.open("wb") as file, contextlib.suppress(BrokenPipeError):
            file.write(image.read_bytes()[:-30])
            file.flush()
            signal.pthread_kill(threading.main_thread().ident, number)
            ended.wait()

    ended = threading.Event()
    writer = threading.Thread(target=write_half)
    writer.start()
    try:
        assert pyimage.main(["verify", str(pipe)]) == 130
    finally:
        ended.set()
        writer.join()
    assert capsys.readouterr().err == f"pyimage: interrupted by {name}\n"


def test_output_that_goes_nowhere_is_an_error_and_no_traceback(image):
    with Path("/dev/full").open("w") as full:
        done = run("verify", str(image), stdout=full)
    assert done.returncode == 5
    assert done.stderr == "pyimage: standard output: No space left on device\n"
    closed = run_shell(f"{PYIMAGE} verify {image} >&-")
    assert (closed.returncode, closed.stderr) == (2, "pyimage: standard output is closed\n")
    without_input = run_shell(f"{PYIMAGE} verify - <&-")
    assert without_input.returncode == 2
    assert without_input.stderr == "pyimage: no image on standard input: it is closed\n"


def test_an_image_comes_through_standard_input_too(image):
    done = run("verify", "-", stdin=image.read_bytes())
    assert done.returncode == 0
    assert done.stdout.startswith("standard input: whole")
    assert done.stderr == ""


def test_wrong_arguments_exit_with_2_and_help_has_the_exit_codes():
    assert run().returncode == 2
    assert run("frobnicate").returncode == 2
    helped = run("--help")
    assert helped.returncode == 0
    assert "exit codes:" in helped.stdout
    assert "130" in run("verify", "--help").stdout
    assert run("--version").stdout.startswith("pyimage ")


def test_help_imports_neither_numpy_nor_the_bindings_to_xen():
    code = (
        "import sys; from saverestore.cli import pyimage\ntry: pyimage.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('numpy', 'pyxc', 'tqdm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.endswith("[]\n")


def test_the_format_layer_imports_nothing_of_xen():
    code = (
        "import sys, saverestore.stream.survey, saverestore.transport, saverestore.cli.pyimage\n"
        "layers = ['pyxc', 'pyxc._xen']\n"
        "layers += ['saverestore.' + layer for layer in ('engine', 'guest', 'toolstack', 'migrate')]\n"
        "print([name for name in layers if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_a_reader_that_has_seen_enough_causes_no_traceback(image):
    command = f"{sys.executable} -m saverestore.cli.pyimage info {image} | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stderr == ""
