"""What modules ask, name and declare, read out of their source; and how long a file may be.

  - `guest/kinds.py` alone asks for the host's architecture, or for libxl's word for a kind.
  - What a source or sink can do is asked through the ports of `transport.base`, never by its class or by a name.
  - The size of a page is declared in `kernels.page`, the names of digests in `stream.digest_algorithms`.
  - No text below `cli` names an option or a command line of ours: errors carry a remedy as data.

Which module may import which is in test_architecture.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_code import MODULES, ROOT, layer_of

LONGEST_FILE = 500

LIBXL_TYPES = {"pv", "pvh", "hvm"}


def literals_in(side: ast.expr) -> Iterator[object]:
    """The literals that something is compared with: the side itself, or what a tuple, list or set there holds."""
    if isinstance(side, ast.Constant):
        yield side.value
    elif isinstance(side, ast.Tuple | ast.List | ast.Set):
        for item in side.elts:
            yield from literals_in(item)
    elif isinstance(side, ast.Call):  # frozenset((…))
        for argument in side.args if isinstance(side.func, ast.Name) else ():
            yield from literals_in(argument)


def architecture_of(source: str) -> Iterator[str]:
    """Where a module asks for the host's architecture, or compares libxl's word for a kind with a literal."""
    for node in ast.walk(ast.parse(source)):
        name = getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "name", None)
        if name in ("ARCHITECTURE", "is_arm64_host"):
            yield f"{name}, line {node.lineno}"
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(literal in LIBXL_TYPES for side in sides for literal in literals_in(side)):
                yield f"{ast.unparse(node)}, line {node.lineno}"
        if isinstance(node, ast.MatchValue) and set(literals_in(node.value)) & LIBXL_TYPES:
            yield f"case {ast.unparse(node)}, line {node.lineno}"


def test_only_the_place_that_knows_kinds_asks_which_one_there_is():
    asked = {
        module: found
        for module, path in MODULES.items()
        if (found := list(architecture_of(path.read_text())))
    }
    askers = [module for module in asked if module.startswith("saverestore.")]
    assert askers == ["saverestore.guest.kinds"], asked


@pytest.mark.parametrize(
    "sin",
    [
        "pyxc.ARCHITECTURE",
        "from pyxc import ARCHITECTURE",
        "kind == 'pv'",
        "'hvm' != kind",
        "kind in ('pv', 'pvh')",
        "kind not in {'hvm'}",
        "kind in ['pv', *more]",
        "kind in frozenset(('pv', 'pvh'))",
        "(kind, x) == ('pv', 1)",
        "match kind:\n    case 'pv' | 'pvh':\n        pass",
        "match kind:\n    case {'type': 'hvm'}:\n        pass",
        "match kind:\n    case ('pv', _):\n        pass",
    ],
)
def test_a_question_for_the_architecture_would_be_found(sin):
    assert list(architecture_of(sin)) != []


@pytest.mark.parametrize(
    "fine", ["kind in ('zstd', 'xz')", "of_config('pv')", "kind = 'hvm'", "host.name == 'x86'"]
)
def test_what_is_no_question_for_the_architecture_is_none(fine):
    assert list(architecture_of(fine)) == []


def calls_in(path: Path, *names: str) -> Iterator[ast.Call]:
    """Calls of these builtins."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node


def names_within(node: ast.AST) -> set[str]:
    """Names that occur in an expression, at any depth."""
    inner = list(ast.walk(node))
    return {n.id for n in inner if isinstance(n, ast.Name)} | {
        n.attr for n in inner if isinstance(n, ast.Attribute)
    }


def definitions_in(path: Path) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef))


def test_nobody_asks_which_class_a_source_or_sink_is():
    classes = {
        definition.name
        for module, path in MODULES.items()
        if layer_of(module) in ("transport", "stream", "image")
        for definition in definitions_in(path)
        if definition.name.endswith(("Source", "Sink", "File", "Relay", "Connection", "Buffer"))
    }
    assert {"FdSource", "ZstdSink", "DecompressedSource", "TrailerBuffer"} <= classes
    asked = [
        f"{module}:{call.lineno}"
        for module, path in MODULES.items()
        for call in calls_in(path, "isinstance", "issubclass")
        if names_within(call.args[1]) & classes
    ]
    assert asked == []


def test_nobody_asks_a_source_or_sink_by_name_for_what_it_can():
    ports = MODULES["saverestore.transport.base"], MODULES["saverestore.transport.connection"]
    methods = {
        node.name
        for path in ports
        for definition in definitions_in(path)
        for node in definition.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    } - {"name"}
    assert {"read_again", "look_ahead", "splice", "finish", "stored_bytes"} <= methods
    asked = [
        f"{module}:{call.lineno}"
        for module, path in MODULES.items()
        for call in calls_in(path, "getattr", "hasattr")
        if isinstance(call.args[1], ast.Constant) and call.args[1].value in methods
    ]
    assert asked == []


def test_the_size_of_a_page_is_declared_once():
    named = {"PAGE_SIZE", "PAGE_BYTES", "PAGE_SHIFT", "PAGE_WORDS"}
    declared = [
        f"{module}: {target.id}"
        for module, path in MODULES.items()
        if module not in ("saverestore.kernels.page", "pyxc.foreign")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in named
    ]
    assert declared == []


def test_the_names_of_digests_are_spelt_once():
    spelt = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        if module.startswith("saverestore") and module != "saverestore.stream.digest_algorithms"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Tuple | ast.List | ast.Set)
        and {item.value for item in node.elts if isinstance(item, ast.Constant)} & {"sha256", "blake3"}
    ]
    assert spelt == []


OPTION_OR_COMMAND = re.compile(
    r"(?<![\w-])--[a-z]|(?<![\w/-])(?:pysave|pyrestore|pyimage|pymigrate|pysave-helper|pysave-watch) +[^ ]"
)

DPKG_DIVERT = ("root", "add", "remove", "local", "no-rename", "divert", "list", "listpackage", "truename")

PASSED_ON = {
    ("saverestore.helper.arguments", "--save-domain"),
    ("saverestore.helper.arguments", "--restore-domain"),
    *(("saverestore.toolstack.diversion", f"--{option}") for option in DPKG_DIVERT),
    ("saverestore.toolstack.watcher", "--late"),
    ("saverestore.migrate.ssh_child", "pymigrate receive"),
    ("saverestore.toolstack.moving", "--incoming"),  # what a domain's name ends with
    ("saverestore.toolstack.watcher", "--ready-fd"),
}
"""Words on a command line that a program writes or reads, not a person."""


def strings_of(source: str) -> Iterator[tuple[int, str]]:
    """The string literals of a module and their lines; docstrings and comments are none. Of an f-string all of it."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    passed_over = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    passed_over |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if id(node) in passed_over:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(str(part) for part in parts)


def options_named_in(module: str, source: str) -> list[str]:
    """Where a module's strings name an option, or one of our commands with arguments."""
    return [
        f"{module}:{line}: {text}"
        for line, text in strings_of(source)
        if OPTION_OR_COMMAND.search(text) and (module, text) not in PASSED_ON
    ]


def test_no_text_below_the_commands_names_an_option_or_a_command_line_of_ours():
    """Errors carry a remedy as data; `cli/remedies.py` has the words. A report's CSS has names like it."""
    named = [
        one
        for module, path in MODULES.items()
        if module.startswith("saverestore.") and layer_of(module) not in ("cli", None)
        for one in options_named_in(module, path.read_text())
        if not (module == "saverestore.report.page" and "--ground" in one)
    ]
    assert named == []


def test_an_option_in_a_text_would_be_found():
    sins = (
        "raise UsageError(f'{path} exists already; --overwrite replaces it')",
        "note = f\"could not be resumed ({second}): 'pysave --recover {domid}'\"",
        "hint = 'pyimage dump has memory'",
    )
    assert [len(options_named_in("saverestore.x", sin)) for sin in sins] == [1, 1, 1]
    fine = (
        '"""What `pysave --recover` does."""',
        "x = 'pysave'",
        "x = f'/local/domain/{n}/pysave/cap'",
        "x = f'{name}.pysave-new'",
    )
    assert [one for text in fine for one in options_named_in("saverestore.x", text)] == []


@pytest.mark.parametrize("folder", ["pyxc", "saverestore", "tools"])
def test_no_file_has_grown_too_long_to_be_read_at_once(folder):
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".pyi", ".h", ".sh") and path.is_file()
    }
    assert lengths
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}
