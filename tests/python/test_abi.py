"""The binding's structs, constants and functions against client/trikv.h, read by a compiler."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import tempfile
import unittest

from service import ROOT

from trikv import ErrorCode, _abi
from trikv.handle import ENTRY, HEADER_BYTES

HEADER = (ROOT / "client" / "trikv.h").read_text()
SHM_HEADER = (ROOT / "proto" / "shm_layout.h").read_text()


def structs_of(text: str) -> dict[str, list[str]]:
    """struct trikv_NAME { ... } of a header -> its fields, in order."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    found = {}
    for name, body in re.findall(r"^struct trikv_(\w+) \{\n(.*?)^\}", text, flags=re.S | re.M):
        declarations = [d.strip() for d in body.split(";") if d.strip()]
        found[name] = [re.search(r"(\w+)(\[\w+\])?$", d).group(1) for d in declarations]
    return found


def ask_compiler(lines: list[str]) -> dict[str, int]:
    """NAME -> value for lines of C that print "NAME VALUE"."""
    with tempfile.TemporaryDirectory() as folder:
        source = folder + "/ask.c"
        with open(source, "w") as f:
            f.write('#include <stdio.h>\n#include "client/trikv.h"\n#include "proto/shm_layout.h"\n'
                    "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
        compiler = os.environ.get("TRIKV_CC", "cc")
        subprocess.run([compiler, "-std=gnu17", "-I", str(ROOT), "-o", folder + "/ask", source],
                       check=True)
        text = subprocess.run([folder + "/ask"], check=True, capture_output=True).stdout.decode()
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def layout_lines(structs: dict[str, list[str]]) -> list[str]:
    lines = []
    for name, names in structs.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct trikv_{name}));')
        for field in names:
            lines.append(f'printf("{name}.{field} %zu\\n", '
                         f"__builtin_offsetof(struct trikv_{name}, {field}));")
            lines.append(f'printf("{name}.{field}.size %zu\\n", '
                         f"sizeof(((struct trikv_{name} *)0)->{field}));")
    return lines


class Layouts(unittest.TestCase):
    def test_every_struct_is_here(self) -> None:
        self.assertEqual(set(structs_of(HEADER)), set(_abi.STRUCTS))

    def test_fields(self) -> None:
        for name, fields in structs_of(HEADER).items():
            with self.subTest(name):
                self.assertEqual(fields, [f[0] for f in _abi.STRUCTS[name]._fields_])

    def test_sizes_and_offsets(self) -> None:
        asked = ask_compiler(layout_lines(structs_of(HEADER)))
        mine = {}
        for name, cls in _abi.STRUCTS.items():
            mine[name] = ctypes.sizeof(cls)
            for field, *_ in cls._fields_:
                mine[f"{name}.{field}"] = getattr(cls, field).offset
                mine[f"{name}.{field}.size"] = getattr(cls, field).size
        self.assertEqual(asked, mine)

    def test_table_entry(self) -> None:
        fields = structs_of(SHM_HEADER)
        wanted = {"table_entry": fields["table_entry"], "table_header": []}
        mine = {"table_entry": ENTRY.itemsize, "table_header": HEADER_BYTES}
        assert ENTRY.fields is not None
        for name in ENTRY.names or ():
            mine[f"table_entry.{name}"] = ENTRY.fields[name][1]
            mine[f"table_entry.{name}.size"] = ENTRY.fields[name][0].itemsize
        self.assertEqual(ask_compiler(layout_lines(wanted)), mine)


class Names(unittest.TestCase):
    def test_errors(self) -> None:
        numbers = dict(re.findall(r"\bTRIKV_E_(\w+) = (\d+)", HEADER))
        self.assertEqual({n: int(v) for n, v in numbers.items()},
                         {e.name: e.value for e in ErrorCode})

    def test_every_function_is_here(self) -> None:
        names = re.findall(r"^TRIKV_API [^;(]*?\btrikv_(\w+)\(", HEADER, flags=re.M)
        self.assertGreater(len(names), 20)
        self.assertEqual(set(names), set(_abi.FUNCTIONS))

    def test_constants(self) -> None:
        self.assertEqual(int(re.search(r"TRIKV_ABI_VERSION (\d+)", HEADER).group(1)),
                         _abi.ABI_VERSION)
        dtypes = dict(re.findall(r"TRIKV_(F32|F16|BF16) = (\d)", HEADER))
        self.assertEqual({n: int(v) for n, v in dtypes.items()},
                         {"F32": _abi.F32, "F16": _abi.F16, "BF16": _abi.BF16})
        kinds = dict(re.findall(r"TRIKV_(STEP_\w+) = (\d)", HEADER))
        self.assertEqual({n: int(v) for n, v in kinds.items()},
                         {n: getattr(_abi, n) for n in kinds})
        self.assertEqual(len(kinds), 3)


class Loading(unittest.TestCase):
    def test_other_abi_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = folder + "/libtrikv.so.0"
            subprocess.run(["cc", "-shared", "-fPIC", "-o", library, "-x", "c", "-"], check=True,
                           input=b"unsigned trikv_abi_version(void) { return 77; }\n")
            with self.assertRaisesRegex(ImportError, "ABI version 77"):
                _abi.Library(library)

    def test_older_library_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = folder + "/libtrikv.so.0"
            subprocess.run(["cc", "-shared", "-fPIC", "-o", library, "-x", "c", "-"], check=True,
                           input=b"int trikv_open(void) { return 0; }\n")
            with self.assertRaisesRegex(ImportError, "older than this package"):
                _abi.Library(library)
