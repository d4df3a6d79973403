"""Handles of the library: freed once, never while a call is using them, whatever threads do; what holds one is closed."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable, Iterator, Optional, TypeVar

from ._errors import Closed

if TYPE_CHECKING:
    from types import TracebackType

Self = TypeVar("Self", bound="Closing")


class Handle:
    """An address that the library gave out. Closing it waits for nobody: the last call that is using it frees it."""

    def __init__(self, what: str, address: int, free: Callable[[int], None]) -> None:
        self._what, self._free = what, free
        self._address: Optional[int] = address
        self._users = 0
        self._closed = False
        self._process = os.getpid()
        # one thread may come twice: a signal's handler, a collection of garbage
        self._lock = threading.RLock()

    @contextmanager
    def used(self) -> Iterator[int]:
        """The address, for one call."""
        with self._lock:
            if self._process != os.getpid():
                raise Closed(f"the {self._what} belongs to the process that this one was forked from: open it anew")
            if self._closed or self._address is None:
                raise Closed(f"the {self._what} is closed")
            address = self._address
            self._users += 1
        try:
            yield address
        finally:
            with self._lock:
                self._users -= 1
                self._free_if_unused()

    @property
    def closed(self) -> bool:
        """True once it is closed."""
        return self._closed

    def close(self) -> None:
        """Closes it; more than once is fine."""
        with self._lock:
            self._closed = True
            self._free_if_unused()

    def _free_if_unused(self) -> None:
        if self._closed and self._users == 0 and self._address is not None:
            address, self._address = self._address, None
            # threads of the library do not live in a fork, so that nothing can wait for them there
            if self._process == os.getpid():
                self._free(address)

    def __del__(self) -> None:
        self.close()


class Closing:
    """What holds a handle of the library, and is closed with it: by `close`, or at the end of a `with`."""

    _handle: Handle

    def close(self) -> None:
        """Frees it, once no call is using it. More than once is fine."""
        self._handle.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, kind: "Optional[type[BaseException]]", error: Optional[BaseException], trace: "Optional[TracebackType]") -> None:
        self.close()
