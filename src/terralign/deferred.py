"""Public names whose modules are imported when they are first used.

`from terralign import EmbeddingSpace` must not wait for torch; `EmbeddingSpace.load` may. Until
then a `Deferred` stands for the class or function, and passes everything on to it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


class Deferred:
    """Stands for `name` of the module `home`, which is imported at the first use.

    It can be called, subclassed, shown by `help`, used in annotations, `isinstance` and
    `issubclass`, and pickled, as the object itself; it is equal to it.
    """

    __slots__ = ("_home", "_name")

    def __init__(self, home: str, name: str) -> None:
        object.__setattr__(self, "_home", home)
        object.__setattr__(self, "_name", name)

    def _object(self) -> Any:
        return _find(self._home, self._name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._object())

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        doc: str | None = self._object().__doc__
        return doc

    def __getattr__(self, name: str) -> Any:
        return getattr(self._object(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._object(), name, value)

    def __dir__(self) -> list[str]:
        return dir(self._object())

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self._object()(*args, **keywords)

    def __repr__(self) -> str:
        return repr(self._object())

    def __eq__(self, other: object) -> bool:
        if type(other) is Deferred:
            other = other._object()
        return bool(self._object() == other)

    def __hash__(self) -> int:
        return hash(self._object())

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._object())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._object())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._object(),)

    def __or__(self, other: Any) -> Any:
        return self._object() | other

    def __ror__(self, other: Any) -> Any:
        return other | self._object()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_find, (self._home, self._name))


def _find(home: str, name: str) -> Any:
    return getattr(importlib.import_module(home), name)


def find(home: str, name: str) -> Any:
    """The object itself where its module was imported, else what stands for it."""
    module = sys.modules.get(home)
    ready = module is not None and hasattr(module, name)
    return getattr(module, name) if ready else Deferred(home, name)
