"""Errors: what the daemon or the library says, as exceptions."""

from __future__ import annotations

from enum import IntEnum

from . import _abi


class ErrorCode(IntEnum):
    """enum trikv_error of client/trikv.h."""

    PROTOCOL = 1
    VERSION = 2
    CHECKSUM = 3
    UNKNOWN_REQUEST = 4
    ARGUMENT = 5
    SIZE = 6
    VALUE = 7
    POSITION = 8
    NO_SESSION = 20
    NO_PROFILE = 21
    GEOMETRY = 22
    STATE = 23
    DENIED = 24
    EXISTS = 25
    EVICTED = 26
    TOO_LARGE = 40
    MEMORY_CAP = 41
    TOO_MANY = 42
    QUOTA = 43
    NO_MEMORY = 60
    SYSTEM = 61
    DRAINING = 62
    INTERNAL = 63
    CONNECT = 80
    DISCONNECTED = 81
    DEADLINE = 82
    STALE = 83


class TrikvError(Exception):
    """Any error of the library. `code` is an ErrorCode, or a plain number that this package
    does not know; the text is the daemon's."""

    def __init__(self, code: int, text: str) -> None:
        known = code in ErrorCode._value2member_map_
        super().__init__(f"{ErrorCode(code).name if known else code}: {text}")
        self.code: int = ErrorCode(code) if known else code
        self.text = text


class RequestError(TrikvError, ValueError):
    """What was asked for cannot be right: arguments, sizes, values, positions, geometry, names."""


class StateError(TrikvError):
    """Right in itself, but not now or not for this user. Nothing has changed."""


class LimitError(TrikvError, MemoryError):
    """A limit or the memory cap is reached. Nothing has changed."""


class ConnectionLostError(TrikvError, ConnectionError):
    """There is no connection, or it is closed now: the sessions of this client are gone."""


_CLASSES: dict[type[TrikvError], tuple[ErrorCode, ...]] = {
    RequestError: (ErrorCode.ARGUMENT, ErrorCode.SIZE, ErrorCode.VALUE, ErrorCode.POSITION,
                   ErrorCode.NO_PROFILE, ErrorCode.GEOMETRY, ErrorCode.UNKNOWN_REQUEST),
    StateError: (ErrorCode.NO_SESSION, ErrorCode.EVICTED, ErrorCode.STATE, ErrorCode.DENIED, ErrorCode.EXISTS,
                 ErrorCode.DRAINING),
    LimitError: (ErrorCode.TOO_LARGE, ErrorCode.MEMORY_CAP, ErrorCode.QUOTA,
                 ErrorCode.TOO_MANY,                 ErrorCode.NO_MEMORY),
    ConnectionLostError: (ErrorCode.PROTOCOL, ErrorCode.VERSION, ErrorCode.CHECKSUM,
                          ErrorCode.CONNECT, ErrorCode.DISCONNECTED, ErrorCode.DEADLINE,
                          ErrorCode.STALE),
}
_CLASS_OF = {int(code): cls for cls, codes in _CLASSES.items() for code in codes}


def make_error(code: int, text: str) -> TrikvError:
    """The exception for an error number; without a text, its general one."""
    if not text:
        text = _abi.library().error_text(code).decode()
    return _CLASS_OF.get(code, TrikvError)(code, text)
