"""Private names of Twisted, Klein and txpostgres: which modules use which, and whether they still exist.

A private name can disappear with any release of the library. Only the names in :data:`USED` may be used, and those of
Twisted in at most two modules. When a test fails after an upgrade, the module must be adapted to the new release.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from twisted.internet import tcp, unix
from twisted.protocols.basic import LineReceiver
from twisted.web.http import HTTPChannel
from txpostgres import txpostgres

import tkserver

ROOT = Path(tkserver.__file__).parent

LIBRARIES = ("twisted", "klein", "txpostgres")

USED: Mapping[str, Mapping[type, set[str]]] = {
    "tkserver.storage.connection": {txpostgres.Cursor: {"_connection"}},
    "tkserver.web.http.connections": {
        LineReceiver: {"_buffer"},
        HTTPChannel: {
            "_command",
            "_path",
            "_receivedHeaderCount",
            "_receivedHeaderSize",
            "_respondToBadRequestAndDisconnect",
            "_send100Continue",
            "_version",
        },
    },
    "tkserver.web.listen.sockets": {
        tcp.Port: {"_logger", "_shouldShutdown"},
        unix.Port: {"_bindPath", "_fromListeningDescriptor"},
    },
}
"""The names that each module uses, by the class that defines them."""

NOT_PRIVATE = {"_fields", "_make", "_replace", "_asdict", "_exit"}
"""Documented names of ``namedtuple`` and ``os`` that begin with an underscore."""

MODULES = sorted(path for path in ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NOT_PRIVATE and name != "_"


@lru_cache(None)
def names_defined_by(cls: type) -> frozenset[str]:
    """Return the private names that a class itself defines: in its body, and as attributes of its instances."""
    names = set(vars(cls))
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return frozenset(filter(is_private, names))
    names |= {node.attr for node in attributes_of_self(tree) if isinstance(node.ctx, ast.Store)}
    names |= {ast.unparse(node.target) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    return frozenset(filter(is_private, names))


def names_of_libraries(cls: type) -> set[str]:
    """Return the private names that a class inherits from a library."""
    bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] in LIBRARIES]
    return {name for base in bases for name in names_defined_by(base)}


def attributes(tree: ast.AST) -> Iterator[ast.Attribute]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def attributes_of_self(tree: ast.AST) -> Iterator[ast.Attribute]:
    return (node for node in attributes(tree) if is_self(node.value))


def names_of_other_objects(tree: ast.AST) -> Iterator[str]:
    """Return the private attributes that are accessed on anything but ``self``, in the code or by ``getattr``."""
    yield from (node.attr for node in attributes(tree) if not is_self(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            yield from (str(value.value) for value in node.args if isinstance(value, ast.Constant))


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Return all parts of the names that are imported from the libraries."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (part for name in names if name.split(".")[0] in LIBRARIES for part in name.split("."))


def inherited_names(tree: ast.AST, module: ModuleType) -> Iterator[str]:
    """Return the private names of libraries that subclasses override, or access on ``self``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [eval(ast.unparse(base), vars(module)) for base in node.bases]
            inherited = {name for base in bases if inspect.isclass(base) for name in names_of_libraries(base)}
            yield from inherited & names_in_class(node)


def names_in_class(node: ast.ClassDef) -> set[str]:
    """Return the names that the body of a class defines, and all attributes of ``self``."""
    names = {item.name for item in node.body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))}
    for item in node.body:
        if isinstance(item, ast.AnnAssign):
            names.add(ast.unparse(item.target))
        elif isinstance(item, ast.Assign):
            names |= {ast.unparse(target) for target in item.targets}
    return names | {attribute.attr for attribute in attributes_of_self(node)}


def used_names(source: str, module: ModuleType) -> set[str]:
    """Return all private names of other objects and of libraries that a module uses."""
    tree = ast.parse(source)
    found = {*names_of_other_objects(tree), *imported_names(tree), *inherited_names(tree, module)}
    return set(filter(is_private, found))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_use_only_the_listed_names(path: Path) -> None:
    """A module uses exactly the private names that are listed for it."""
    name = module_name(path)
    expected = {private for names in USED.get(name, {}).values() for private in names}
    assert used_names(path.read_text(), import_module(name)) == expected


@pytest.mark.parametrize(
    ("cls", "name"),
    [(cls, name) for classes in USED.values() for cls, names in classes.items() for name in sorted(names)],
)
def test_listed_names_exist(cls: type, name: str) -> None:
    """Each listed name still exists in the installed release, and in the listed class."""
    assert name in names_defined_by(cls)


def test_at_most_two_modules_use_names_of_twisted() -> None:
    """At most two modules use private names of Twisted."""
    modules = [
        module for module, classes in USED.items() if any(cls.__module__.startswith("twisted.") for cls in classes)
    ]
    assert len(modules) <= 2


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("class A(HTTPChannel):\n    def _send100Continue(self): pass", {"_send100Continue"}),
        ("class A(HTTPChannel):\n    _timeOut = 1", set()),
        ("class A(HTTPChannel):\n    def f(self): self._buffer = 1", {"_buffer"}),
        ("class A(HTTPChannel):\n    def f(self): return self._networkProducer", {"_networkProducer"}),
        ("class A(HTTPChannel):\n    def _own(self): self._mine = self._own()", set()),
        ("def f(port): port._logger = None", {"_logger"}),
        ("def f(port): return getattr(port, '_logger')", {"_logger"}),
        ("from twisted.internet import _sslverify", {"_sslverify"}),
        ("import twisted.web._newclient", {"_newclient"}),
        ("def f(row): return row._fields", set()),
    ],
)
def test_scanner_finds_private_names(source: str, names: set[str]) -> None:
    """The scanner finds names that are overridden, accessed on ``self`` or other objects, or imported."""
    module = ModuleType("example")
    vars(module)["HTTPChannel"] = HTTPChannel
    assert used_names(source, module) == names
