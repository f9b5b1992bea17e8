"""The modules of the product, their layers and their imports, for the tests of its architecture."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

LAYERS = [
    "cli",
    "api",
    "report",
    "migrate",
    "helper",
    "operations",
    "process",
    "toolstack",
    "engine",
    "testing",
    "guest",
    "image",
    "stream",
    "transport",
    "interrupts",
    "kernels",
    "arm64_registers",
    "errors",
    "words",
]


def modules_of(package: str) -> dict[str, Path]:
    """Every module of a package, by its dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules_of("saverestore") | modules_of("pyxc")


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a module imports; of `from a import b`, `a.b` where that is a module, else `a`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; the project writes names out"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def layer_of(module: str) -> str | None:
    """Which layer a module of saverestore belongs to; None for the package itself and the compiled kernels."""
    parts = module.split(".")
    return parts[1] if parts[0] == "saverestore" and len(parts) > 1 and parts[1] in LAYERS else None
