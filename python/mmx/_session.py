"""A text in progress: what was read stays computed, so that a chat's next turn reads what is new only."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, List, Mapping, Optional, Sequence, Union

from . import _arguments as arguments
from . import _library as lib
from ._arguments import Ids
from ._errors import Error
from ._generation import Generation, Options, options_of
from ._handles import Closing, Handle

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from ._model import Model


def numpy() -> Any:
    """The package numpy."""
    try:
        import numpy
    except ImportError:
        raise Error("logits: expected the package numpy, found none: pip install numpy") from None
    return numpy


class Session(Closing):
    """A text in progress of a model. One thread at a time; different sessions of one model are independent."""

    def __init__(self, model: "Model", *, context: int = 0, threads: int = 0, exact: bool = False) -> None:
        """Begins an empty text.

        context: positions kept, tokens; 0: the model's own length, at most 4096.
        threads: 0: what suits the model's size.
        exact: keeps keys and values in float32, which rounds nothing, instead of float16.
        """
        options = lib.SessionOptions(
            n_ctx=arguments.whole("context", context), threads=arguments.whole("threads", threads), exact=arguments.flag("exact", exact)
        )
        address = ctypes.c_void_p()
        with model._handle.used() as of_model:
            lib.check(lib.library().mmx_session_new(of_model, ctypes.byref(options), ctypes.byref(address)))
        self._model = model
        self._handle = Handle("session", address.value or 0, lib.library().mmx_session_free)

    @property
    def model(self) -> "Model":
        """The model."""
        return self._model

    def __len__(self) -> int:
        """The number of tokens in it."""
        with self._handle.used() as address:
            return int(lib.library().mmx_session_length(address))

    def __bool__(self) -> bool:
        return True

    @property
    def capacity(self) -> int:
        """The number of positions in it."""
        with self._handle.used() as address:
            return int(lib.library().mmx_session_capacity(address))

    def reuse(self, ids: Ids) -> int:
        """Keeps the longest beginning of `ids` that is in it already, forgets the rest, and returns how many ids that are:
        `ids[kept:]` is left to read, at least one."""
        wanted = arguments.ids("ids", ids)
        kept = ctypes.c_size_t()
        with self._handle.used() as address:
            lib.check(lib.library().mmx_session_reuse(address, arguments.pointer(wanted), len(wanted), ctypes.byref(kept)))
        return kept.value

    def clear(self) -> None:
        """Forgets everything."""
        self.reuse([])

    def generate(self, prompt: Union[str, Ids], **options: "Unpack[Options]") -> Generation:
        """Reads a text, or ids, after those in it and writes what follows.

        In a text, that of a control token (`<|im_end|>`) is that token. See `mmx.Options` for the options.
        """
        return self._generate(self._model._ids(prompt, around=len(self) == 0), options, False, None)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        thinking: Optional[bool] = None,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        variables: Optional[Mapping[str, Any]] = None,
        **options: "Unpack[Options]",
    ) -> Generation:
        """Writes the answer to a chat: pass all of its messages at each turn; what is in the session already is not read again.

        See `Model.chat` for the arguments.
        """
        return self._chat(messages, thinking, tools, variables, options, None)

    def _chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        thinking: Optional[bool],
        tools: Optional[Sequence[Mapping[str, Any]]],
        variables: Optional[Mapping[str, Any]],
        options: Options,
        owned: Optional[Handle],
    ) -> Generation:
        ids = self._model.tokenize_chat(messages, thinking=thinking, tools=tools, variables=variables)
        rendered = self._model.render(messages, thinking=thinking, tools=tools, variables=variables)
        kept = self.reuse(ids)
        return self._generate(ids[kept:], options, rendered.rstrip().endswith("<think>"), owned)

    def _generate(self, prompt: Ids, options: Options, thoughts_first: bool, owned: Optional[Handle]) -> Generation:
        ids = arguments.ids("prompt", prompt)
        address = ctypes.c_void_p()
        with self._model._handle.used() as of_model, self._handle.used() as of_session:
            wanted = options_of(of_model, options)
            status = lib.library().mmx_generation_new(
                of_session, arguments.pointer(ids), len(ids), ctypes.byref(wanted), ctypes.byref(address)
            )
            lib.check(status)
        handle = Handle("generation", address.value or 0, lib.library().mmx_generation_free)
        return Generation(handle, thoughts_first, owned)

    def logits(self, text: Union[str, Ids], *, every: bool = False) -> "npt.NDArray[np.float32]":
        """Reads a text, or ids, after those in it; the logits of what follows, `[vocab]`; with `every`, those after each id,
        `[ids, vocab]`. Needs numpy."""
        np = numpy()
        ids = self._model._ids(text, around=len(self) == 0)
        vocab = self._model.vocab_size
        found = np.empty((len(ids), vocab) if arguments.flag("every", every) else vocab, dtype=np.float32)
        call = lib.library().mmx_eval_all if every else lib.library().mmx_eval
        with self._handle.used() as address:
            where = found.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            lib.check(call(address, arguments.pointer(ids), len(ids), where, found.size))
        return found  # type: ignore[no-any-return]

    def embed(self, text: Union[str, Ids]) -> List[float]:
        """Reads a text, or ids, after those in it; the mean of their final hidden states, `[embedding_size]`, as the
        embeddings of `mmx serve`."""
        ids = self._model._ids(text, around=len(self) == 0)
        found = (ctypes.c_float * self._model.embedding_size)()
        with self._handle.used() as address:
            lib.check(lib.library().mmx_embed(address, arguments.pointer(ids), len(ids), found, len(found)))
        return list(found)

    def __repr__(self) -> str:
        return f"<mmx.Session, {'closed' if self._handle.closed else f'{len(self)} of {self.capacity} positions'}>"
