"""Settings of commands in the helper's file: the command line goes before them; mistakes name file and key."""

from __future__ import annotations

import pytest

from saverestore.cli import pyrestore, pysave, settings
from saverestore.cli.parsers import parser_of_table
from saverestore.helper.settings import TABLES, read_settings


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "pysave.toml"
    monkeypatch.setenv("PYSAVE_CONFIG", str(path))
    return path


def parsed(command: str, *words: str):
    return settings.parse(parser_of_table(command), words)


def test_an_option_that_the_command_line_has_not_is_as_the_file_says(file):
    file.write_text(
        '[pysave]\ncompress = "zstd:7"\ndowntime_ms = 300\non_stall = "abort"\ndigest = "sha256"\n'
    )
    given = parsed("pysave", "--live", "web1", "a.img")
    assert (given.compress, given.downtime_s, given.on_stall, given.digest) == (7, 0.3, "abort", "sha256")
    assert given.from_settings == {"compress", "downtime_s", "on_stall", "digest"}


def test_the_command_line_goes_before_the_file_also_with_the_usual_default(file):
    file.write_text('[pysave]\non_stall = "abort"\ntoolstack = "bare"\n')
    given = parsed("pysave", "--live", "--on-stall", "stop", "--toolstack=libxl", "web1", "a.img")
    assert (given.on_stall, given.toolstack) == ("stop", "libxl")
    assert given.from_settings == set()


def test_the_command_line_can_also_ask_for_none_of_it(file):
    file.write_text('[pysave]\ncompress = "zstd"\nbwlimit = "50MiB/s"\n')
    assert parsed("pysave", "web1", "a.img").bwlimit == 50 << 20
    given = parsed("pysave", "--compress", "none", "--bwlimit", "none", "web1", "a.img")
    assert (given.compress, given.bwlimit) == (None, None)
    file.write_text('[pymigrate]\nbwlimit = "50MiB/s"\n')
    assert parsed("pymigrate", "web1", "host2").bwlimit == 50 << 20
    assert parsed("pymigrate", "--bwlimit", "none", "web1", "host2").bwlimit is None


@pytest.mark.parametrize(
    ("image", "cache"), [("a.img", "direct"), ("-", "auto"), ("tcp://b:1", "auto"), ("/dev/null", "auto")]
)
def test_a_setting_of_how_files_are_written_is_left_out_of_what_is_no_file(file, monkeypatch, image, cache):
    seen = []
    monkeypatch.setattr(
        "saverestore.operations.save.save_domain", lambda request, *_, **__: seen.append(request)
    )
    file.write_text('[pysave]\ncache = "direct"\n')
    given = parsed("pysave", "-q", "web1", image)
    assert given.cache == "direct"
    pysave._save(given, None)
    assert [request.cache for request in seen] == [cache]


def test_each_command_has_a_table_of_its_own(file):
    file.write_text('dirty = "digest"\n[pyrestore]\ntoolstack = "bare"\n[pymigrate]\nsettle_for = 5\n')
    assert parsed("pysave", "web1", "a.img").toolstack == "auto"
    assert parsed("pysave", "web1", "a.img").dirty == "auto"
    assert parsed("pyrestore", "a.img").toolstack == "bare"
    assert parsed("pymigrate", "web1", "host2").settle_for == 5.0
    assert read_settings({"PYSAVE_CONFIG": str(file)}).dirty == "digest"


def test_a_receiver_has_a_table_of_its_own(file):
    file.write_text('[pymigrate]\nsettle_for = 5\n[pymigrate-receive]\nports = "8710-8725"\n')
    given = parsed("pymigrate-receive")
    assert (given.ports, given.data_listen) == ((8710, 8725), None)
    assert parsed("pymigrate-receive", "--ports", "9000").ports == (9000, 9000)


def test_without_a_file_nothing_is_set(tmp_path, monkeypatch):
    monkeypatch.delenv("PYSAVE_CONFIG", raising=False)
    monkeypatch.setattr("saverestore.helper.settings.CONFIG", tmp_path / "none.toml")
    assert parsed("pysave", "web1", "a.img").from_settings == set()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[pysave]\ncompres = 'zstd'",
            "pysave.toml: [pysave] has no setting compres; there are compress, ",
        ),
        ("[pysave]\nlive = 'yes'", "[pysave] has no setting live"),
        ("[pysave]\ncompress = 'gzip'", "pysave.toml: [pysave] compress: must be zstd, or zstd:1 to zstd:19"),
        ("[pysave]\ndowntime_ms = 0", "[pysave] downtime_ms: must be a number greater than 0, not '0'"),
        ("[pysave]\nmax_rounds = true", "[pysave] max_rounds: must be a text or a number"),
        ("[pysave]\ndigest = 'md5'", "[pysave] digest: 'md5' is not one of: xxh3"),
        ("[pysvae]\ndigest = 'none'", "there is no setting pysvae"),
        ("pysave = 3", "pysave must be a table, [pysave]"),
        ("[pysave", "pysave.toml: "),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(file, capsys, text, said):
    file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        pysave.main(["web1", "a.img"])
    assert caught.value.code == 2
    out = capsys.readouterr().err
    assert said in out
    assert out.count("\n") == 1


def test_help_needs_no_file_that_is_right(file, capsys):
    file.write_text("[pysave]\nnothing = 1")
    with pytest.raises(SystemExit) as caught:
        pysave.main(["--help"])
    assert caught.value.code == 0
    assert "[pysave]" in capsys.readouterr().out


def test_a_recovery_needs_no_file_that_is_right_either(file, monkeypatch):
    file.write_text("[pysave]\nnothing = 1")
    monkeypatch.setattr("saverestore.cli.common.run", lambda prog, given, work: 0)
    assert pysave.main(["--recover", "web1"]) == 0


APPLIES_NOT = [
    ("downtime_ms = 300\nmax_rounds = 9\ndirty = 'digest'\non_stall = 'abort'", ["web1", "a.img"]),
    ("digest = 'sha256'", ["--plain", "web1", "a.img"]),
    ("compress = 'zstd'", ["--format", "draft-b", "web1", "a.img"]),
    ("codec = 'lz4'", ["web1", "a.img"]),
    ("parallel = 3\nwithin = 60\nif_unsaveable = 'shutdown'", ["web1", "a.img"]),
]


@pytest.mark.parametrize(("text", "words"), APPLIES_NOT, ids=str)
def test_a_setting_that_does_not_apply_is_no_mistake(file, monkeypatch, text, words):
    file.write_text(f"[pysave]\n{text}\n")
    seen = []
    monkeypatch.setattr("saverestore.cli.common.run", lambda prog, given, work: seen.append(given) or 0)
    assert pysave.main(words) == 0
    assert "draft-b" not in words or seen[0].compress is None


def test_the_same_on_the_command_line_is_one(file, capsys):
    file.write_text("")
    for words in (["--downtime-ms", "300"], ["--codec", "lz4"], ["--parallel", "3"]):
        with pytest.raises(SystemExit):
            pysave.main([*words, "web1", "a.img"])
    capsys.readouterr()


def test_settings_of_many_do_not_make_a_restore_one_of_many(file, monkeypatch):
    file.write_text("[pyrestore]\nparallel = 3\n")
    monkeypatch.setattr("saverestore.cli.common.run", lambda prog, given, work: 0)
    assert pyrestore.main(["a.img"]) == 0
    assert parsed("pyrestore", "--all").parallel == 3


@pytest.mark.parametrize("command", settings.OPTIONS)
def test_each_setting_is_an_option_with_a_value_that_the_command_line_can_change(command):
    found = dict(settings.actions_of(parser_of_table(command)))
    assert tuple(found) == settings.OPTIONS[command]
    assert [key for key, action in found.items() if action.nargs == 0] == []


def test_the_helper_knows_of_each_table():
    assert set(TABLES) == set(settings.OPTIONS)
