#!/usr/bin/env python3
"""Writes tests/vectors/safetensors: what the reference implementation (PyPI safetensors 0.8.0) accepts and writes.

    pip install safetensors==0.8.0 numpy && python scripts/make_safetensors_vectors.py

headers.json  [{"name", "header": base64, "data": bytes of data, "accepted": the reference's verdict}]: crafted files,
              each a header of the right length before so many zero bytes
written.json  [{"metadata", "file": hex}]: whole files as the reference writes them; one metadata key at most, because its
              order of several is random
"""

import base64
import json
import struct
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

FOLDER = Path(__file__).parent.parent / "tests" / "vectors" / "safetensors"


def entry(dtype: str = '"F32"', shape: str = "[1]", offsets: str = "[0,4]", extra: str = "") -> str:
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{extra}}}'


def one(**fields: str) -> str:
    return f'{{"w":{entry(**fields)}}}'


def two(first: str, second: str) -> str:
    return f'{{"a":{first},"b":{second}}}'


HEADERS: list[tuple[str, str | bytes, int]] = [
    ("one tensor", one(), 4),
    ("no tensors", "{}", 0),
    ("no tensors but data", "{}", 1),
    ("truncated data", one(), 3),
    ("a trailing byte", one(), 5),
    ("empty header", "", 0),
    ("an array as header", "[]", 0),
    ("null as header", "null", 0),
    ("two values", "{}{}", 0),
    ("a byte order mark", "\ufeff{}", 0),
    ("a NUL after the brace", "{}\0", 0),
    ("white space around the object", " \t\r\n{} \n", 0),
    ("invalid UTF-8", b'{"\xff":1}', 0),
    ("an overlong UTF-8 sequence", b'{"\xc0\xaf":1}', 0),
    ("an encoded surrogate", b'{"\xed\xa0\x80":1}', 0),
    ("a comment", "{/**/}", 0),
    ("a trailing comma", '{"w":' + entry() + ",}", 4),
    ("NaN in an ignored field", one(extra=',"x":NaN'), 4),
    ("1e400 in an ignored field", one(extra=',"x":1e400'), 4),
    ("2^64 in an ignored field", one(extra=',"x":18446744073709551616'), 4),
    ("an unknown field", one(extra=',"x":[1.5,{"y":null}]'), 4),
    ("an ignored field 120 deep", one(extra=',"x":' + "[" * 120 + "]" * 120), 4),
    ("an ignored field 125 deep", one(extra=',"x":' + "[" * 125 + "]" * 125), 4),
    ("an ignored field 126 deep", one(extra=',"x":' + "[" * 126 + "]" * 126), 4),
    ("an ignored field 1000 deep", one(extra=',"x":' + "[" * 1000 + "]" * 1000), 4),
    ("metadata", '{"__metadata__":{"format":"pt"}}', 0),
    ("metadata null", '{"__metadata__":null}', 0),
    ("metadata a string", '{"__metadata__":"pt"}', 0),
    ("metadata a tensor", '{"__metadata__":' + entry() + "}", 4),
    ("metadata a number inside", '{"__metadata__":{"a":1}}', 0),
    ("metadata null inside", '{"__metadata__":{"a":null}}', 0),
    ("metadata twice", '{"__metadata__":{},"__metadata__":{}}', 0),
    ("metadata with a key twice", '{"__metadata__":{"a":"1","a":"2"}}', 0),
    ("a name twice", '{"w":' + entry() + ',"w":' + entry() + "}", 4),
    ("a field twice", one(extra=',"dtype":"F32"'), 4),
    ("an entry as an array", '{"w":["F32",[1],[0,4]]}', 4),
    ("an entry null", '{"w":null}', 0),
    ("an entry a number", '{"w":4}', 0),
    ("an entry without dtype", '{"w":{"shape":[1],"data_offsets":[0,4]}}', 4),
    ("an entry without shape", '{"w":{"dtype":"F32","data_offsets":[0,4]}}', 4),
    ("an entry without offsets", '{"w":{"dtype":"F32","shape":[1]}}', 4),
    ("a lower-case dtype", one(dtype='"f32"'), 4),
    ("an unknown dtype", one(dtype='"F33"'), 4),
    ("__proto__ as dtype", one(dtype='"__proto__"'), 4),
    ("a dtype that is a number", one(dtype="32"), 4),
    ("a shape that is a number", one(shape="1"), 4),
    ("a shape that is null", one(shape="null"), 4),
    ("a dimension 1e0", one(shape="[1e0]"), 4),
    ("a dimension 1.0", one(shape="[1.0]"), 4),
    ("a dimension 1.5", one(shape="[1.5]"), 4),
    ("a dimension -0", one(shape="[-0]", offsets="[0,0]"), 0),
    ("a dimension -1", one(shape="[-1]"), 4),
    ("dimensions -1, -1", one(shape="[-1,-1]"), 4),
    ("a dimension 01", one(shape="[01]"), 4),
    ("a dimension +1", one(shape="[+1]"), 4),
    ('a dimension "1"', one(shape='["1"]'), 4),
    ("a dimension true", one(shape="[true]"), 4),
    ("a scalar", one(shape="[]"), 4),
    ("a dimension 0", one(shape="[3,0]", offsets="[0,0]"), 0),
    ("a dimension 2^53 + 1 beside 0", one(shape="[0,9007199254740993]", offsets="[0,0]"), 0),
    ("a dimension 2^64 - 1 beside 0", one(shape="[18446744073709551615,0]", offsets="[0,0]"), 0),
    ("a dimension 2^64 beside 0", one(shape="[0,18446744073709551616]", offsets="[0,0]"), 0),
    ("dimensions 2^63, 2, 0", one(shape="[9223372036854775808,2,0]", offsets="[0,0]"), 0),
    ("dimensions 0, 2^63, 2", one(shape="[0,9223372036854775808,2]", offsets="[0,0]"), 0),
    ("dimensions 2^32, 2^32", one(shape="[4294967296,4294967296]", offsets="[0,0]"), 0),
    ("a product that overflows with the dtype", one(shape="[4611686018427387904]", offsets="[0,0]"), 0),
    ("64 dimensions", one(shape="[" + ",".join(["1"] * 64) + "]"), 4),
    ("65 dimensions", one(shape="[" + ",".join(["1"] * 65) + "]"), 4),
    ("one offset", one(offsets="[0]"), 4),
    ("three offsets", one(offsets="[0,4,4]"), 4),
    ("offsets swapped", one(offsets="[4,0]"), 4),
    ("offsets as an object", one(offsets='{"begin":0,"end":4}'), 4),
    ("an offset 4.0", one(offsets="[0,4.0]"), 4),
    ("an offset -0", one(offsets="[-0,4]"), 4),
    ("an offset of 2^64 - 1", one(offsets="[0,18446744073709551615]"), 4),
    ("too many bytes for the shape", one(offsets="[0,8]"), 8),
    ("too few bytes for the shape", one(shape="[2]"), 4),
    ("a hole at the start", one(offsets="[4,8]"), 8),
    ("a hole between", two(entry(), entry(offsets="[8,12]")), 12),
    ("an overlap", two(entry(), entry(offsets="[2,6]")), 6),
    ("the same bytes twice", two(entry(), entry()), 4),
    ("tensors out of order", two(entry(offsets="[4,8]"), entry()), 8),
    ("two empty tensors at one offset", two(entry(shape="[0]", offsets="[0,0]"), entry(shape="[0]", offsets="[0,0]")), 0),
    ("an empty tensor at the end of another", two(entry(shape="[0]", offsets="[4,4]"), entry()), 4),
    ("an empty tensor inside another", two(entry(shape="[0]", offsets="[2,2]"), entry()), 4),
    ("an odd number of F4", one(dtype='"F4"', shape="[3]", offsets="[0,2]"), 2),
    ("an even number of F4", one(dtype='"F4"', shape="[4]", offsets="[0,2]"), 2),
    ("four of F6_E2M3", one(dtype='"F6_E2M3"', shape="[4]", offsets="[0,3]"), 3),
    ("an empty name", '{"":' + entry() + "}", 4),
    ("the name __proto__", '{"__proto__":' + entry() + "}", 4),
    ("names that look like integers", '{"10":' + entry(offsets="[4,8]") + ',"2":' + entry() + "}", 8),
    ("a name with an escaped pair of surrogates", '{"\\ud83d\\ude00":' + entry() + "}", 4),
    ("a name with a lone surrogate", '{"\\ud800":' + entry() + "}", 4),
    ("a name with a lone low surrogate", '{"\\udc00x":' + entry() + "}", 4),
    ("a name with a control character", '{"a\nb":' + entry() + "}", 4),
    ("a name with an escaped NUL", '{"a\\u0000b":' + entry() + "}", 4),
    ("an unknown escape", '{"\\x41":' + entry() + "}", 4),
]
HEADERS += [
    (f"dtype {name}", one(dtype=f'"{name}"', shape="[8]", offsets=f"[0,{bits}]"), bits)
    for name, bits in {
        "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
        "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
    }.items()
]


def verdict(header: bytes, data: int) -> bool:
    try:
        deserialize(struct.pack("<Q", len(header)) + header + bytes(data))
        return True
    except SafetensorError:
        return False


def write_headers() -> None:
    rows = []
    for name, text, data in HEADERS:
        header = text if isinstance(text, bytes) else text.encode()
        text = base64.b64encode(header).decode()
        rows.append({"name": name, "header": text, "data": data, "accepted": verdict(header, data)})
    (FOLDER / "headers.json").write_text(json.dumps(rows, indent=2) + "\n")


def write_files() -> None:
    rng = np.random.default_rng(7)
    dtypes = ["bool", "uint8", "int8", "int16", "uint16", "float16", "int32", "uint32", "float32", "complex64", "float64", "int64", "uint64"]
    files = []
    for count, metadata in [(0, None), (1, {"format": "pt"}), (5, None), (13, {'quote " \\ /': "é\u2028\u001f\u007f\U0001f600\n\t"}), (30, None)]:
        names = [f"{'layer.' * (i % 3)}{chr(0x61 + i % 26)}{'é' * (i % 2)}{i}" for i in range(count)]
        if count == 5:
            names = ["", "\uffff", "\U00010000", "__proto__", 'tab\t"quote"']
        tensors = {}
        for i, name in enumerate(names):
            shape = tuple(rng.integers(0, 4, rng.integers(0, 4)))
            dtype = "uint8" if count == 5 else dtypes[(5 * i) % 13]
            tensors[name] = rng.integers(0, 2, shape).astype(dtype)
        files.append({"metadata": metadata, "file": bytes(save(tensors, metadata)).hex()})
    (FOLDER / "written.json").write_text(json.dumps(files, indent=2) + "\n")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_headers()
    write_files()
