"""Models: opened from a GGUF, used by any number of threads."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any, List, Mapping, Optional, Sequence, Union

from . import _arguments as arguments
from . import _library as lib
from ._arguments import Ids
from ._generation import Generation, Options
from ._handles import Closing, Handle
from ._session import Session

if TYPE_CHECKING:
    from array import array

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Literal, Unpack

Path = Union[str, "os.PathLike[str]"]


def load(path: Path, *, repack: Optional[bool] = None, gpu_layers: "Union[int, Literal['all']]" = 0, device: Optional[str] = None) -> "Model":
    """Opens a GGUF.

    repack: keeps weights in the order the CPU likes best, which costs a copy; else they stay in the file's memory map.
    gpu_layers: layers computed on a GPU, counted from the end; "all" for every one. For libraries built for one.
    device: that GPU, "CUDA0" for instance; the first unless given.
    """
    where = arguments.string("path", os.fsdecode(path))
    options = _options(repack, gpu_layers, device)
    address = ctypes.c_void_p()
    lib.check(lib.library().mmx_model_open(where, ctypes.byref(options), ctypes.byref(address)))
    return Model(address.value or 0, where.decode())


def load_bytes(
    data: bytes, *, repack: Optional[bool] = None, gpu_layers: "Union[int, Literal['all']]" = 0, device: Optional[str] = None
) -> "Model":
    """Opens a GGUF that is in memory, which is copied. Arguments as those of `load`."""
    if not isinstance(data, bytes):
        raise TypeError(f"data: expected bytes, found {type(data).__name__}")
    options = _options(repack, gpu_layers, device)
    address = ctypes.c_void_p()
    lib.check(lib.library().mmx_model_open_bytes(data, len(data), ctypes.byref(options), ctypes.byref(address)))
    return Model(address.value or 0, "model in memory")


def _options(repack: Optional[bool], gpu_layers: "Union[int, str]", device: Optional[str]) -> lib.ModelOptions:
    options = lib.ModelOptions()
    lib.check(lib.library().mmx_model_options_init(ctypes.byref(options)))
    if repack is not None:
        options.repack = arguments.flag("repack", repack)
    if gpu_layers == "all":
        options.gpu_layers = lib.ALL_LAYERS
    else:
        options.gpu_layers = arguments.whole("gpu_layers", gpu_layers)  # type: ignore[arg-type]
    if device is not None:
        options.device = arguments.string("device", device)
    return options


class Model(Closing):
    """A model: weights, tokenizer, chat template. Made by `load`; any number of threads may use it at once.

    Each `generate`, `chat`, `logits` and `embed` of a model begins with an empty session of its own; for a chat of several
    turns, one `session()` reads each turn only once.
    """

    def __init__(self, address: int, name: str) -> None:
        self._handle = Handle("model", address, lib.library().mmx_model_free)
        self._name = name

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary."""
        with self._handle.used() as address:
            return int(lib.library().mmx_model_vocab_size(address))

    @property
    def context_length(self) -> int:
        """The number of positions that the model was made for."""
        with self._handle.used() as address:
            return int(lib.library().mmx_model_context_length(address))

    @property
    def embedding_size(self) -> int:
        """The number of values of an embedding."""
        with self._handle.used() as address:
            return int(lib.library().mmx_model_embedding_size(address))

    def tokenize(self, text: str, *, control: bool = False, around: bool = False) -> List[int]:
        """The ids of a text.

        control: the text of a control token, `<|im_end|>` for instance, gives its id; else nothing in the text does, which
        is right for text of strangers.
        around: adds what the tokenizer puts around a text by itself, mostly nothing, in many models a token for its beginning.
        """
        encoded = arguments.text("text", text)
        control, around = arguments.flag("control", control), arguments.flag("around", around)
        with self._handle.used() as address:
            return arguments.filled_ids(
                lambda buffer, capacity, count: lib.library().mmx_tokenize_text(
                    address, encoded, len(encoded), control, around, buffer, capacity, count
                ),
                len(encoded) + 2,
            )

    def detokenize(self, ids: Ids, *, control: bool = False) -> str:
        """The text of ids: bytes that are no UTF-8 become U+FFFD, ids without a token nothing, control tokens nothing unless
        `control`."""
        given = arguments.ids("ids", ids)
        control = arguments.flag("control", control)
        with self._handle.used() as address:
            return arguments.filled_text(
                lambda buffer, capacity, length: lib.library().mmx_detokenize(
                    address, arguments.pointer(given), len(given), control, buffer, capacity, length
                ),
                8 * len(given),
            )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        thinking: Optional[bool] = None,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        variables: Optional[Mapping[str, Any]] = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text that a chat becomes by the model's own template. Arguments as those of `chat`."""
        given, options = _chat(messages, thinking, tools, add_generation_prompt, variables)
        with self._handle.used() as address:
            return arguments.filled_text(
                lambda buffer, capacity, length: lib.library().mmx_chat_render(address, given, options, buffer, capacity, length),
                2 * len(given) + 4096,
            )

    def tokenize_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        thinking: Optional[bool] = None,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        variables: Optional[Mapping[str, Any]] = None,
        add_generation_prompt: bool = True,
    ) -> List[int]:
        """The ids of a chat. Control tokens come from the template only: a message that contains `<|im_end|>` ends nothing."""
        given, options = _chat(messages, thinking, tools, add_generation_prompt, variables)
        with self._handle.used() as address:
            return arguments.filled_ids(
                lambda buffer, capacity, count: lib.library().mmx_chat_tokenize(address, given, options, buffer, capacity, count),
                2 * len(given) + 4096,
            )

    def session(self, *, context: int = 0, threads: int = 0, exact: bool = False) -> Session:
        """Begins an empty text. Arguments as those of `Session`."""
        return Session(self, context=context, threads=threads, exact=exact)

    def generate(self, prompt: Union[str, Ids], **options: "Unpack[Options]") -> Generation:
        """Writes what follows a text, or ids, piece by piece.

        In a text, that of a control token (`<|im_end|>`) is that token. See `mmx.Options` for the options.
        """
        session = self.session()
        return session._generate(self._ids(prompt, around=True), options, False, session._handle)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        thinking: Optional[bool] = None,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        variables: Optional[Mapping[str, Any]] = None,
        **options: "Unpack[Options]",
    ) -> Generation:
        """Writes the answer to a chat, piece by piece.

        messages: dicts with `role` (`system`, `user`, `assistant`, ...) and `content`, as OpenAI's API has them.
        thinking: whether the model is to think aloud first, where its template knows that; see `Generation.answer`.
        tools: functions as OpenAI's API has them, where the template shows them.
        variables: further variables of the template.
        See `mmx.Options` for the options of writing.
        """
        session = self.session()
        return session._chat(messages, thinking, tools, variables, options, session._handle)

    def logits(self, text: Union[str, Ids], *, every: bool = False) -> "npt.NDArray[np.float32]":
        """The logits of what follows a text, or ids, `[vocab]`; with `every`, those after each id, `[ids, vocab]`, in a session
        that rounds nothing. Needs numpy."""
        with self.session(exact=True) as session:
            return session.logits(text, every=every)

    def embed(self, text: Union[str, Ids]) -> List[float]:
        """The mean of a text's final hidden states, `[embedding_size]`: a language model was not trained for this; the numbers
        compare texts coarsely, no better."""
        with self.session() as session:
            return session.embed(text)

    def _ids(self, given: Union[str, Ids], *, around: bool) -> "array[int]":
        if isinstance(given, str):
            return arguments.ids("prompt", self.tokenize(given, control=True, around=around))
        return arguments.ids("prompt", given)

    def close(self) -> None:
        """Frees it, once no call is using it; its sessions keep what they need, but read ids alone. More than once is fine."""
        super().close()

    def __repr__(self) -> str:
        return f"<mmx.Model {self._name}{', closed' if self._handle.closed else ''}>"


def _chat(
    messages: Sequence[Mapping[str, Any]],
    thinking: Optional[bool],
    tools: Optional[Sequence[Mapping[str, Any]]],
    add_generation_prompt: bool,
    variables: Optional[Mapping[str, Any]],
) -> "tuple[bytes, bytes]":
    if isinstance(messages, (str, bytes, Mapping)):
        raise TypeError(f"messages: expected a list of dicts, found {type(messages).__name__}")
    given = arguments.as_json("messages", [dict(message) if isinstance(message, Mapping) else message for message in messages])
    return given, arguments.chat_options(thinking, tools, add_generation_prompt, variables)
