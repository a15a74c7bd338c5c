"""Values of TOML files: overriding one, telling what is wrong with one or differs between two."""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from terralign.errors import RecipeError, StorageError, first_line, nearest, quoted
from terralign.files import (
    hint_of_name,
    name_of_folder,
    parse_toml,
    read_shipped,
    read_text,
    read_toml,
    shipped_names,
    write_text,
)
from terralign.limits import require

MAX_DIFFERENCES = 3
"""Of a folder's recipe to another one, that are named."""

_FOLDERS = {
    "recipe": "recipes",
    "suite": "suites",
    "study": "studies",
    "prompt set": "encoders/prompts",
}
"""What ships, by folder of the package."""


def read_named(what: str, name_or_path: str, *, others: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a recipe, suite, study or prompt set that ships, by name, or of a TOML file.

    `RecipeError` where it is missing, with the nearest name (of `others` too), or no TOML.
    """
    if name_or_path.endswith(".toml"):
        return read_toml(Path(name_or_path), what=what, fault=RecipeError)
    names = shipped_names(_FOLDERS[what])
    if name_or_path in names:
        return read_shipped(_FOLDERS[what], name_or_path)
    hint = nearest(name_or_path, [*names, *others])
    raise RecipeError(
        f"unknown {what} {quoted(name_or_path)}{hint_of_name(name_or_path)}; {hint} (or the path "
        "of a .toml file)"
    )


FolderName = Annotated[str, AfterValidator(name_of_folder)]
"""A name in a file that a folder, or a file, gets."""

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""How pydantic calls an unknown key, of a model and of a dataclass."""


class Strict(BaseModel):
    """A table of a file: frozen, without keys of other names, its numbers finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Holding(Strict):
    """A table of a file whose keys are its own and those of `settings`, a model that it holds."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or isinstance(values.get("settings"), BaseModel):
            return values
        own = cls.model_fields.keys() - {"settings"}
        held = {key: value for key, value in values.items() if key not in own}
        return {**{key: value for key, value in values.items() if key in own}, "settings": held}

    @model_serializer(mode="wrap")
    def _spread(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {**values.pop("settings", {}), **values}


def explain(error: ValidationError, model: type[Any]) -> str:
    """One fault of a validation, in one line: a misspelt key before what is missing for it."""
    faults = error.errors()
    first = next((one for one in faults if one["type"] in _UNKNOWN), faults[0])
    unknown = first["type"] in _UNKNOWN
    # Of a union pydantic adds which member was tried, as in "dict[str,float]".
    parts = [part for part in first["loc"] if unknown or not str(part).endswith("]")]
    place = _as_written(model, parts)
    where = ".".join(str(part) for part in place)
    if unknown:
        fields = _fields_at(model, place[:-1])
        return f"unknown key {quoted(where)}; {nearest(str(place[-1]), fields)}"
    if first["type"] == "missing":
        return f"key {where!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    if first["type"] == "literal_error" and isinstance(given, str):
        known = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
        hint = nearest(given, known)
        message += f"; {hint}" if hint.startswith("did you mean") else ""
    shown = f" (given: {repr(given)[:100]})" if isinstance(given, str | int | float | bool) else ""
    return f"{where}: {message}{shown}" if where else f"{message}{shown}"


def _as_written(model: type[Any], place: Sequence[int | str]) -> list[int | str]:
    """A place in a model as a file writes it: without the `settings` of tables that hold them."""
    written: list[int | str] = []
    current: type[Any] | None = model
    within = False
    for part in place:
        if part == "settings" and not within and _held_by(current) is not None:
            within = True
            continue
        written.append(part)
        within = False
        current = _table_at(current, part)
    return written


def _fields_at(model: type[Any], place: Sequence[Any]) -> list[str]:
    """The keys of the table at `place` of a model, as a file writes them."""
    current: type[Any] | None = model
    for part in place:
        current = _table_at(current, part)
    return list(_fields_of(current))


def _table_at(table: type[Any] | None, key: int | str) -> type[Any] | None:
    """The table under a key of a table; an entry of a list is the table of all its entries."""
    if table is None or isinstance(key, int):
        return table
    annotation = get_type_hints(table).get(key)
    if annotation is None:
        return None if (held := _held_by(table)) is None else _table_at(held, key)
    return _model_in(annotation)


def _held_by(table: type[Any] | None) -> type[Any] | None:
    if table is None or not issubclass(table, Holding):
        return None
    return _model_in(get_type_hints(table)["settings"])


def _fields_of(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(model, "model_fields", None) or getattr(
        model, "__dataclass_fields__", {}
    )
    if (held := _held_by(model if isinstance(model, type) else None)) is not None:
        return {**_fields_of(held), **{key: found[key] for key in found if key != "settings"}}
    return found


def _model_in(annotation: Any) -> type[Any] | None:
    if isinstance(annotation, type) and _fields_of(annotation):
        return annotation
    return next((found for one in get_args(annotation) if (found := _model_in(one))), None)


def apply_override(
    values: dict[str, Any], override: str, *, resolve: Callable[[Any], Any] | None = None
) -> None:
    """Apply `KEY=VALUE` to a recipe's values, in place.

    `resolve` makes the paths of a table absolute (see `TomlPaths`).

    KEY is dotted (`patch.lr`); an entry of a list is named by its number or its `name`
    (`align.sentinel2.epochs`). VALUE is TOML, else a plain string.
    """
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"--set {override!r}: expected KEY=VALUE, as in patch.lr=2e-5")
    *parents, last = key.strip().split(".")
    require("toml_key_parts", len(parents) + 1, f"--set {key.strip()[:40]} has", fault=RecipeError)
    try:
        value = parse_toml(f"value = {text}", name=f"--set {key.strip()}", fault=RecipeError)[
            "value"
        ]
    except RecipeError as error:
        if not isinstance(error.__cause__, tomllib.TOMLDecodeError):
            raise
        value = text
    current: Any = values
    for part in parents:
        current = _step_into(current, part, override)
    if isinstance(current, list):
        raise RecipeError(f"--set {override!r}: name the entry of the list, by number or name")
    if not isinstance(current, dict):
        raise RecipeError(f"--set {override!r}: {'.'.join(parents)} is not a table")
    current[last] = resolve({last: value})[last] if resolve else value


def _step_into(current: Any, part: str, override: str) -> Any:
    if isinstance(current, list):
        for number, entry in enumerate(current):
            if part == str(number) or (isinstance(entry, dict) and entry.get("name") == part):
                return entry
        names = [
            str(entry.get("name", n)) if isinstance(entry, dict) else str(n)
            for n, entry in enumerate(current)
        ]
        raise RecipeError(f"--set {override!r}: no entry {part!r}; {nearest(part, names)}")
    if not isinstance(current, dict):
        raise RecipeError(f"--set {override!r}: nothing lies below {part!r}")
    return current.setdefault(part, {})


def without_none(value: Any) -> Any:
    """Plain values without the keys whose value is None, which TOML lacks."""
    if isinstance(value, dict):
        return {key: without_none(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [without_none(one) for one in value]
    return value


def toml_difference(
    old: str, new: str, *, same: Callable[[Any, Any], bool] = operator.eq
) -> list[str]:
    """What differs between two TOML texts: `key: old -> new`. `same` compares two values."""
    before, after = (_flatten(parse_toml(text, name="it")) for text in (old, new))

    def shown(values: dict[str, Any], key: str) -> str:
        return repr(values[key]) if key in values else "not set"

    return [
        f"{key}: {shown(before, key)} -> {shown(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if not (key in before and key in after and same(before[key], after[key]))
    ]


def keep_toml(
    path: Path,
    text: str,
    *,
    kind: str,
    what: str,
    same: Callable[[Any, Any], bool] = operator.eq,
) -> None:
    """Write what a folder is made by, or refuse one made by another, or with other files.

    `kind`: what such a folder is ("run"); `what`: what makes it ("recipe"); `same` compares two
    values.
    """
    folder = path.parent
    if not path.is_file():
        others = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
        if others:
            raise StorageError(
                f"{folder} holds other files ({', '.join(sorted(others)[:3])}) and no {kind}; "
                "choose an empty folder"
            )
        write_text(path, text)
        return
    try:
        difference = toml_difference(read_text(path), text, same=same)
    except StorageError as error:
        raise StorageError(
            f"{path} is damaged ({first_line(error)}); put back a whole copy of this {what}, or "
            "choose another folder"
        ) from error
    if difference:
        first = sorted(difference, key=lambda one: not one.startswith("name: "))
        listed = "; ".join(first[:MAX_DIFFERENCES])
        left_out = len(first) - MAX_DIFFERENCES
        raise RecipeError(
            f"{folder} holds a {kind} of another {what}; choose another folder. "
            f"Different: {listed}{f'; and {left_out} more' if left_out > 0 else ''}"
        )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        items = ((one.get("name", number), one) for number, one in enumerate(value))
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, one in items:
        flat.update(_flatten(one, f"{prefix}.{key}" if prefix else str(key)))
    return flat
