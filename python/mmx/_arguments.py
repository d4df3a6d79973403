"""What callers give, checked and put into the forms that the library takes."""

from __future__ import annotations

import ctypes
import json
import operator
from array import array
from typing import TYPE_CHECKING, Any, Callable, List, Mapping, Optional, Sequence, Union

from . import _library as lib
from ._errors import InvalidArgument

if TYPE_CHECKING:
    from typing_extensions import SupportsIndex

Ids = Union[Sequence[int], "array[int]"]
# at most so many places are asked for before it is known how many are needed
_FIRST_GUESS = 1 << 16


def whole(name: str, value: "SupportsIndex", least: int = 0, most: int = lib.ALL_LAYERS) -> int:
    """A whole number within limits: C's would wrap around."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected a whole number, found {value}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, found {type(value).__name__}") from None
    if not least <= number <= most:
        raise InvalidArgument(f"{name}: expected {least} to {most}, found {number}")
    return number


def real(name: str, value: float) -> float:
    """A number."""
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}")
    try:
        return float(value)
    except TypeError:
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}") from None


def flag(name: str, value: bool) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, found {type(value).__name__}")
    return value


def text(name: str, value: str) -> bytes:
    """A text as UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, found {type(value).__name__}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{name}: expected text, found half a surrogate pair at {error.start}") from None


def string(name: str, value: str) -> bytes:
    """A text for which C looks for the end."""
    found = text(name, value)
    if b"\0" in found:
        raise InvalidArgument(f"{name}: expected text without a zero byte, found one at {found.index(0)}")
    return found


def ids(name: str, value: Ids) -> "array[int]":
    """Ids as C's uint32_t."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}: expected ids, found {type(value).__name__}")
    try:
        return array("I", value)
    except OverflowError:
        raise InvalidArgument(f"{name}: expected ids of 0 to {2**32 - 1}, found one beyond") from None
    except TypeError as error:
        raise TypeError(f"{name}: expected ids: {error}") from None


def pointer(values: "array[int]") -> Any:
    """Where ids lie; they live as long as what this gives."""
    return (ctypes.c_uint32 * len(values)).from_buffer(values)


def as_json(name: str, value: Any) -> bytes:
    """Messages or options as JSON. Numbers beyond JSON are refused."""
    try:
        return text(name, json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name}: expected what JSON can hold: {error}") from None


def filled_ids(call: Callable[[Any, int, Any], int], guess: int) -> List[int]:
    """The ids that a call stores in a buffer, of which `guess` are expected."""
    count = ctypes.c_size_t()
    capacity = min(guess, _FIRST_GUESS)
    while True:
        buffer = (ctypes.c_uint32 * max(capacity, 1))()
        status = call(buffer, capacity, ctypes.byref(count))
        if status == lib.TOO_SMALL and count.value > capacity:
            capacity = count.value
            continue
        lib.check(status)
        return list(buffer[: count.value])


def filled_text(call: Callable[[Any, int, Any], int], guess: int) -> str:
    """The text that a call stores in a buffer, of which `guess` bytes are expected."""
    length = ctypes.c_size_t()
    capacity = min(guess, _FIRST_GUESS) + 1
    while True:
        buffer = ctypes.create_string_buffer(capacity)
        status = call(buffer, capacity, ctypes.byref(length))
        if status == lib.TOO_SMALL and length.value + 1 > capacity:
            capacity = length.value + 1
            continue
        lib.check(status)
        return buffer.raw[: length.value].decode()


def chat_options(
    thinking: Optional[bool],
    tools: Optional[Sequence[Mapping[str, Any]]],
    add_generation_prompt: bool,
    variables: Optional[Mapping[str, Any]],
) -> bytes:
    """The options of a chat template."""
    options = dict(variables or {})
    if thinking is not None:
        # MiniMind's own name and Qwen's
        options["open_thinking"] = options["enable_thinking"] = flag("thinking", thinking)
    if tools is not None:
        options["tools"] = list(tools)
    options["add_generation_prompt"] = flag("add_generation_prompt", add_generation_prompt)
    return as_json("variables", options)
