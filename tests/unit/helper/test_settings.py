"""Settings of the helper: from a file, from variables, and refused by name when they make no sense."""

from __future__ import annotations

import tomllib

import pytest

from saverestore.engine.policy import Limits, OnStall
from saverestore.errors import UsageError
from saverestore.helper import settings
from saverestore.helper.settings import Choice, Settings, read_settings


@pytest.fixture(autouse=True)
def usual_file(tmp_path, monkeypatch):
    path = tmp_path / "pysave.toml"
    monkeypatch.setattr(settings, "CONFIG", path)
    return path


def test_without_a_file_or_variables_they_are_the_defaults():
    assert read_settings({"PATH": "/bin"}) == Settings()


@pytest.mark.parametrize("name", settings.KINDS)
def test_each_setting_accepts_its_default_and_is_explained_with_it(name):
    default = getattr(Settings(), name)
    assert settings.KINDS[name].accepts(default)
    (line,) = [line for line in settings.table().splitlines() if line.split()[0] == name]
    assert f"PYSAVE_{name.upper()} " in line
    assert tomllib.loads(line.partition("PYSAVE_")[0]) == {name: default}
    assert len(line) <= 120


@pytest.mark.parametrize("name", [name for name, kind in settings.KINDS.items() if isinstance(kind, Choice)])
def test_the_help_of_a_setting_names_every_word_that_it_may_be(name):
    (line,) = [line for line in settings.table().splitlines() if line.split()[0] == name]
    _, _, text = line.partition("PYSAVE_")
    assert [word for word in settings.KINDS[name].words if word not in text] == []


def test_a_variable_goes_before_the_file(usual_file):
    usual_file.write_text('dirty = "digest"\nmax_rounds = 9\nplain = true\n')
    found = read_settings({"PYSAVE_MAX_ROUNDS": "7", "PYSAVE_PLAIN": "no"})
    assert found == Settings(dirty="digest", max_rounds=7, plain=False)


def test_a_digest_is_made_unless_a_setting_says_otherwise(usual_file):
    assert read_settings({}).digest == "xxh3"
    assert read_settings({"PYSAVE_DIGEST": "none"}).digest == "none"
    usual_file.write_text('digest = "sha256"')
    assert read_settings({}).digest == "sha256"


def test_limits_of_a_live_save_are_as_xl_has_them_unless_settings_say_otherwise(usual_file):
    assert read_settings({}).limits == Limits()
    usual_file.write_text('downtime_ms = 300\non_stall = "throttle"\nmax_time = 60\nfew_pages = 9\n')
    found = read_settings({"PYSAVE_MAX_ROUNDS": "12"}).limits
    assert found == Limits(12, 9, 60, 0.3, OnStall.THROTTLE)


def test_the_file_is_utf_8_whatever_the_locale_is(usual_file, monkeypatch):
    usual_file.write_bytes("[pysave]\nwhile_suspended = 'ü'\n".encode())
    monkeypatch.setattr("io.text_encoding", lambda *_: "latin-1")
    assert settings.read_file({})[1] == {"pysave": {"while_suspended": "ü"}}


@pytest.mark.parametrize(
    "content",
    [None, b"plain = '\xff'", b"workers = " + b"9" * 5000, b"workers = " + b"[" * 20_000],
    ids=["directory", "not UTF-8", "a long number", "deep"],
)
def test_what_cannot_be_read_is_named_once(usual_file, content):
    if content is None:
        usual_file.mkdir()
    else:
        usual_file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_settings({})
    text = str(caught.value)
    assert text.count(str(usual_file)) == 1
    assert "Errno" not in text and "codec" not in text


def test_the_file_that_a_variable_names_must_be_there(tmp_path):
    other = tmp_path / "other.toml"
    with pytest.raises(UsageError, match=r"other.toml: no such file .*PYSAVE_CONFIG"):
        read_settings({"PYSAVE_CONFIG": str(other)})
    other.write_text("workers = 4")
    assert read_settings({"PYSAVE_CONFIG": str(other)}).workers == 4


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("dirty = 'perhaps'", "dirty is 'perhaps', but must be auto or log or digest"),
        ("workers = 0", "workers is 0, but must be a number from 1"),
        ("workers = '2'", "workers is '2'"),
        ("digest = 'md5'", "digest is 'md5', but must be xxh3 or sha256 or blake3 or none"),
        ("plain = 1", "plain is 1, but must be true or false"),
        ("workers = true", "workers is true, but must be a number from 1"),
        ("dirty = 1979-05-27", 'dirty is "1979-05-27", but must be auto or log or digest'),
        ("[pysvae]", "and tables [pysave], [pyrestore], [pymigrate], [pymigrate-receive]"),
        ("dirt = 'auto'", "no setting dirt; there are dirty,"),
        ("dirty =", "pysave.toml: "),
    ],
)
def test_what_makes_no_sense_in_the_file_is_refused_by_name(usual_file, text, what):
    usual_file.write_text(text)
    with pytest.raises(UsageError, match=r"pysave\.toml") as caught:
        read_settings({})
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYSAVE_DIRTY", ""),
        ("PYSAVE_WORKERS", "many"),
        ("PYSAVE_WORKERS", "-1"),
        ("PYSAVE_WORKERS", "65"),
        ("PYSAVE_ON_STALL", "wait"),
        ("PYSAVE_DOWNTIME_MS", "0.3"),
        ("PYSAVE_MAX_TIME", "-1"),
        ("PYSAVE_PLAIN", "maybe"),
        ("PYSAVE_LOG_LEVEL", "loud"),
    ],
)
def test_what_makes_no_sense_in_a_variable_is_refused_by_name(name, value):
    with pytest.raises(UsageError, match=rf"\${name}: "):
        read_settings({name: value})


def test_a_number_that_python_would_not_read_is_refused_by_name():
    with pytest.raises(UsageError, match=r"\$PYSAVE_WORKERS: workers is '9+', but must be a number"):
        read_settings({"PYSAVE_WORKERS": "9" * 5000})
