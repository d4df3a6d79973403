"""Handles of the library: freed once, never while a call is using them, whatever threads do."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import Callable, Iterator, Optional

from ._errors import Closed


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
