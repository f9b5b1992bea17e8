"""The arrows of docs/design.md, read out of the imports of every module.

    cli ─► api ─► report ─► migrate ─► helper ─► operations ─► process ─► toolstack ─► engine ─► testing ─► guest
    ─► image ─► stream ─► transport ─► interrupts ─► kernels ─► arm64_registers ─► errors ─► words

A module imports from its own layer and from layers to its right, and:

  - `pyxc` imports nothing of `saverestore`; it is imported by `guest/common`, `guest/x86`, `guest/arm64`,
    `guest/kinds.py`, `toolstack` and `process` only; and `testing.store`, whose errors are pyxc's.
  - The kinds `guest/x86` and `guest/arm64` know nothing of each other; what they share is in `guest/common`.
  - `guest/kinds.py` alone imports them.
  - `engine` sees a guest through `guest.ports` and nothing else of `guest`; `toolstack` does not use `engine`.
  - `helper` has all of libxl's helper: commands know its `session` and `settings`, and no messages, no errno.
  - `process` knows of this process and of what libxl is given to find it; nothing of domains, nor of what it runs.
  - `report` knows what the engine tells of its work, and nothing of domains or Xen.
  - `image` is of use to `cli` and `api` only: what works on domains does not need it.
  - `migrate` is used by `cli` alone. Its rules (`handover`, `messages`, `protocol`, `records`, `xl_words`) do no I/O
    at all. Stock xl's protocol is apart from our own: neither knows the other's words.
  - Links are known to `migrate.linking` and `migrate.source_link` alone. What is on its way over them,
    `transport.window`, does no I/O.
  - `stream` knows of transports what `transport.base` says.
  - TLS is `transport.tls`, `tls_peers` and `tls_records`: nobody else imports `ssl`. `transport.certificates` alone
    imports `cryptography`, when it is called; TLS itself works without it.
  - `testing` is for tests: no other layer imports it.
  - `guest.ports`, the rest of `testing` and the modules of `guest/x86` that it uses are pure: no `pyxc`.

Imports inside functions and under TYPE_CHECKING count, too: they are arrows all the same. What modules ask and say is
in test_words_of_the_code.py.
"""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from source_code import LAYERS, MODULES, ROOT, imports_of, layer_of

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
    "saverestore.migrate.xl_words",
    "saverestore.testing",
    "saverestore.testing.domain",
    "saverestore.testing.guest",
    "saverestore.testing.moments",
    "saverestore.testing.qmp",
    "saverestore.testing.views",
    "saverestore.toolstack.config",
)

STORE = ("saverestore.operations.store", "saverestore.operations.retention", "saverestore.operations.pending")
"""Pure, too, but for the files: `pyimage` uses them on any machine."""


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
    assert seen == {"report", "engine", "errors", "stream", "transport", "words"}


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


RULES = ("handover", "messages", "protocol", "records", "xl_words")


@pytest.mark.parametrize("module", RULES)
def test_the_rules_of_migrations_do_no_input_or_output(module):
    found = set(imports_of(MODULES[f"saverestore.migrate.{module}"]))
    ours = {name for name in found if name.startswith("saverestore")}
    assert found - ours <= WITHOUT_IO
    pure = {f"saverestore.migrate.{name}" for name in RULES}
    assert ours <= pure | {"saverestore.errors"}


def test_xls_protocol_and_our_own_do_not_know_each_other():
    """What xl says is read and written in one place; sides, journals, recovery, and what both sources and both
    destinations do, are shared."""
    ours = {
        f"saverestore.migrate.{name}" for name in ("channel", "data", "protocol", "source", "destination")
    }
    xl = {
        f"saverestore.migrate.{name}" for name in ("from_xl", "to_xl", "xl_peer", "xl_recovery", "xl_words")
    }
    assert {(one, other) for one, other in ARROWS if one in ours and other in xl} == set()
    assert {(one, other) for one, other in ARROWS if one in xl and other in ours} == set()
    shared = {f"saverestore.migrate.{name}" for name in ("handing_over", "receiving", "requests")}
    assert {(one, other) for one, other in ARROWS if one in shared and other in ours | xl} == set()


def test_what_is_on_its_way_over_links_does_no_input_or_output():
    found = set(imports_of(MODULES["saverestore.transport.window"]))
    assert found - WITHOUT_IO == {"heapq", "saverestore.errors"}


def test_links_are_known_to_those_only_who_agree_on_them():
    """The hand-over, the journals and the readers of the image see a connection."""
    users = {module for module, target in ARROWS if target == "saverestore.transport.links"}
    assert users == {"saverestore.migrate.linking", "saverestore.migrate.source_link"}


def importers_of(package: str, *, at_once: bool = False) -> set[str]:
    """Modules that import this package; `at_once`: when they are imported themselves."""
    found = set()
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text())
        for node in tree.body if at_once else ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if package in (name.partition(".")[0] for name in names):
                found.add(module)
    return found


def test_tls_is_in_one_place_and_works_without_what_makes_certificates():
    tls = {f"saverestore.transport.{name}" for name in ("tls", "tls_peers", "tls_records")}
    assert importers_of("ssl") == tls
    assert importers_of("cryptography") == {"saverestore.transport.certificates"}
    assert importers_of("cryptography", at_once=True) == set()
    assert {module for module, target in ARROWS if target == "saverestore.transport.certificates"} == {
        "saverestore.cli.pymigrate.certify",
        "saverestore.migrate.certificate",
    }
    assert {module for module, target in ARROWS if target == "saverestore.migrate.certificate"} == {
        "saverestore.migrate.linking",
        "saverestore.migrate.source_link",
    }


def test_the_stream_knows_of_transports_their_ports_and_how_to_stand_before_a_sink():
    seen = {
        target
        for module, target in ARROWS
        if layer_of(module) == "stream" and target.startswith("saverestore.transport")
    }
    assert seen == {"saverestore.transport.base", "saverestore.transport.passing"}


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
        for layer in ("stream", "transport", "interrupts", "kernels", "arm64_registers", "errors", "words")
    )
    assert [name for name in seen - {"saverestore"} if not name.startswith(allowed)] == []


WITHOUT_XEN = [
    module
    for module in MODULES
    if layer_of(module)
    in (
        "report",
        "image",
        "stream",
        "transport",
        "engine",
        "interrupts",
        "kernels",
        "errors",
        "words",
        "process",
    )
    and module != "saverestore.kernels.build"
] + [
    "saverestore.cli.pyimage",
    "saverestore.cli.pymigrate",
    "saverestore.cli.pysave",
    "saverestore.cli.pyrestore",
    *PURE,
    *STORE,
]


def test_the_store_of_images_knows_nothing_of_domains():
    used = {target for module, target in ARROWS if module in STORE and target.startswith("saverestore")}
    assert used == {
        "saverestore.errors",
        "saverestore.operations.store",
        "saverestore.transport.file_locks",
        "saverestore.transport.newfile",
        "saverestore.transport.safety",
    }


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
