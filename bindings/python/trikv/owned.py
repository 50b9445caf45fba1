"""What sessions and maps have in common: a thing of the daemon's, held through a client."""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self

    from .client import Client


class Owned:
    """Ends with close(), with its client, or when nothing refers to it any more."""

    _ending: ClassVar[str]  # the call that lets it go

    def __init__(self, client: Client, pointer: ctypes.c_void_p) -> None:
        self._client = client
        self._pointer = pointer

    @property
    def closed(self) -> bool:
        return not self._pointer

    def close(self) -> None:
        """Let it go; again: nothing."""
        with self._client.lock:
            if self._pointer and not self._client.closed:
                self._client.call(self._ending, ctypes.byref(self._pointer))

    def forget(self) -> None:
        """The client frees what is behind it."""
        self._pointer = ctypes.c_void_p()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            try:
                self.close()
            except Exception:  # noqa: BLE001  nobody is left to be told
                pass
