"""`tools/bench codecs`: who is compared with whom, and what is told when something is missing."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import cli, codecs, content, running
from benchmarks.codecs import IN, OUT, Contender, Figures, Measured
from benchmarks.errors import BenchError
from benchmarks.image import make_image
from benchmarks.running import Run
from xenlab import environment

COPY = ("cp", IN, OUT)


@pytest.fixture(autouse=True)
def signals_stay_as_they_are():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "file").write_bytes(b"something of a file " * 1000)
    (folder / "empty").touch()
    return folder


@pytest.fixture
def image(tmp_path: Path, root: Path) -> Path:
    path = tmp_path / "image"
    make_image(path, 1, root=root)
    return path


def measured_of(**seconds: float) -> Measured:
    """An image of 100 MB; each contender by its name, with what each of its runs took; the whole process 1 s more."""
    figures = []
    for one in codecs.contenders():
        if (name := one.title) in seconds:
            runs = [Run(seconds[name] + one.is_ours, seconds[name], 1.0, 50.0)]
            figures.append(Figures(one, 30_000_000, runs, runs, runs))
    return Measured(100_000_000, figures)


def test_every_peer_comes_from_a_package_and_ours_from_this_checkout():
    for one in codecs.contenders():
        if one.is_ours:
            assert one.pack[0] == sys.executable
        else:
            assert codecs.PACKAGES[one.program]
    titles = [one.title for one in codecs.contenders()]
    assert len(set(titles)) == len(titles)
    for wanted in (
        "gzip -1",
        "gzip -6",
        "pigz",
        "lz4",
        "zstd -1 -T0",
        "zstd -1 -T2",
        "by record, zstd",
        "at rest, zstd:3",
    ):
        assert any(wanted in title for title in titles), wanted


def test_contenders_are_chosen_by_a_part_of_their_names():
    some = codecs.chosen(codecs.contenders(), ["zstd -1", "rest, zstd:1, 2"])
    assert [one.title for one in some] == [
        "zstd -1 -T1, 1 core",
        "zstd -1 -T0, 2 cores",
        "zstd -1 -T2, 2 cores",
        "at rest, zstd:1, 2 cores",
    ]
    with pytest.raises(BenchError, match=r"bzip2.*there are.*gzip -1"):
        codecs.chosen(codecs.contenders(), ["bzip2"])


def test_targets_are_held_against_the_work_and_the_whole_process_is_told_beside_it():
    one = measured_of(
        **{"at rest, zstd:1, 2 cores": 0.1, "zstd -1 -T2, 2 cores": 0.2, "gzip -6, 2 cores": 2.0}
    )
    found = {line.what: line for line in codecs.comparisons(one)}
    faster = found["compress at rest, zstd:1, against zstd -1 -T2"]
    assert (faster.ours, faster.peer, faster.ratio, faster.holds) == (1000, 500, 2.0, True)
    whole = found["compress at rest, zstd:1, against zstd -1 -T2, with Python's start"]
    assert (whole.ours, whole.target, whole.holds) == (90.9, None, None)
    assert found["compress at rest, zstd:1, against gzip -6"].ratio == 20.0
    assert found["size at rest, zstd:1, against gzip -6"].holds
    assert "(91)" in codecs.report(one)


def test_nothing_is_compared_with_what_was_left_out():
    assert codecs.comparisons(measured_of(**{"gzip -6, 2 cores": 1.0})) == []
    only_gzip = measured_of(**{"at rest, zstd:1, 2 cores": 0.1, "gzip -6, 2 cores": 1.0})
    assert all("gzip" in line.what for line in codecs.comparisons(only_gzip))


def test_a_whole_round_leaves_nothing_behind(tmp_path, image):
    folder = tmp_path / "memory"
    folder.mkdir()
    copy = Contender("cp", 1, COPY, COPY, ("cat", IN), "cp")
    ours = next(one for one in codecs.contenders() if one.title == "at rest, zstd:1, 1 core")
    one = codecs.measure(image, [copy, ours], rounds=2, folder=folder)
    assert [len(figures.packing) for figures in one.figures] == [2, 2]
    plain, compressed = (figures.packed_bytes for figures in one.figures)
    assert plain == one.image_bytes > compressed
    run = one.figures[1].packing[0]
    assert 0 < run.work_s < run.wall_s
    assert run.peak_mib > 10
    assert list(folder.iterdir()) == []


def test_zero_pages_are_held_against_a_copy(tmp_path):
    (line,) = codecs.zero_pages(rounds=1, folder=tmp_path, say=lambda text: None, mib=1)
    assert line.target == 0.9
    assert line.ours > 0 < line.peer
    assert list(tmp_path.iterdir()) == []


def test_a_contender_that_brings_back_other_bytes_ends_the_run(tmp_path, image):
    bad = Contender("bad", 1, COPY, ("sh", "-c", f"head -c 100 {IN} > {OUT}"), COPY, "sh")
    with pytest.raises(BenchError, match="bad, 1 core: what it decompresses is not what it compressed"):
        codecs.measure(image, [bad], rounds=1, folder=tmp_path)
    assert not list(tmp_path.glob("bench-*"))


def test_a_program_that_is_missing_or_fails_is_named():
    with pytest.raises(BenchError, match="no-such-program is not installed"):
        running.run(["no-such-program"], cores=1)
    with pytest.raises(BenchError, match=r"sh -c .*: exit 3: what went wrong"):
        running.run(["sh", "-c", "echo what went wrong >&2; exit 3"], cores=1)


def test_a_program_that_does_not_end_is_ended():
    with pytest.raises(BenchError, match=r"not finished after 0\.2 s"):
        running.run(["sleep", "60"], cores=1, timeout_s=0.2)


def test_a_folder_without_room_is_refused_before_anything_is_run(tmp_path, image, monkeypatch):
    full = os.statvfs_result((4096, 4096, 1000, 0, 0, 1000, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(BenchError, match="give another with --folder"):
        codecs.measure(image, codecs.contenders()[:1], rounds=1, folder=tmp_path)


def test_more_cores_than_there_are_cannot_be_asked_for(tmp_path, image, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    with pytest.raises(BenchError, match="two are needed"):
        codecs.measure(image, codecs.contenders(), rounds=1, folder=tmp_path)


def test_made_up_memory_is_the_same_each_time_and_has_its_shares(root):
    kinds = content.kinds_of(200_000)
    assert np.array_equal(kinds, content.kinds_of(200_000))
    shares = np.bincount(kinds) / len(kinds)
    assert np.allclose(shares, list(content.SHARES.values()), atol=0.03)
    pages = next(content.file_pages(root))
    assert pages.tobytes().rstrip(b"\0") == (root / "file").read_bytes()


def test_a_root_without_files_is_refused(tmp_path):
    with pytest.raises(BenchError, match="--root"):
        next(content.file_pages(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["codecs", "/not/there", "--only", "dd"], 1, "/not/there"),
        (["codecs", "image", "--only", "bzip2"], 1, "no contender is called bzip2"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(arguments, code, text, capsys):
    assert cli.main(arguments) == code
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("bench: ")
    assert text in said[0]


def test_rounds_must_be_a_number_above_0(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["codecs", "image", "--rounds", "0"])
    assert ended.value.code == 2
    assert "'0' is not a number above 0" in capsys.readouterr().err


def test_without_what_it_takes_it_goes_on_in_the_environment_of_the_tests(monkeypatch, tmp_path):
    class Replaced(BaseException):
        """What execv() does: nothing after it runs."""

    def execv(program, arguments):
        raise Replaced(program, *arguments)

    monkeypatch.setitem(sys.modules, "lz4", None)  # as if it were not installed
    monkeypatch.setattr(environment, "ensure", lambda: tmp_path / "bin/python")
    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(Replaced) as caught:
        cli.main(["codecs", "web1.img"])
    python, _, program, *arguments = caught.value.args
    assert str(python) == str(tmp_path / "bin/python")
    assert program.endswith("/tools/bench")
    assert arguments == ["codecs", "web1.img"]


def test_what_is_missing_in_that_environment_is_one_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "lz4", None)
    monkeypatch.setattr(environment, "ensure", lambda: tmp_path / "bin/python")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert cli.main(["codecs", "web1.img"]) == 1
    assert "cannot be imported" in capsys.readouterr().err
