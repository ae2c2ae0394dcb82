// cache: included by kernels of caches, whose blocks per position and head rust-kernels/src/cache.rs describes: with dim
// rounded up to 8, f16 is two halves per word, int8 an f32 scale and four integers per word.

override CACHE: u32 = 0u;
const F16 = 2u;
const INT8 = 3u;
const INFINITE = 0x7f800000u;

// Words of a block.
fn block_words(dim: u32) -> u32 {
  let groups = (dim + 7u) / 8u;
  return select(select(dim, 4u * groups, CACHE == F16), 1u + 2u * groups, CACHE == INT8);
}

// Where element i of a block is.
fn word_of(i: u32) -> u32 {
  return select(select(i, i / 2u, CACHE == F16), 1u + i / 4u, CACHE == INT8);
}

// Element i, which is in this word.
fn element_of(word: u32, i: u32, scale: u32) -> f32 {
  if (CACHE == F16) {
    return widen_half((word >> (i % 2u * 16u)) & 0xffffu);
  }
  if (CACHE == INT8) {
    return f32(extractBits(bitcast<i32>(word), i % 4u * 8u, 8u)) * bitcast<f32>(scale);
  }
  return bitcast<f32>(word);
}

// f16 as f32, made of bits and a power of two, so that no device flushes a subnormal.
fn widen_half(bits: u32) -> f32 {
  let magnitude = bits & 0x7fffu;
  let normal = (magnitude << 13u) + (112u << 23u);
  let subnormal = bitcast<u32>(f32(magnitude) * 0x1p-24f);
  let finite = select(normal, subnormal, magnitude < 1024u);
  let all = select(finite, INFINITE | (magnitude << 13u), magnitude >= 0x7c00u);
  return bitcast<f32>(all | ((bits & 0x8000u) << 16u));
}
