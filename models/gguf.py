"""Read and write GGUF v3 files with numpy alone: F32, F16 and Q8_0 tensors, scalar, string and
array metadata. Only what the reference model needs; a matrix is row-major, its last axis first in
the file's list of dimensions, as ggml wants it."""
import struct
import numpy as np

MAGIC, VERSION = b"GGUF", 3
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8",
           11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
F32, F16, Q8_0 = 0, 1, 8
BLOCK = np.dtype([("d", "<f2"), ("q", "i1", 32)])  # one Q8_0 block: 34 bytes for 32 weights


def quantise(x):
    """Q8_0 blocks along the rows, bit for bit as ggml's reference quantiser makes them."""
    x = np.ascontiguousarray(x, np.float32).reshape(-1, 32)
    d = np.abs(x).max(1) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)
    scaled = (x * inverse[:, None]).astype(np.float64)  # so that adding a half is exact
    blocks = np.empty(len(x), BLOCK)
    blocks["d"] = d
    blocks["q"] = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled)  # half away from zero: roundf
    return blocks


def dequantise(blocks):
    return (blocks["d"].astype(np.float32)[:, None] * blocks["q"]).reshape(-1)


def text(s):
    raw = s if isinstance(s, bytes) else s.encode("utf8")
    return struct.pack("<Q", len(raw)) + raw


def packed(kind, value):
    return text(value) if kind == STRING else np.array(value, SCALARS[kind]).tobytes()


def write(path, metadata, tensors, alignment=32):
    """metadata: (key, type, value) triples, an array's type being (ARRAY, element type);
    tensors: (name, array, F32 | F16 | Q8_0) triples."""
    pad = lambda n: -n % alignment
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, kind, value in metadata:
        if isinstance(kind, tuple):
            head += [text(key), struct.pack("<IIQ", ARRAY, kind[1], len(value))]
            head += [packed(kind[1], item) for item in value]
        else:
            head += [text(key), struct.pack("<I", kind), packed(kind, value)]
    body, offset = [], 0
    for name, array, kind in tensors:
        data = quantise(array) if kind == Q8_0 else array.astype("<f2" if kind == F16 else "<f4")
        raw = data.tobytes()
        shape = array.shape[::-1]
        head += [text(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)]
        body += [raw, bytes(pad(len(raw)))]
        offset += len(raw) + pad(len(raw))
    head = b"".join(head)
    with open(path, "wb") as out:
        out.write(head + bytes(pad(len(head))) + b"".join(body))


class Reader:
    """Metadata as a dict, tensors as float32 arrays."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.data, self.at = f.read(), 0
        if self.data[:4] != MAGIC or self.number("<u4", 4) != VERSION:
            raise ValueError(f"{path} is not a GGUF v{VERSION} file")
        n_tensors, n_metadata = self.number("<u8"), self.number("<u8")
        self.metadata = {self.string().decode("utf8"): self.value(self.number("<u4"))
                         for _ in range(n_metadata)}
        info = [self.tensor_info() for _ in range(n_tensors)]
        start = self.at + -self.at % self.metadata.get("general.alignment", 32)
        self.tensors = {name: self.tensor(shape, kind, start + offset)
                        for name, shape, kind, offset in info}

    def number(self, dtype, at=None):
        self.at = self.at if at is None else at
        value = np.frombuffer(self.data, dtype, 1, self.at)[0].item()
        self.at += np.dtype(dtype).itemsize
        return value

    def string(self):
        n = self.number("<u8")
        self.at += n
        return self.data[self.at - n:self.at]

    def value(self, kind):
        if kind == STRING:
            return self.string().decode("utf8")
        if kind == ARRAY:
            element, n = self.number("<u4"), self.number("<u8")
            return [self.value(element) for _ in range(n)]
        return self.number(SCALARS[kind])

    def tensor_info(self):
        name = self.string().decode("utf8")
        shape = [self.number("<u8") for _ in range(self.number("<u4"))][::-1]
        return name, shape, self.number("<u4"), self.number("<u8")

    def tensor(self, shape, kind, at):
        n = int(np.prod(shape))
        if kind == Q8_0:
            return dequantise(np.frombuffer(self.data, BLOCK, n // 32, at)).reshape(shape)
        if kind not in (F32, F16):
            raise ValueError(f"tensor type {kind} is not supported")
        dtype = "<f4" if kind == F32 else "<f2"
        return np.frombuffer(self.data, dtype, n, at).astype(np.float32).reshape(shape)
