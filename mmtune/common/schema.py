"""Strict validation of files: a dataclass is the schema, and the first invalid value is reported in one line."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_type_hints

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, SchemaValidator, core_schema

from mmtune.common.errors import UserError, brief, did_you_mean
from mmtune.common.layers import read_layered

T = TypeVar("T")
# what pydantic calls types in its schemas, and `…_type` where a value is of another one
_TYPES = {
    "bool": "true or false",
    "dict": "a mapping of keys to values",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "str": "text",
    "tuple": "a list",
}
_OTHER_TYPE = {
    **{f"{name}_type": wanted for name, wanted in _TYPES.items()},
    "dataclass_type": _TYPES["dict"],
    "finite_number": "a finite number",
    "string_type": _TYPES["str"],
}
_BOUNDS = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le")}
_UNKNOWN = "unexpected_keyword_argument"

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0, le=2**63 - 1)]
Number = Annotated[float, Field(ge=-1e100, le=1e100, allow_inf_nan=False)]
"""A number to compute with: neither infinite nor of hundreds of digits."""
Share = Annotated[float, Field(ge=0, le=1)]
Texts = Annotated[tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""A list of texts in the file; one text is a list of one."""


def one_of(choices: Collection[str]) -> AfterValidator:
    """Return a validator for a field's annotation that checks a text, or each of several texts, against the choices."""

    def check(value: Any) -> Any:
        for text in (value,) if isinstance(value, str) else value:
            if text not in choices:
                raise ValueError(f"unknown {brief(repr(text))}; {did_you_mean(text, choices)}")
        return value

    return AfterValidator(check)


def _refuse(value: Any) -> Any:
    raise PydanticCustomError(_UNKNOWN, "not from a file")


COMPUTED = BeforeValidator(_refuse)
"""Of a field that stands in no file, but is set afterwards."""


class NullIsAbsent:
    """Base of a dataclass for files that people write: a key without a value counts as missing."""

    __slots__ = ()

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader for which a duplicate key is an error; otherwise the last one would count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key != "<<":
                problem = f"key {key!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_layered(path: Path) -> Any:
    """Read the file of a suite or a task, and merge it with the files that it includes.

    Raises:
        UserError: a file is missing, unreadable or not YAML; the line is named.
    """
    return read_layered(path, "eval_suites", _StrictLoader)


def validate(
    kind: type[T],
    value: Any,
    where: str,
    *,
    extra: Literal["forbid", "ignore"] = "forbid",
    remedy: str = "",
    context: Any = None,
) -> T:
    """Validate a value from JSON or YAML as a dataclass, without conversion; an integer is accepted as a float.

    Args:
        kind: the dataclass. Bounds and checks in its annotations count, and those of dataclasses in it.
        value: the value.
        where: the file (and key), for messages.
        extra: whether keys that the dataclass does not have are refused or ignored.
        remedy: advice at the end of a message; by default, how to edit the file.
        context: passed on to the dataclass's own validators.

    Raises:
        UserError: a key is missing, unknown or wrong; one that is unknown is named first, the others in the order of
            the fields.
    """
    try:
        validator = _validator(cast(Any, kind))  # mypy takes no type for hashable
        return cast(T, validator.validate_python(value, extra=extra, context=context))
    except ValidationError as error:
        raise UserError(f"{where}: {_problem(kind, error.errors(include_url=False), remedy)}") from None


def fits(kind: Any, value: Any) -> bool:
    """Return whether a value has a type, within the bounds of `Annotated`; a dataclass may have no unknown keys."""
    try:
        _validator(kind).validate_python(value, extra="forbid")
    except ValidationError:
        return False
    return True


@functools.cache
def _validator(kind: Any) -> SchemaValidator:
    return SchemaValidator(_strict(TypeAdapter(kind).core_schema))


def _strict(schema: Any) -> Any:
    """Return a pydantic schema that converts no types except lists to tuples.

    Pydantic's own strict mode accepts no mapping for a dataclass, and no list for a tuple.
    """
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _strict(value) for key, value in schema.items()}
    kind = inner.get("type")
    if kind in tuple(_TYPES):
        inner["strict"] = True
    if kind == "union" and all(one["type"] in _TYPES for one in inner["choices"]):
        wanted = " or ".join(_TYPES[one["type"]] for one in inner["choices"])
        inner |= {"custom_error_type": "union", "custom_error_message": wanted}  # one error, not one of each type
    if kind == "tuple":
        return core_schema.no_info_before_validator_function(_as_tuple, cast(CoreSchema, inner))
    return inner


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _problem(kind: type, errors: Sequence[ErrorDetails], remedy: str) -> str:
    """Format the first error and its remedy as one line; an unknown key comes first."""
    error = next((one for one in errors if one["type"] in (_UNKNOWN, "invalid_key")), errors[0])
    path = error["loc"]
    if error["type"] in (_UNKNOWN, "invalid_key", "missing"):
        path, key = path[:-1], path[-1]
        said, hint = f"key {key!r} is missing", "add it"
        if error["type"] == _UNKNOWN:
            said, hint = f"unknown key {brief(repr(key))}; {did_you_mean(str(key), _names(kind, path))}", ""
        elif error["type"] == "invalid_key":
            said, hint = f"key {brief(repr(key))} must be text", "put it in quotes"
    else:
        said, hint = _wrong_value(error)
        if path and isinstance(path[-1], int) and said.startswith("must"):
            said, path = f"every entry {said}", path[:-1]
    place = "".join(f"entry {part + 1}: " if isinstance(part, int) else f"{part}: " for part in path)
    return place + "; ".join(filter(None, (said, remedy or hint)))


def _wrong_value(error: ErrorDetails) -> tuple[str, str]:
    """Return a description of an invalid value, and a hint."""
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    shown = brief(repr(given))
    if wanted := error["msg"] if kind == "union" else _OTHER_TYPE.get(kind):
        quotes = kind == "string_type" and not isinstance(given, list | dict)
        return f"must be {wanted}" + f", not {shown}" * bool(error["loc"]), "put it in quotes" * quotes
    if kind in _BOUNDS:
        bound, name = _BOUNDS[kind]
        return f"must be {bound} {context[name]:g}, not {shown}", ""
    if kind == "literal_error":
        allowed = re.findall("'([^'\n]*)'", context["expected"])
        return f"unknown {shown}; {did_you_mean(str(given), allowed)}", ""
    return str(context.get("error", error["msg"])), ""


def _names(kind: Any, path: Sequence[int | str]) -> list[str]:
    """Return the field names of the dataclass at a path in another one."""
    for part in path:
        hint = get_type_hints(kind).get(str(part))  # None of a place in a list, and of a key that is no field
        kind = next((one for one in (hint, *get_args(hint)) if is_dataclass(one)), kind)
    hints = get_type_hints(kind, include_extras=True)
    return [name for name, hint in hints.items() if COMPUTED not in get_args(hint)]
