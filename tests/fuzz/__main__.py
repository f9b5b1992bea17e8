"""`python -m tests.fuzz TARGET --seconds N`: guided by coverage where atheris is installed, else by chance."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

LONGEST_INPUT = 1 << 16

LEAKING = "saverestore.stream.xor_rle_numpy"
"""atheris 3.0 loses some kB for each comparison of arrays that it instruments; without it, memory stays level."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="one of tests/fuzz/targets.py; 'list' names them")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--corpus", type=Path, help="folder to begin with and to add to; default: a fresh one"
    )
    parser.add_argument("--by-chance", action="store_true", help="do without atheris")
    parser.add_argument(
        "--findings", type=Path, default=Path("fuzz-findings"), help="where what fails is put"
    )
    arguments = parser.parse_args()
    atheris = None if arguments.by_chance else _atheris()
    if atheris is not None:
        # Whatever is to be guided by must be imported in here first.
        with atheris.instrument_imports(include=["saverestore"], exclude=[LEAKING]):
            from tests.fuzz.targets import TARGETS
    from tests.fuzz.corpus import SEEDS
    from tests.fuzz.targets import TARGETS

    if arguments.target not in TARGETS:
        print("\n".join(TARGETS))
        return 0 if arguments.target == "list" else 2
    target, seeds = TARGETS[arguments.target], SEEDS[arguments.target]()
    if atheris is None:
        return _by_chance(target, seeds, arguments)
    folder = arguments.corpus or Path(tempfile.mkdtemp(prefix=f"fuzz-{arguments.target}-"))
    folder.mkdir(parents=True, exist_ok=True)
    arguments.findings.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={arguments.seconds}",
        f"-max_len={LONGEST_INPUT}",
        f"-artifact_prefix={arguments.findings}/{arguments.target}-",
        "-rss_limit_mb=1024",
        "-timeout=20",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder)], target)
    atheris.Fuzz()
    return 0


def _atheris():
    try:
        import atheris
    except ImportError:
        print("atheris is not installed ('fuzz' extra): changes are made by chance", file=sys.stderr)
        return None
    return atheris


def _by_chance(target, seeds: list[bytes], arguments: argparse.Namespace) -> int:
    chance = random.Random(1)
    end, runs = time.monotonic() + arguments.seconds, 0
    while time.monotonic() < end:
        data = _changed(bytearray(chance.choice(seeds)), seeds, chance)
        runs += 1
        try:
            target(data)
        except Exception:
            arguments.findings.mkdir(parents=True, exist_ok=True)
            path = arguments.findings / f"{arguments.target}-{runs}"
            path.write_bytes(data)
            print(f"{path} fails", file=sys.stderr)
            raise
    print(f"{arguments.target}: {runs} inputs in {arguments.seconds} s, none failed")
    return 0


def _changed(data: bytearray, seeds: list[bytes], chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(data))
        match chance.randint(0, 4):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randint(0, 7)
            case 1:
                data[at : at + chance.randint(0, 8)] = chance.randbytes(chance.randint(0, 8))
            case 2:
                del data[at : at + chance.choice((1, 4, 8, 4096))]
            case 3:
                other = chance.choice(seeds)
                begin = chance.randint(0, len(other))
                data[at:at] = other[begin : begin + chance.randint(1, 64)]
            case 4:
                data[at : at + 4] = chance.choice(
                    (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\1\0\0\0")
                )
    return bytes(data[:LONGEST_INPUT])


if __name__ == "__main__":
    sys.exit(main())
