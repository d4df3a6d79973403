"""mmx: tiny language models, run from Python.

    import mmx

    with mmx.load("model-q4_0.gguf") as model:
        for piece in model.chat([{"role": "user", "content": "What is 7 + 5?"}]):
            print(piece, end="", flush=True)

The module is a thin layer over the library libmmx (mmx.h); it needs nothing but Python, and numpy for logits.
"""

from ._arguments import Ids
from ._errors import Busy, Closed, Error, InvalidArgument
from ._generation import Generation, Options
from ._library import find as library_path
from ._library import version
from ._model import Model, load, load_bytes
from ._session import Session

__all__ = [
    "Busy",
    "Closed",
    "Error",
    "Generation",
    "Ids",
    "InvalidArgument",
    "Model",
    "Options",
    "Session",
    "library_path",
    "load",
    "load_bytes",
    "version",
]
