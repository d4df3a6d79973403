"""What goes wrong, as exceptions; the sentences are mmx's own."""

from __future__ import annotations


class Error(Exception):
    """The model, the file or the request does not allow it."""


class InvalidArgument(Error, ValueError):
    """An argument that can never be right: broken JSON, an id that no token can have."""


class Busy(Error):
    """Another thread is using the session or the generation."""


class Closed(Error, ValueError):
    """What is used was closed before, or belongs to the process that this one was forked from."""
