"""The arrows of docs/design.md, read out of the imports of every module.

    cli ─► api ─► report ─► migrate ─► helper ─► operations ─► process ─► toolstack ─► engine ─► testing ─► guest
    ─► image
    ─► stream ─► transport ─► interrupts ─► kernels ─► arm64_registers ─► errors

A module imports from its own layer and from layers to its right, and:

  - `pyxc` imports nothing of `saverestore`; it is imported by `guest/common`, `guest/x86`, `guest/arm64`,
    `guest/kinds.py`, `toolstack` and `process` only; and `testing.store`, whose errors are pyxc's.
  - The kinds `guest/x86` and `guest/arm64` know nothing of each other; what they share is in `guest/common`.
  - `guest/kinds.py` alone imports them, and it alone asks for the host's architecture.
  - `engine` sees a guest through `guest.ports` and nothing else of `guest`; `toolstack` does not use `engine`.
  - `helper` has all of libxl's helper: commands know its `session` and `settings`, and no messages, no errno.
  - `process` knows of this process and of what libxl is given to find it; nothing of domains, nor of what it runs.
  - `report` knows what the engine tells of its work, and nothing of domains or Xen.
  - `image` is of use to `cli` and `api` only: what works on domains does not need it.
  - `migrate` is used by `cli` alone. Its rules (`handover`, `messages`, `protocol`, `records`) do no I/O at all.
  - `stream` knows of transports what `transport.base` says.
  - What a source or sink can do is asked through the ports of `transport.base`, never by its class or by a name.
  - The size of a page is declared in `kernels.page`, the names of digests in `stream.digest_algorithms`.
  - `testing` is for tests: no other layer imports it.
  - `guest.ports`, the rest of `testing` and the modules of `guest/x86` that it uses are pure: no `pyxc`.

No text below `cli` names an option or a command line of ours: errors carry a remedy as data.

Imports inside functions and under TYPE_CHECKING count, too: they are arrows all the same.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_FILE = 500

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
]

MAY_IMPORT_PYXC = (
    "saverestore.guest.arm64.",
    "saverestore.guest.common.",
    "saverestore.guest.kinds",
    "saverestore.guest.x86.",
    "saverestore.process.",
    "saverestore.testing.store",
    "saverestore.toolstack.",
)

MAY_IMPORT_A_KIND = (
    "saverestore.guest.arm64",
    "saverestore.guest.kinds",
    "saverestore.guest.x86",
    # The in-memory guest has page tables and a start_info page as PV guests have: it takes their layouts, pure ones.
    "saverestore.testing.",
)

PURE = (
    "saverestore.guest.ports",
    "saverestore.guest.arm64",
    "saverestore.guest.arm64.find",
    "saverestore.guest.arm64.journal",
    "saverestore.guest.arm64.layout",
    "saverestore.guest.arm64.vcpu",
    "saverestore.guest.common",
    "saverestore.guest.common.hvm_params",
    "saverestore.guest.x86",
    "saverestore.guest.x86.layout",
    "saverestore.guest.x86.p2m_walk",
    "saverestore.guest.x86.tables",
    "saverestore.guest.x86.vcpu",
    "saverestore.migrate",
    "saverestore.migrate.handover",
    "saverestore.migrate.messages",
    "saverestore.migrate.protocol",
    "saverestore.migrate.records",
    "saverestore.testing",
    "saverestore.testing.domain",
    "saverestore.testing.guest",
    "saverestore.testing.moments",
    "saverestore.testing.qmp",
    "saverestore.testing.views",
    "saverestore.toolstack.config",
)


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


ARROWS = [(module, target) for module, path in MODULES.items() for target in imports_of(path)]


def test_the_modules_were_found():
    assert {layer_of(module) for module in MODULES if module.startswith("saverestore")} == {*LAYERS, None}
    assert "pyxc.control" in MODULES
    assert ("saverestore.engine.save", "saverestore.guest.ports") in ARROWS


def test_every_module_of_the_package_belongs_to_a_layer():
    assert [module for module in MODULES if module.startswith("saverestore.") and not layer_of(module)] == []


def test_no_layer_imports_from_one_above_it():
    upwards = [
        f"{module} -> {target}"
        for module, target in ARROWS
        if (a := layer_of(module))
        and target.startswith("saverestore")
        and (b := layer_of(target))
        and LAYERS.index(a) > LAYERS.index(b)
    ]
    assert upwards == []


def test_the_bindings_know_nothing_of_what_is_built_on_them():
    assert [
        arrow for arrow in ARROWS if arrow[0].startswith("pyxc") and arrow[1].startswith("saverestore")
    ] == []


def test_only_guests_the_toolstack_and_process_import_the_bindings():
    others = [
        f"{module} -> {target}"
        for module, target in ARROWS
        if module.startswith("saverestore")
        and target.split(".")[0] == "pyxc"
        and not module.startswith(MAY_IMPORT_PYXC)
    ]
    assert others == []


def test_only_the_bindings_import_their_compiled_module():
    assert [one for one in ARROWS if one[1].startswith("pyxc._") and not one[0].startswith("pyxc")] == []


def test_the_engine_sees_guests_through_their_ports_only():
    seen = {
        target
        for module, target in ARROWS
        if layer_of(module) == "engine" and target.startswith("saverestore.guest")
    }
    assert seen == {"saverestore.guest.ports"}


def test_kinds_of_guests_know_nothing_of_each_other_and_what_they_share_knows_none():
    kinds = ("x86", "arm64")
    seen = [
        f"{module} -> {target}"
        for module, target in ARROWS
        for kind, others in (*((kind, [k for k in kinds if k != kind]) for kind in kinds), ("common", kinds))
        if module.startswith(f"saverestore.guest.{kind}")
        and target.startswith(tuple(f"saverestore.guest.{other}" for other in others))
    ]
    assert seen == []


def test_the_product_does_not_use_what_is_for_tests():
    users = [
        f"{module} -> {target}"
        for module, target in ARROWS
        if target.startswith("saverestore.testing") and layer_of(module) != "testing"
    ]
    assert users == []


def test_only_the_place_that_knows_kinds_imports_one():
    others = [
        f"{module} -> {target}"
        for module, target in ARROWS
        if target.startswith(("saverestore.guest.x86", "saverestore.guest.arm64"))
        and not module.startswith(MAY_IMPORT_A_KIND)
    ]
    assert others == []


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


def test_the_helper_does_not_use_operations():
    assert [one for one in ARROWS if layer_of(one[0]) == "helper" and layer_of(one[1]) == "operations"] == []


def test_what_libxl_and_its_helper_say_to_each_other_is_known_in_the_helper_only():
    private = ("saverestore.helper.arguments", "saverestore.helper.channel", "saverestore.helper.messages")
    assert {layer_of(module) for module, target in ARROWS if target in private} == {"helper"}


def test_commands_know_the_helpers_session_and_settings_and_no_more():
    arrows = {
        target for module, target in ARROWS if layer_of(module) == "cli" and layer_of(target) == "helper"
    }
    assert arrows == {"saverestore.helper.session", "saverestore.helper.settings"}


def test_the_helpers_command_holds_no_errno():
    assert "errno" not in set(imports_of(MODULES["saverestore.cli.helper"]))


def test_process_knows_nothing_of_domains_nor_of_what_it_runs():
    targets = {target for module, target in ARROWS if layer_of(module) == "process"}
    assert {target for target in targets if target.startswith(("saverestore", "pyxc"))} == {
        "pyxc.errors",
        "pyxc.process",
        "saverestore.errors",
        "saverestore.interrupts",
        "saverestore.process.ending",
        "saverestore.process.stand_in",
        "saverestore.toolstack.helper_link",
        "saverestore.toolstack.programs",
    }


def test_the_stand_in_imports_the_standard_library_only():
    """It is run by a Python that looks for no packages."""
    targets = {target.partition(".")[0] for target in imports_of(MODULES["saverestore.process.stand_in"])}
    assert targets - sys.stdlib_module_names == set()


def test_the_toolstack_does_not_use_the_engine():
    arrows = [one for one in ARROWS if layer_of(one[0]) == "toolstack" and layer_of(one[1]) == "engine"]
    assert arrows == []


def test_reports_know_only_what_the_engine_tells():
    seen = {layer_of(target) for module, target in ARROWS if layer_of(module) == "report"} - {None}
    assert seen == {"report", "engine", "errors", "stream", "transport"}


def test_only_commands_and_the_front_door_use_what_works_on_images():
    users = {layer_of(module) for module, target in ARROWS if target.startswith("saverestore.image")}
    assert users == {"cli", "api", "image"}


def test_only_commands_migrate_and_migrations_need_no_helper_or_report():
    users = {layer_of(module) for module, target in ARROWS if target.startswith("saverestore.migrate")}
    assert users == {"cli", "migrate"}
    used = {layer_of(target) for module, target in ARROWS if layer_of(module) == "migrate"}
    assert used & {"helper", "report", "process", "image", "testing"} == set()


WITHOUT_IO = {
    "__future__",
    "collections.abc",
    "dataclasses",
    "enum",
    "json",
    "re",
    "struct",
    "typing",
    "uuid",
    "zlib",
}


@pytest.mark.parametrize("module", ["handover", "messages", "protocol", "records"])
def test_the_rules_of_migrations_do_no_input_or_output(module):
    found = set(imports_of(MODULES[f"saverestore.migrate.{module}"]))
    ours = {name for name in found if name.startswith("saverestore")}
    assert found - ours <= WITHOUT_IO
    pure = {f"saverestore.migrate.{name}" for name in ("handover", "messages", "protocol", "records")}
    assert ours <= pure | {"saverestore.errors"}


def test_the_stream_knows_of_transports_what_their_base_says():
    seen = {
        target
        for module, target in ARROWS
        if layer_of(module) == "stream" and target.startswith("saverestore.transport")
    }
    assert seen == {"saverestore.transport.base"}


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


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_imports_only_pure_ones(module):
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in MODULES and name not in seen and name != "saverestore":  # it loads what is asked of it
            seen.add(name)
            waiting += imports_of(MODULES[name])
    assert [name for name in seen if name.startswith("pyxc")] == []
    allowed = PURE + tuple(
        f"saverestore.{layer}"
        for layer in ("stream", "transport", "interrupts", "kernels", "arm64_registers", "errors")
    )
    assert [name for name in seen - {"saverestore"} if not name.startswith(allowed)] == []


WITHOUT_XEN = [
    module
    for module in MODULES
    if layer_of(module)
    in ("report", "image", "stream", "transport", "engine", "interrupts", "kernels", "errors", "process")
    and module != "saverestore.kernels.build"
] + [
    "saverestore.cli.pyimage",
    "saverestore.cli.pymigrate",
    "saverestore.cli.pysave",
    "saverestore.cli.pyrestore",
    *PURE,
]


def test_all_but_what_works_on_domains_imports_on_a_machine_without_xen_or_a_compiler():
    code = (
        "import importlib, sys\n"
        "for name in ('pyxc', 'saverestore._kernels', '_cffi_backend', 'cffi'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {WITHOUT_XEN!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


OPTION_OR_COMMAND = re.compile(
    r"(?<![\w-])--[a-z]|(?<![\w/-])(?:pysave|pyrestore|pyimage|pymigrate|pyxc-save-helper|pyxc-watch) +[^ ]"
)

PASSED_ON = {
    ("saverestore.helper.arguments", "--save-domain"),
    ("saverestore.helper.arguments", "--restore-domain"),
    ("saverestore.toolstack.watcher", "--late"),
    ("saverestore.migrate.addresses", "pymigrate receive"),
    ("saverestore.migrate.copies", "--incoming"),  # what a domain's name ends with
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
