"""libtrikv as ctypes sees it: structs, constants and prototypes of client/trikv.h, and nothing else.

tests/check_python.py compares every struct, field, constant and function with the header.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    POINTER, Structure, c_char_p, c_double, c_float, c_int, c_int32, c_size_t, c_uint32, c_uint64,
    c_void_p,
)
from typing import Any

ABI_VERSION = 0
F32, F16, BF16 = 0, 1, 2
STEP_APPEND, STEP_ATTEND, STEP_APPEND_ATTEND = 1, 2, 3


class Options(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("socket", c_char_p),
        ("timeout_ms", c_uint32),
        ("staging_bytes", c_size_t),
        ("name", c_char_p),
    ]


class Info(Structure):
    _fields_ = [
        ("protocol", c_uint32),
        ("boot_id", c_uint64),
        ("version", c_char_p),
        ("cpu", c_char_p),
        ("max_payload_bytes", c_uint64),
        ("memory_cap_bytes", c_uint64),
    ]


class Layer(Structure):
    _fields_ = [
        ("n_q_heads", c_uint32),
        ("n_kv_heads", c_uint32),
        ("head_dim_k", c_uint32),
        ("head_dim_v", c_uint32),
        ("scale", c_float),
        ("softcap", c_float),
        ("window_tokens", c_uint32),
        ("rope_dim", c_uint32),
        ("sinks", c_void_p),
    ]


class Rope(Structure):
    _fields_ = [
        ("theta", c_double),
        ("rotary_dim", c_uint32),
        ("layout", c_char_p),
        ("scaling", c_char_p),
        ("factor", c_double),
        ("low_freq_factor", c_double),
        ("high_freq_factor", c_double),
        ("original_context", c_uint32),
        ("beta_fast", c_double),
        ("beta_slow", c_double),
        ("attention_factor", c_double),
        ("no_truncate", c_int),
    ]


class Prefix(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("token_ids", c_void_p),
        ("n_token_ids", c_uint32),
        ("keep", c_int),
        ("salt", c_char_p),
        ("salt_bytes", c_size_t),
    ]


class PrefixResult(Structure):
    _fields_ = [
        ("outcome", c_int),
        ("n_tokens", c_uint32),
        ("reason", c_char_p),
    ]


class SessionOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("n_layers", c_uint32),
        ("layers", POINTER(Layer)),
        ("same_layers", c_int),
        ("profile", c_char_p),
        ("fingerprint", c_char_p),
        ("rope", POINTER(Rope)),
        ("label", c_char_p),
        ("codec_k", c_char_p),
        ("codec_v", c_char_p),
        ("method", c_char_p),
        ("budget_tokens", c_uint32),
        ("beta_tokens", c_uint32),
        ("recent_tokens", c_int32),
        ("pinned_tokens", c_int32),
        ("eviction_mode", c_char_p),
        ("aggregation", c_char_p),
        ("offset_max", c_uint32),
        ("normalize_scores", c_int32),
        ("rollback_tokens", c_int32),
        ("budget_bytes", c_uint64),
        ("max_tokens", c_uint32),
        ("target_ratio", c_float),
        ("prefix", POINTER(Prefix)),
        ("never_evict", c_int),
        ("allocator", c_char_p),
    ]


class ForkOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("label", c_char_p),
        ("budget_tokens", c_uint32),
    ]


class Geometry(Structure):
    _fields_ = [
        ("n_q_heads", c_uint32),
        ("n_kv_heads", c_uint32),
        ("head_dim_k", c_uint32),
        ("head_dim_v", c_uint32),
    ]


class Step(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("layer", c_uint32),
        ("n_tokens", c_uint32),
        ("dtype", c_int),
        ("positions", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("q", c_void_p),
        ("out", c_void_p),
        ("lse", c_void_p),
        ("token_ids", c_void_p),
    ]


class RingOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("n_entries", c_uint32),
        ("spin_us", c_int32),
        ("copy_bytes", c_size_t),
        ("tensor_bytes", c_size_t),
    ]


class Read(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("layer", c_uint32),
        ("kv_head", c_int32),
        ("first", c_uint64),
        ("n_tokens", c_uint32),
        ("dtype", c_int),
        ("positions", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
    ]


class ReadResult(Structure):
    _fields_ = [
        ("n_seen", c_uint64),
        ("n_kept", c_uint64),
        ("exact", c_int),
    ]


class Progress(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("n_seen", POINTER(c_uint64)),
        ("n_seen_cap", c_uint32),
        ("n_layers", c_uint32),
        ("n_rounds", c_uint32),
        ("n_token_ids", c_uint32),
    ]


class Queries(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("layer", c_uint32),
        ("n_tokens", c_uint32),
        ("dtype", c_int),
        ("positions", c_void_p),
        ("q", c_void_p),
        ("before_rope", c_int),
    ]


class CalibrationOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("architecture", c_char_p),
        ("fingerprint", c_char_p),
    ]


class Calibration(Structure):
    _fields_ = [
        ("yaml", c_void_p),
        ("yaml_bytes", c_size_t),
        ("n_tokens", c_uint64),
    ]


class Stats(Structure):
    _fields_ = [
        ("session", c_uint64),
        ("n_seen", c_uint64),
        ("n_kept", c_double),
        ("resident_bytes", c_uint64),
        ("fp16_bytes", c_uint64),
        ("bits_k", c_double),
        ("bits_v", c_double),
        ("n_rounds", c_uint32),
        ("n_evicted", c_uint64),
        ("arena_bytes", c_uint64),
        ("slack_bytes", c_uint64),
        ("shared_bytes", c_uint64),
    ]


class Gate(Structure):
    _fields_ = [
        ("n_passed", c_uint64),
        ("n_kept_more", c_uint64),
        ("n_exceeded", c_uint64),
        ("n_surplus_tokens", c_uint64),
        ("n_dropped", c_uint64),
        ("n_probes", c_uint32),
        ("output_error", c_float),
        ("lse_change", c_float),
        ("lost_mass", c_float),
    ]


class Handle(Structure):
    _fields_ = [
        ("fd", c_int),
        ("generation", c_uint64),
        ("arena_bytes", c_uint64),
        ("n_blocks", c_uint32),
        ("table", c_void_p),
        ("table_bytes", c_size_t),
    ]


# struct trikv_NAME of the header -> its class here.
STRUCTS: dict[str, type[Structure]] = {
    "options": Options,
    "info": Info,
    "layer": Layer,
    "rope": Rope,
    "prefix": Prefix,
    "prefix_result": PrefixResult,
    "session_options": SessionOptions,
    "fork_options": ForkOptions,
    "geometry": Geometry,
    "step": Step,
    "ring_options": RingOptions,
    "read": Read,
    "read_result": ReadResult,
    "progress": Progress,
    "queries": Queries,
    "calibration_options": CalibrationOptions,
    "calibration": Calibration,
    "stats": Stats,
    "gate": Gate,
    "handle": Handle,
}

_Client = c_void_p
_Session = c_void_p
_Map = c_void_p
_step = (c_int, [_Session, POINTER(Step)])

# trikv_NAME -> (result, arguments)
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "version": (c_char_p, []),
    "abi_version": (c_uint32, []),
    "connect": (c_int, [POINTER(_Client), POINTER(Options)]),
    "disconnect": (None, [POINTER(_Client)]),
    "info": (POINTER(Info), [_Client]),
    "last_error": (c_char_p, [_Client]),
    "error_text": (c_char_p, [c_int]),
    "open": (c_int, [_Client, POINTER(SessionOptions), POINTER(_Session)]),
    "close": (c_int, [POINTER(_Session)]),
    "session_id": (c_uint64, [_Session]),
    "session_reserved_bytes": (c_uint64, [_Session]),
    "session_n_layers": (c_uint32, [_Session]),
    "session_geometry": (c_int, [_Session, c_uint32, POINTER(Geometry)]),
    "fork": (c_int, [_Session, POINTER(ForkOptions), POINTER(_Session)]),
    "fork_id": (c_int, [_Client, c_uint64, POINTER(ForkOptions), POINTER(_Session)]),
    "session_prefix": (None, [_Session, POINTER(PrefixResult)]),
    "keep": (c_int, [_Session, POINTER(c_uint32)]),
    "snapshot": (c_int, [_Session, c_char_p, POINTER(c_uint64)]),
    "restore": (c_int, [_Client, c_char_p, POINTER(_Session)]),
    "snapshot_delete": (c_int, [_Client, c_char_p]),
    "reconnect": (c_int, [_Client]),
    "reattach": (c_int, [_Session, POINTER(Progress)]),
    "reattach_id": (c_int, [_Client, c_uint64, c_uint64, POINTER(Progress), POINTER(_Session)]),
    "session_boot_id": (c_uint64, [_Session]),
    "truncate": (c_int, [_Session, c_uint64]),
    "append": _step,
    "attend": _step,
    "append_attend": _step,
    "ring_open": (c_int, [_Client, POINTER(RingOptions)]),
    "ring_close": (c_int, [_Client]),
    "ring_tensors": (c_void_p, [_Client]),
    "ring_submit": (c_int, [_Session, c_int, POINTER(Step), c_uint32]),
    "ring_wait": (c_int, [_Client]),
    "read": (c_int, [_Session, POINTER(Read), POINTER(ReadResult)]),
    "round": (c_int, [_Session]),
    "stats": (c_int, [_Session, POINTER(Stats)]),
    "gate": (c_int, [_Session, POINTER(Gate)]),
    "observe": (c_int, [_Session, POINTER(Queries)]),
    "calibrate": (c_int, [_Session, POINTER(CalibrationOptions), POINTER(Calibration)]),
    "calibration_release": (None, [POINTER(Calibration)]),
    "handle": (c_int, [_Session, POINTER(Handle)]),
    "handle_release": (None, [POINTER(Handle)]),
    "map": (c_int, [_Client, c_uint64, POINTER(_Map)]),
    "unmap": (c_int, [POINTER(_Map)]),
    "map_n_layers": (c_uint32, [_Map]),
    "map_geometry": (c_int, [_Map, c_uint32, POINTER(Geometry)]),
    "map_n_seen": (c_uint64, [_Map, c_uint32]),
    "attend_local": (c_int, [_Map, POINTER(Step)]),
}


class Library:
    """The loaded library: trikv_NAME is the attribute NAME."""

    def __init__(self, path: str) -> None:
        self.path = path
        loaded = ctypes.CDLL(path)
        abi = getattr(loaded, "trikv_abi_version", None)
        if abi is None:
            raise ImportError(f"{path} is older than this package: no trikv_abi_version in it")
        if abi() != ABI_VERSION:
            raise ImportError(f"{path} has ABI version {abi()}, this package wants {ABI_VERSION}")
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(loaded, "trikv_" + name, None)
            if function is None:
                raise ImportError(f"{path} is older than this package: no trikv_{name} in it")
            function.restype = result
            function.argtypes = arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"libtrikv has no function trikv_{name}")


_library: Library | None = None


def library() -> Library:
    """libtrikv.so.0, or what $TRIKV_LIBRARY names; loaded at the first call."""
    global _library
    if _library is None:
        _library = Library(os.environ.get("TRIKV_LIBRARY") or "libtrikv.so.0")
    return _library
