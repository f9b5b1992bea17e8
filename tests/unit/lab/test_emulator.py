from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from xenlab import emulator, qemu

FOLDER = "target/i386/tcg/sysemu"
BEFORE = {
    "fpu_helper.c": "void clear(void)\n{\n    env->hflags2 &= ~HF2_IGNNE_MASK;\n}\n",
    "svm_helper.c": "            do_interrupt_x86_hardirq(env, vector, 1);\n            break;\n",
}


def mended(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", emulator._MEND_SCRIPT], cwd=tree, capture_output=True, text=True, check=False
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / FOLDER).mkdir(parents=True)
    for name, text in BEFORE.items():
        (tmp_path / FOLDER / name).write_text(text)
    return tmp_path


def test_both_faults_are_mended_where_they_are(tree: Path) -> None:
    done = mended(tree)
    assert done.returncode == 0, done.stderr
    assert (
        "if (env->hflags2 & HF2_IGNNE_MASK) { env->hflags2 &=" in (tree / FOLDER / "fpu_helper.c").read_text()
    )
    assert "vector, 1); cs->exception_index = -1;\n" in (tree / FOLDER / "svm_helper.c").read_text()


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("times", [0, 2])
def test_a_source_that_is_another_one_is_not_mended_in_silence(tree: Path, name: str, times: int) -> None:
    (tree / FOLDER / name).write_text(BEFORE[name] * times)
    done = mended(tree)
    assert done.returncode == 1
    assert f"{FOLDER}/{name}" in done.stderr
    assert f"is there {times} times" in done.stderr


def test_x86_machines_are_booted_by_it_with_the_firmware_of_the_machines_own() -> None:
    called = emulator.command(Path("/cache/qemu-system-x86_64"))
    assert called == ("/cache/qemu-system-x86_64", "-L", "/usr/share/qemu", "-L", "/usr/share/seabios")
    boot = qemu.Boot(
        Path("/x"), Path("/k"), Path("/i"), Path("/d"), Path("/run/a"), 22, 64, 32, emulator=called
    )
    assert tuple(qemu.command_line(boot)[:5]) == called
