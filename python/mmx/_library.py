"""The shared library libmmx: where it is, what its functions take, and their statuses as exceptions.

The declarations follow mmx.h; tests/test_header.py compares them with it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from ctypes import POINTER, Structure, c_bool, c_char, c_char_p, c_double, c_float, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ._errors import Busy, Error, InvalidArgument

OK, FAILED, INVALID_ARGUMENT, TOO_SMALL, BUSY, PANIC = range(6)
FINISHES = ("stop", "length", "context", "cancelled")
ALL_LAYERS = c_size_t(-1).value


class ModelOptions(Structure):
    """`mmx_model_options`."""

    _fields_ = [("repack", c_bool), ("gpu_layers", c_size_t), ("device", c_char_p)]


class SessionOptions(Structure):
    """`mmx_session_options`."""

    _fields_ = [("n_ctx", c_size_t), ("threads", c_size_t), ("exact", c_bool)]


class GenerateOptions(Structure):
    """`mmx_generate_options`."""

    _fields_ = [
        ("max_tokens", c_size_t),
        ("temperature", c_double),
        ("top_k", c_size_t),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repeat_penalty", c_double),
        ("presence_penalty", c_double),
        ("frequency_penalty", c_double),
        ("seed", c_uint64),
        ("stop", POINTER(c_char_p)),
        ("stop_count", c_size_t),
        ("ignore_end", c_bool),
    ]


class Generated(Structure):
    """`mmx_generated`."""

    _fields_ = [
        ("finish", c_int),
        ("tokens", c_size_t),
        ("prompt_tokens", c_size_t),
        ("prefill_seconds", c_double),
        ("decode_seconds", c_double),
    ]


_IDS, _COUNT, _FLOATS, _HANDLE = POINTER(c_uint32), POINTER(c_size_t), POINTER(c_float), POINTER(c_void_p)

# name: what it gives, what it takes; handles are addresses
FUNCTIONS: Dict[str, Tuple[Any, List[Any]]] = {
    "mmx_last_error": (c_char_p, []),
    "mmx_version": (c_char_p, []),
    "mmx_model_options_init": (c_int, [POINTER(ModelOptions)]),
    "mmx_model_open": (c_int, [c_char_p, POINTER(ModelOptions), _HANDLE]),
    "mmx_model_open_bytes": (c_int, [c_char_p, c_size_t, POINTER(ModelOptions), _HANDLE]),
    "mmx_model_free": (None, [c_void_p]),
    "mmx_model_vocab_size": (c_size_t, [c_void_p]),
    "mmx_model_context_length": (c_size_t, [c_void_p]),
    "mmx_model_embedding_size": (c_size_t, [c_void_p]),
    "mmx_tokenize_text": (c_int, [c_void_p, c_char_p, c_size_t, c_bool, c_bool, _IDS, c_size_t, _COUNT]),
    "mmx_detokenize": (c_int, [c_void_p, _IDS, c_size_t, c_bool, POINTER(c_char), c_size_t, _COUNT]),
    "mmx_chat_render": (c_int, [c_void_p, c_char_p, c_char_p, POINTER(c_char), c_size_t, _COUNT]),
    "mmx_chat_tokenize": (c_int, [c_void_p, c_char_p, c_char_p, _IDS, c_size_t, _COUNT]),
    "mmx_session_options_init": (c_int, [POINTER(SessionOptions)]),
    "mmx_session_new": (c_int, [c_void_p, POINTER(SessionOptions), _HANDLE]),
    "mmx_session_free": (None, [c_void_p]),
    "mmx_session_length": (c_size_t, [c_void_p]),
    "mmx_session_capacity": (c_size_t, [c_void_p]),
    "mmx_session_reuse": (c_int, [c_void_p, _IDS, c_size_t, _COUNT]),
    "mmx_eval": (c_int, [c_void_p, _IDS, c_size_t, _FLOATS, c_size_t]),
    "mmx_eval_all": (c_int, [c_void_p, _IDS, c_size_t, _FLOATS, c_size_t]),
    "mmx_embed": (c_int, [c_void_p, _IDS, c_size_t, _FLOATS, c_size_t]),
    "mmx_generate_options_init": (c_int, [POINTER(GenerateOptions), c_void_p]),
    "mmx_generation_new": (c_int, [c_void_p, _IDS, c_size_t, POINTER(GenerateOptions), _HANDLE]),
    "mmx_generation_next": (c_int, [c_void_p, POINTER(c_char), c_size_t, _COUNT, POINTER(c_bool)]),
    "mmx_generation_ids": (c_int, [c_void_p, _IDS, c_size_t, _COUNT]),
    "mmx_generation_result": (c_int, [c_void_p, POINTER(Generated)]),
    "mmx_generation_free": (None, [c_void_p]),
}

# as packages name it, and as cargo does
_NAMES = {
    "win32": ("mmx.dll", "libmmx.dll", "mmx_capi.dll"),
    "darwin": ("libmmx.dylib", "libmmx.0.dylib", "libmmx_capi.dylib"),
}.get(sys.platform, ("libmmx.so", "libmmx.so.0", "libmmx_capi.so"))


def find() -> Path:
    """The library's file: the one that MMX_LIBRARY names, else the package's own, else that of a checkout's build."""
    named = os.environ.get("MMX_LIBRARY")
    if named:
        if not os.path.isfile(named):
            raise Error(f"MMX_LIBRARY: expected the file of libmmx, found {named}, which is none")
        return Path(named)
    package = Path(__file__).resolve().parent
    folders = [package / "lib"]
    checkout = package.parent.parent
    if (checkout / "src" / "capi").is_dir():
        folders.append(checkout / "target" / "release")
    for folder in folders:
        for name in _NAMES:
            if (folder / name).is_file():
                return folder / name
    looked = " and ".join(str(folder) for folder in folders)
    raise Error(f"libmmx: expected {_NAMES[0]} in {looked}, found none: set MMX_LIBRARY to its file")


_loading = threading.Lock()
_loaded: Optional[ctypes.CDLL] = None


def library() -> ctypes.CDLL:
    """The library, loaded when first asked for. Calls of its functions let other threads of Python run."""
    global _loaded
    with _loading:
        if _loaded is None:
            path = find()
            try:
                loaded = ctypes.CDLL(str(path))
            except OSError as error:
                raise Error(f"{path}: it cannot be loaded: {error}") from None
            for name, (gives, takes) in FUNCTIONS.items():
                try:
                    function = getattr(loaded, name)
                except AttributeError:
                    raise Error(f"{path}: it has no {name}: expected libmmx of this package's version") from None
                function.restype, function.argtypes = gives, takes
            _loaded = loaded
        return _loaded


def version() -> str:
    """The library's version, `major.minor.patch`."""
    return bytes(library().mmx_version()).decode()


def check(status: int) -> None:
    """Raises what a status says. To be called by the thread that made the call, right after it."""
    if status == OK:
        return
    why = bytes(library().mmx_last_error()).decode(errors="replace")
    kinds = {INVALID_ARGUMENT: InvalidArgument, BUSY: Busy}
    raise kinds.get(status, Error)(why)
