#!/usr/bin/env python3
"""Writes tests/vectors/gguf: what the PyPI packages gguf 0.19 and numpy make of ggml's block formats.

    pip install gguf==0.19.0 numpy && python scripts/make_gguf_vectors.py

tiny.gguf     version 3, alignment 64: every metadata type, one tensor of each readable type (quantised ones: three blocks
              of seeded random bytes) and one of a type that is not readable
tiny.json     what it holds: metadata, and for each tensor its row-major shape and values (little-endian float32, hex)
"""

import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

FOLDER = Path(__file__).parent.parent / "tests" / "vectors" / "gguf"
# Where each format keeps its 16-bit floats: random bytes there would be NaN too often.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
SCALES = np.array([0.0371, -1.75, 6e-6], dtype=np.float16)


def blocks_of(name: str, rng: np.random.Generator) -> np.ndarray:
    """Three random blocks: a positive, a negative and a subnormal scale."""
    _, width = GGML_QUANT_SIZES[Type[name]]
    blocks = rng.integers(0, 256, (3, width), dtype=np.uint8)
    for place, at in enumerate(HALVES[name]):
        blocks[:, at : at + 2] = np.roll(SCALES, place).view(np.uint8).reshape(3, 2)
    return blocks


def write_tiny(rng: np.random.Generator) -> None:
    made = {name: blocks_of(name, rng) for name in HALVES}
    path = FOLDER / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    scalars = {
        "u8": (200, Value.UINT8), "i8": (-100, Value.INT8), "u16": (60000, Value.UINT16), "i16": (-30000, Value.INT16),
        "u32": (4000000000, Value.UINT32), "i32": (-2000000000, Value.INT32), "f32": (0.5, Value.FLOAT32),
        "bool": (True, Value.BOOL), "text": ("grün\n\u0120\U0001f600", Value.STRING), "u64": (2**53 - 1, Value.UINT64),
        "big": (2**64 - 1, Value.UINT64), "i64": (-(2**63), Value.INT64), "f64": (0.1, Value.FLOAT64),
    }
    for name, (value, kind) in scalars.items():
        writer.add_key_value(f"test.{name}", value, kind)
    writer.add_array("test.strings", ["a", "", "ü"])
    writer.add_array("test.numbers", [3, 1, 2])
    tensors = {}
    plain = rng.standard_normal((3, 5)).astype(np.float32)
    for name, array in {"F32": plain, "F16": plain.astype(np.float16)}.items():
        writer.add_tensor(name, array)
        tensors[name] = {"shape": [3, 5], "values": array.astype("<f4").tobytes().hex()}
    bf16 = (plain.view(np.uint32) >> 16).astype(np.uint16)
    writer.add_tensor("BF16", bf16.view(np.uint8), raw_dtype=Type.BF16)
    tensors["BF16"] = {"shape": [3, 5], "values": (bf16.astype(np.uint32) << 16).astype("<u4").tobytes().hex()}
    for name, blocks in made.items():
        writer.add_tensor(name, blocks, raw_dtype=Type[name])
        values = dequantize(blocks, Type[name])
        tensors[name] = {"shape": list(values.shape), "values": values.astype("<f4").tobytes().hex()}
    writer.add_tensor("IQ4_NL", rng.integers(0, 256, (1, 18), dtype=np.uint8), raw_dtype=Type.IQ4_NL)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # 64-bit integers beyond 2^53 are text: JSON readers would round them.
    metadata = {f"test.{n}": str(v) if isinstance(v, int) and abs(v) > 2**53 else v for n, (v, _) in scalars.items()}
    metadata |= {"test.strings": ["a", "", "ü"], "test.numbers": [3, 1, 2]}
    (FOLDER / "tiny.json").write_text(json.dumps({"metadata": metadata, "tensors": tensors}, indent=2) + "\n")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_tiny(np.random.default_rng(20240501))
