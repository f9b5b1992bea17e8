"""Kernel modules in an initrd: which ones, in which order, uncompressed."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from collections.abc import Iterable
from pathlib import Path

from xenlab.errors import LabError


def parse_modules_dep(text: str) -> dict[str, list[str]]:
    """Return from modules.dep, for each module's name, its files in loading order (its own last)."""
    order: dict[str, list[str]] = {}
    for line in text.splitlines():
        own, _, rest = line.partition(":")
        # depmod(8): dependencies stand in the order in which to unload them.
        order[_name(own)] = [*reversed(rest.split()), own]
    return order


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def loading_order(dep_text: str, builtin_text: str, wanted: Iterable[str]) -> list[str]:
    """Return the files to load for the modules `wanted`, each once, dependencies first.

    What is built into the kernel needs no file. Raises LabError for a module that is neither.
    """
    known = parse_modules_dep(dep_text)
    builtin = {_name(line) for line in builtin_text.splitlines()}
    files: list[str] = []
    for module in wanted:
        name = module.replace("-", "_")
        if name in known:
            files += [file for file in known[name] if file not in files]
        elif name not in builtin:
            raise LabError(f"this kernel has no module {module}")
    return files


def load(module_tree: Path, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """Return name and uncompressed bytes of the modules to load, in loading order.

    `module_tree` is lib/modules/VERSION of a root file system.
    """
    files = loading_order(
        (module_tree / "modules.dep").read_text(), (module_tree / "modules.builtin").read_text(), wanted
    )
    return [(_name(file) + ".ko", _uncompressed(module_tree / file)) for file in files]


def _uncompressed(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return data
