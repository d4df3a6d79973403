"""Text that is being written: an iterator over its pieces."""

from __future__ import annotations

import ctypes
from typing import Any, Iterator, List, Optional, Sequence, TypedDict, Union

from . import _arguments as arguments
from . import _library as lib
from ._handles import Closing, Handle

_END_OF_THOUGHTS = "</think>"


class Options(TypedDict, total=False):
    """How a text is to be written. What is left out is as the model's file says it is meant to be sampled."""

    max_tokens: int
    """Tokens at most; 512."""
    temperature: float
    """Divides the logits; 0: always the likeliest token."""
    top_k: int
    """Only this many of the likeliest tokens; 0: all."""
    top_p: float
    """Only the likeliest tokens that reach this probability together; 1: all."""
    min_p: float
    """Only tokens of at least this share of the likeliest one's probability; 0: all."""
    repeat_penalty: float
    """Makes tokens that were there already less likely; 1: off."""
    presence_penalty: float
    """Taken from the logit of each token that was drawn already; 0: off."""
    frequency_penalty: float
    """Taken from the logit of each token once for each time it was drawn; 0: off."""
    seed: int
    """The same seed gives the same text; 0."""
    stop: Union[str, Sequence[str]]
    """Texts that end the generation and are not part of it."""
    ignore_end: bool
    """Go on after an end token."""


_WHOLE = {"max_tokens": lib.ALL_LAYERS, "top_k": lib.ALL_LAYERS, "seed": 2**64 - 1}
_REAL = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")


def options_of(model: int, given: Options) -> lib.GenerateOptions:
    """The library's options: a model's own, and what was given."""
    options = lib.GenerateOptions()
    lib.check(lib.library().mmx_generate_options_init(ctypes.byref(options), model))
    for name, value in given.items():
        if name in _WHOLE:
            setattr(options, name, arguments.whole(name, value, most=_WHOLE[name]))  # type: ignore[arg-type]
        elif name in _REAL:
            setattr(options, name, arguments.real(name, value))  # type: ignore[arg-type]
        elif name == "ignore_end":
            options.ignore_end = arguments.flag(name, value)  # type: ignore[arg-type]
        elif name == "stop":
            stops: Any = [value] if isinstance(value, str) else list(value)  # type: ignore[call-overload]
            strings = [arguments.string("stop", stop) for stop in stops]
            options.stop = (ctypes.c_char_p * len(strings))(*strings)
            options.stop_count = len(strings)
        else:
            known = ", ".join(sorted([*_WHOLE, *_REAL, "ignore_end", "stop"]))
            raise TypeError(f"unknown option {name}: expected one of {known}")
    return options


class Generation(Closing, Iterator[str]):
    """A text that is being written: iterate over it for pieces of text, whole characters, as soon as they are certain.

    It computes nothing ahead: a piece is computed when it is asked for. Leaving the loop, or Ctrl-C in it, leaves it where
    it is; `close` gives it up. One thread at a time.
    """

    def __init__(self, handle: Handle, thoughts_first: bool, owned: Optional[Handle]) -> None:
        self._handle = handle
        # a session of nobody else, closed together with this
        self._owned = owned
        self._thoughts_first = thoughts_first
        self._pieces: List[str] = []
        self._ids: List[int] = []
        self._result = lib.Generated(finish=lib.FINISHES.index("cancelled"))
        self._more = True

    def __next__(self) -> str:
        more = ctypes.c_bool()
        while self._more:
            with self._handle.used() as address:
                piece = arguments.filled_text(
                    lambda buffer, capacity, length: lib.library().mmx_generation_next(
                        address, buffer, capacity, length, ctypes.byref(more)
                    ),
                    255,
                )
            # text first: an interruption loses none that was told
            if piece:
                self._pieces.append(piece)
            self._more = more.value
            if not self._more:
                self.close()
            if piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        """Gives the rest up and lets its memory go; what was written stays known. More than once is fine."""
        if not self._handle.closed:
            self._look()
        self._more = False
        super().close()
        if self._owned is not None:
            self._owned.close()

    def _look(self) -> None:
        if self._handle.closed:
            return
        with self._handle.used() as address:
            lib.check(lib.library().mmx_generation_result(address, ctypes.byref(self._result)))
            self._ids = arguments.filled_ids(
                lambda buffer, capacity, count: lib.library().mmx_generation_ids(address, buffer, capacity, count), self._result.tokens
            )

    def text(self) -> str:
        """The whole text: writes it to its end, unless it was given up before."""
        for _ in self:
            pass
        return "".join(self._pieces)

    @property
    def written(self) -> str:
        """The text so far; computes nothing."""
        return "".join(self._pieces)

    def answer(self) -> str:
        """The whole text without the thoughts before it."""
        text = self.text()
        if _END_OF_THOUGHTS in text:
            return text.split(_END_OF_THOUGHTS, 1)[1].lstrip("\n")
        return "" if self._thoughts_first else text

    def thoughts(self) -> str:
        """The thoughts of the whole text, where its model thinks aloud."""
        text = self.text()
        if not self._thoughts_first and not text.startswith("<think>"):
            return ""
        return text.split(_END_OF_THOUGHTS, 1)[0].replace("<think>", "", 1).strip("\n")

    @property
    def ids(self) -> List[int]:
        """The ids written so far, without the end token."""
        self._look()
        return list(self._ids)

    @property
    def finish(self) -> str:
        """Why it ended: `stop` (an end token or a stop text), `length`, `context` (the session is full), or `cancelled`,
        also as long as it has not ended."""
        self._look()
        return lib.FINISHES[self._result.finish]

    @property
    def prompt_tokens(self) -> int:
        """Tokens read before the text; those that the session held already are not counted."""
        self._look()
        return int(self._result.prompt_tokens)

    @property
    def seconds(self) -> float:
        """Seconds of reading and writing, without those between calls."""
        self._look()
        return float(self._result.prefill_seconds + self._result.decode_seconds)

    def __repr__(self) -> str:
        return f"<mmx.Generation, {len(self.ids)} tokens, {'open' if self._more else self.finish}>"
