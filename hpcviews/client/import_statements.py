"""Import statements, read from the bytecode that is running: ``__import__`` is not told what a module will be called.

From bytecode and not from source text, which is not there in a shell, in ``python -c`` or in generated code.
"""

from __future__ import annotations

import dis
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType
from typing import Any, NamedTuple

from hpcviews.errors import UsageError

_SKIPPED = frozenset({"CACHE", "NOP", "EXTENDED_ARG", "SWAP", "ROT_TWO", "ROT_THREE", "POP_TOP", "IMPORT_FROM"})
"""What stands between an import and the name it is bound to, in Python 3.10 to 3.14."""

_STORES = ("STORE_NAME", "STORE_GLOBAL", "STORE_DEREF", "STORE_FAST")
"""Beginnings of the instructions that bind a name. From 3.13 on STORE_FAST may be one with what follows it."""


class ImportStatement(NamedTuple):
    """One import statement, without the dots of a relative one."""

    module: str
    names: tuple[tuple[str, str], ...]
    """Of ``from module import …``: each name there, and what it is called here. Empty: ``import module``."""
    alias: str | None
    """Of ``import module as alias``."""

    @property
    def bound(self) -> list[str]:
        """The names it binds; those of a star are not known."""
        if not self.names:
            return [self.alias or self.module.partition(".")[0]]
        return [here for _, here in self.names if here != "*"]

    def render(self) -> str:
        """Its source text."""
        if not self.names:
            return f"import {_render(self.module, self.alias)}"
        names = ", ".join(_render(there, None if there == here else here) for there, here in self.names)
        return f"from {self.module} import {names}"

    def describe(self) -> str:
        """In words, for people."""
        if not self.names:
            return _render(self.module, self.alias)
        return f"{','.join(here for _, here in self.names)} from {self.module}"


def _render(name: str, alias: str | None) -> str:
    return name if alias is None else f"{name} as {alias}"


def read_statement(
    code: CodeType,
    offset: int,
    name: str,
    fromlist: Sequence[str] | None,
    level: int,
    namespace: Mapping[str, Any],
) -> ImportStatement | None:
    """The import statement that is being executed; None if it is none but a call of ``__import__``.

    Args:
        code, offset: The code that runs, and where it is (`f_code` and `f_lasti` of its frame).
        name, fromlist, level: What ``__import__`` was told.
        namespace: The globals of the code, which say what it is relative to.
    Raises:
        UsageError: It cannot be read.
    """
    rest = iter(dis.get_instructions(code))
    here = next((instruction for instruction in rest if instruction.offset == offset), None)
    if here is None or here.opname != "IMPORT_NAME":
        return None
    module = _resolve(name, level, namespace)
    if not fromlist:
        bound = _find_store(rest, name)
        return ImportStatement(module, (), None if bound == name.partition(".")[0] else bound)
    if tuple(fromlist) == ("*",):
        return ImportStatement(module, (("*", "*"),), None)
    return ImportStatement(module, tuple((there, _find_store(rest, name)) for there in fromlist), None)


def _resolve(name: str, level: int, namespace: Mapping[str, Any]) -> str:
    if not level:
        return name
    package = namespace.get("__package__")
    if package is None:
        package = namespace.get("__name__", "")
        if "__path__" not in namespace:
            package = package.rpartition(".")[0]
    return importlib.util.resolve_name("." * level + name, package)


def _find_store(rest: Iterator[dis.Instruction], name: str) -> str:
    for instruction in rest:
        if instruction.opname.startswith(_STORES):
            bound = instruction.argval
            return str(bound[0] if isinstance(bound, tuple) else bound)
        if instruction.opname not in _SKIPPED:
            break
    raise UsageError(
        f"cannot see what the import of {name} is called here; import it outside of the with-block, and on the engines "
        f"by view.execute('import {name}')"
    )
