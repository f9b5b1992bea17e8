"""The examples in the docstrings of `saverestore.testing` are run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import saverestore.testing

MODULES = [
    "saverestore.testing",
    *(f"saverestore.testing.{one.name}" for one in pkgutil.iter_modules(saverestore.testing.__path__)),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_do_what_they_show(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_package_has_an_example():
    assert doctest.testmod(saverestore.testing).attempted > 0
