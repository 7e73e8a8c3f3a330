"""Sandbox for untrusted chat templates, with limits on time and memory.

jinja2's sandbox isolates a template from the rest of the program, but does not limit its loops. Here the rounds of
loops and every call check the time, and the size of a result is checked before an operation creates it. The time is
the CPU time of the thread: it works in the threads of a server and in other processes, whatever the load of the
machine.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from contextlib import contextmanager
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SECONDS = 5.0  # of CPU time for one rendering
MOST = 5_000_000  # characters of a text
_REPEATED = 1_000_000  # characters or entries, by `*`
_ENTRY = 16  # size of a list entry, in characters
_BITS = 10_000  # of a number
_WIDEST = 10_000  # of a column
_INDENT = 16

# filters that take minutes for a text of a few megabytes, or whose output is not for prompts
_LEFT_OUT = ("wordwrap", "urlize", "pprint", "xmlattr", "random")
# filters that look at a list without looking into its entries
_SHALLOW = {
    *("length", "count", "first", "last", "list", "reverse", "select", "selectattr", "reject", "rejectattr"),
    *("map", "items", "default", "d", "attr"),
}
_COMPARING = {
    *("eq", "==", "equalto", "ne", "!=", "in", "lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan"),
    *("ge", ">=", "lower", "upper"),
}
_LOOP, _JOIN, _LOOKED_AT = "@loop", "@join", "@looked_at"  # no template can write these names
_WIDE = re.compile(r"%[^%a-zA-Z]*(\d{5}|\*)")  # of `%`
_LONG_NUMBER = re.compile(r"\d{5}")


class LimitError(SecurityError):
    """Template exceeds its limit of time or memory."""


class _Clock(threading.local):
    """Deadline of the rendering in this thread, and a counter of loop rounds."""

    end: float | None = None
    asked = 0


_clock = _Clock()


@contextmanager
def limited() -> Iterator[None]:
    """Limit all rendering of this thread within the context to `SECONDS` of CPU time.

    A nested context keeps the deadline of the outer one.

    Raises:
        LimitError: the rendering took longer.
    """
    before = _clock.end
    if before is None:
        _clock.end = time.thread_time() + SECONDS
    try:
        yield
    finally:
        _clock.end = before


def _check_time() -> None:
    if _clock.end is not None and time.thread_time() > _clock.end:
        raise LimitError(f"it takes more than {SECONDS:g} seconds")


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2 environment for untrusted templates (see the module); render within `limited`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in _LEFT_OUT:
            self.filters.pop(name, None)
        self.filters.update({name: _limited_filter(name, function) for name, function in self.filters.items()})
        for name in _COMPARING & set(self.tests):
            self.tests[name] = _limited_test(self.tests[name])
        self.filters |= {_LOOP: _Counted, _JOIN: _join, _LOOKED_AT: _weighed}

    def add_filters(self, filters: Mapping[str, Callable[..., Any]]) -> None:
        """Add filters for templates, under the same limits."""
        self.filters.update({name: _limited_filter(name, function) for name, function in filters.items()})

    @property
    def finalize(self) -> Callable[[Any], Any]:  # type: ignore[override]  # jinja2 has an attribute
        """Function that converts each value that a template writes, after a check of its size."""
        own = self._finalize
        return shown if own is None else lambda value: own(shown(value))

    @finalize.setter
    def finalize(self, own: Callable[[Any], Any] | None) -> None:
        self._finalize = own

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join the output of a template, and refuse more than `MOST` characters."""
        written, size = [], 0
        for piece in pieces:
            size += len(piece)
            if size > MOST:
                raise _too_long()
            written.append(piece)
        return "".join(written)

    def call(self, context: Any, called: Any, *args: Any, **given: Any) -> Any:
        """Call a function or method for a template, after checks of time and size."""
        _check_time()
        target = getattr(called, "__wrapped__", called)  # a text's `format`, which the sandbox wraps
        owner = getattr(target, "__self__", None)
        if isinstance(owner, str | bytes | int):
            args = tuple(_listed(one) for one in args)
            _check_method(target.__name__, owner, [*args, *given.values()])
        return super().call(context, called, *args, **given)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute an operator that can make a large value from small ones, after checks of time and size."""
        _check_time()
        if operator == "**":
            raise LimitError("** is not for templates")
        if operator == "%" and isinstance(left, str | bytes):
            _check_format(left, [right])
        elif operator == "+":
            if isinstance(left, Sequence) and isinstance(right, Sequence):
                _check_size(left, len(left) + len(right))
        elif operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, Sequence) and isinstance(times, int) and len(one) * times > _REPEATED:
                    raise LimitError(f"* makes more than {_REPEATED:,} characters or entries")
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _BITS:
                raise LimitError("* makes a number of thousands of digits")
        return super().call_binop(context, operator, left, right)

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(_Instrument().visit(source), *args, **options)


class _Instrument(NodeTransformer):
    """Insert time and size checks around loops, `~` and comparisons, which no method of the environment sees."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  # the visitor's name
        self.generic_visit(node)
        node.iter = _filter(node.iter, _LOOP)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), _JOIN)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        node.expr = _filter(node.expr, _LOOKED_AT)
        for operand in node.ops:
            operand.expr = _filter(operand.expr, _LOOKED_AT)
        return node


def _filter(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Counted:
    """Iterable of a loop that checks the time limit every 64 rounds."""

    def __init__(self, entries: Any) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Any]:
        for entry in self._entries:
            _clock.asked += 1
            if not _clock.asked % 64:
                _check_time()
            yield entry


def shown(value: Any) -> Any:
    """Return a value that a template writes; refuse a large list before it becomes text."""
    return value if isinstance(value, str) else _weighed(value)


def _join(values: Sequence[Any]) -> str:
    """Join values as the operator `~` does."""
    return Sandbox.concat(str(shown(value)) for value in values)


def _weighed(value: Any) -> Any:
    """Return the value if its content is not too large; content held twice counts twice, as it is read twice."""
    _check_time()
    _weigh(value, MOST)
    return value


def _weigh(value: Any, room: int) -> int:
    """Return the remaining room, in characters, after subtracting the size of the value."""
    if isinstance(value, str | bytes):
        room -= len(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            room = _weigh(inner, _weigh(key, room - _ENTRY))
    elif isinstance(value, list | tuple | Set | ValuesView):
        for inner in value:
            room = _weigh(inner, room - _ENTRY)
    if room < 0:
        raise _too_long()
    return room


def _check_size(of: Sequence[Any], size: int) -> None:
    if size * (1 if isinstance(of, str | bytes) else _ENTRY) > MOST:
        raise _too_long()


def _too_long() -> LimitError:
    return LimitError(f"it makes a text or a list of more than {MOST:,} characters")


def _listed(value: Any) -> Any:
    """Convert an iterator, such as the result of a filter, to a list, if that is not too large."""
    if not isinstance(value, Iterator) or isinstance(value, LoopContext):
        return value
    entries, room = [], MOST
    for entry in _Counted(value):
        room = _weigh(entry, room - _ENTRY)
        entries.append(entry)
    return entries


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment or context, not a value

    @functools.wraps(function)
    def limited_function(*args: Any, **given: Any) -> Any:
        _check_time()
        args = (*args[:first], *(_listed(one) for one in args[first:]))
        if name not in _SHALLOW:
            values = [*args[first:], *given.values()]
            room = MOST
            for value in values:
                room = _weigh(value, room)
            _check_filter(name, values)
        return function(*args, **given)

    return limited_function


def _limited_test(function: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def limited_function(*args: Any) -> Any:
        for value in args:
            _weighed(value)
        return function(*args)

    return limited_function


def _check_filter(name: str, values: Sequence[Any]) -> None:
    """Refuse a filter call that makes a large text from small values."""
    value, *others = values or [""]
    if name in ("center", "batch", "slice", "round"):
        _check_numbers(others, _WIDEST)
    elif name in ("indent", "tojson"):
        _check_numbers([len(one) if isinstance(one, str) else one for one in others], _INDENT)
    elif name == "format":
        _check_format(str(value), others)
    elif name == "replace" and len(others) >= 2:
        _check_replacing(str(value), str(others[0]), str(others[1]))
    elif name == "join" and isinstance(value, Sequence):
        _check_size("", sum(len(str(one)) for one in others) * len(value))
    elif name == "sum" and any(isinstance(one, list | tuple) for one in others):
        raise LimitError("sum is for numbers")


def _check_method(name: str, owner: str | bytes | int, values: Sequence[Any]) -> None:
    """Refuse a method call on a text or number that makes a large result from small values."""
    room = MOST
    for value in values:
        room = _weigh(value, room)
    if isinstance(owner, int) or name in ("center", "ljust", "rjust", "zfill"):
        _check_numbers(values, _WIDEST)
    elif name == "expandtabs":
        _check_numbers(values, _INDENT)
    elif name in ("format", "format_map"):
        _check_format(owner, values)
    elif name == "replace" and len(values) >= 2:
        _check_replacing(owner, values[0], values[1])
    elif name == "join" and values and isinstance(values[0], Sequence):
        _check_size(owner, len(owner) * len(values[0]))
    elif name == "translate" and values and isinstance(values[0], Mapping):
        longest = max((len(one) for one in values[0].values() if isinstance(one, str)), default=1)
        _check_size(owner, len(owner) * longest)


def _check_numbers(values: Iterable[Any], most: int) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > most:
            raise LimitError(f"a width of {most:,} is the most")


def _check_replacing(text: Any, old: Any, new: Any) -> None:
    if type(text) is type(old) is type(new):
        _check_size(text, len(text) + text.count(old) * len(new))


def _check_format(text: str | bytes, values: Sequence[Any]) -> None:
    """Refuse a format width of five digits or more, and a width that is given by a value."""
    _weighed(list(values))
    written = text if isinstance(text, str) else text.decode("latin-1")
    fields = (field.partition("}") for field in written.split("{")[1:])
    # a field that is not closed before the next one begins takes its width from the next one
    wide = (":" in field and (not closed or _LONG_NUMBER.search(field)) for field, closed, _ in fields)
    if _WIDE.search(written) or any(wide):
        raise LimitError("a width of five digits, or one that is a value, is not for templates")
