"""TriKV: KV caches of language models, compressed in a daemon's memory.

    import numpy as np
    import trikv

    with trikv.Client() as client:
        session = client.open(trikv.Layer(32, 8, 128), n_layers=36, codec_k="tq4", codec_v="tq4")
        out = session.append_attend(0, k, v, q)
        print(session.stats())

A ctypes layer over libtrikv; client/trikv.h says what every call means.
"""

from ._abi import library
from .batch import Batch
from .client import Client
from .errors import (
    ConnectionLostError, ErrorCode, LimitError, RequestError, StateError, TrikvError,
)
from .handle import Handle
from .map import Map
from .session import Session
from .types import (
    Calibration, Gate, Geometry, Info, Layer, Prefix, PrefixResult, Rope, Stats, Tokens,
)

__all__ = [
    "Batch", "Calibration", "Client", "ConnectionLostError", "ErrorCode", "Gate", "Geometry",
    "Handle", "Info", "Layer", "LimitError", "Map", "Prefix", "PrefixResult", "RequestError", "Rope", "Session",
    "StateError", "Stats", "Tokens", "TrikvError", "library_version",
]


def library_version() -> str:
    """Of the libtrikv that is loaded."""
    return str(library().version().decode())
