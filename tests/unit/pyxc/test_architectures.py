"""What Xen has on one architecture only is refused by name on the other, before any call is made."""

from __future__ import annotations

import errno
import inspect

import pytest

try:
    import pyxc
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from pyxc import _arch, arm64, cpu, memory

NO_XEN = None  # never looked at: the refusal comes first


def calls_of(module, architecture):
    """Functions of a module whose source begins by requiring this architecture."""
    return [
        function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and f"require({architecture}" in inspect.getsource(function)
    ]


X86_ONLY = calls_of(cpu, "X86") + calls_of(memory, "X86")
ARM64_ONLY = calls_of(arm64, "ARM64")


def refused(function):
    parameters = inspect.signature(function).parameters.values()
    positional = [NO_XEN for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    with pytest.raises(pyxc.WrongArchitecture) as raised:
        function(*positional, **named)
    return raised.value


def test_the_functions_were_found():
    assert memory.page_types in X86_ONLY
    assert arm64.flush_caches in ARM64_ONLY


@pytest.mark.parametrize("function", X86_ONLY)
def test_what_only_x86_has_is_refused_by_name_on_arm64(function, monkeypatch):
    monkeypatch.setattr(_arch, "ARCHITECTURE", _arch.ARM64)
    error = refused(function)
    assert error.errno == errno.ENOSYS
    assert str(error).endswith("Xen has this on x86 only, this is arm64")


@pytest.mark.parametrize("function", ARM64_ONLY)
def test_what_only_arm64_has_is_refused_by_name_on_x86(function, monkeypatch):
    monkeypatch.setattr(_arch, "ARCHITECTURE", _arch.X86)
    assert str(refused(function)).endswith("Xen has this on arm64 only, this is x86")


def test_log_dirty_is_refused_by_name_on_arm64(monkeypatch):
    monkeypatch.setattr(_arch, "ARCHITECTURE", _arch.ARM64)
    with pytest.raises(pyxc.WrongArchitecture, match=r"xc_shadow_control\(domid=5\)"):
        memory.LogDirty(NO_XEN, 5, 100)
