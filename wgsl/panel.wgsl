// panel: included by kernels that read a weight W of depth p.k in panels of 8 columns, in the form FORM.
// What the bytes of each form mean is in rust-kernels/src/blocks.rs; in words of a vec4u:
//   f32       [k] two vec4u: columns 0 to 3, 4 to 7
//   bf16 f16  [k] one vec4u, whose word i holds column i (low half) and column i + 4 (high half)
//   others    8 f32 factors (16 for nf4), then [k] bytes of f8, or blocks
// Every number is made of bits or of powers of two, so that no device rounds or flushes it otherwise than the others.

override FORM: u32 = 0u;
const BF16 = 1u;
const F16 = 2u;
const INT4 = 4u;
const INT4_MIN = 5u;
const NF4 = 6u;
const F8 = 7u;

// Columns 4 · half to 4 · half + 3 of a panel at depth k.
fn columns(panel: u32, k: u32, half: u32) -> vec4f {
  return bitcast<vec4f>(column_bits(panel, k, half));
}

// The same as bits of f32.
fn column_bits(panel: u32, k: u32, half: u32) -> vec4u {
  if (FORM == 0u) {
    return w[(panel * p.k + k) * 2u + half];
  }
  if (FORM == BF16 || FORM == F16) {
    let words = w[panel * p.k + k];
    if (FORM == BF16) {
      return select(words << vec4u(16u), words & vec4u(0xffff0000u), half == 1u);
    }
    return widen_f16(words, half);
  }
  if (FORM == F8) {
    return floats_of_8_bits(panel, k, half);
  }
  if (FORM == NF4) {
    return quantiles(panel, k, half);
  }
  return integers(panel, k, half);
}

// The low or high halves as f16.
fn widen_f16(words: vec4u, half: u32) -> vec4u {
  let bits = words >> vec4u(16u * half);
  let magnitude = bits & vec4u(0x7fffu);
  let normal = (magnitude << vec4u(13u)) + vec4u(112u << 23u);
  let subnormal = bitcast<vec4u>(vec4f(magnitude) * 0x1p-24f);
  let sign = (bits & vec4u(0x8000u)) << vec4u(16u);
  return select(normal, subnormal, magnitude < vec4u(1024u)) | sign;
}

fn word(i: u32) -> u32 {
  return w[i / 4u][i % 4u];
}

fn words(i: u32) -> vec4u {
  return vec4u(word(i), word(i + 1u), word(i + 2u), word(i + 3u));
}

// e4m3 times a factor per column.
fn floats_of_8_bits(panel: u32, k: u32, half: u32) -> vec4u {
  let start = panel * (8u + 2u * p.k);
  let bits = vec4u(word(start + 8u + 2u * k + half)) >> vec4u(0u, 8u, 16u, 24u);
  let magnitude = bits & vec4u(0x7fu);
  let normal = (magnitude << vec4u(20u)) + vec4u(120u << 23u);
  let subnormal = bitcast<vec4u>(vec4f(magnitude) * 0x1p-9f);
  let sign = (bits & vec4u(0x80u)) << vec4u(24u);
  let value = select(normal, subnormal, magnitude < vec4u(8u)) | sign;
  return bitcast<vec4u>(bitcast<vec4f>(value) * bitcast<vec4f>(words(start + 4u * half)));
}

// (q - zero point) · scale + minimum. A block of 32 k is 8 or 16 vec4u of integers, then column sums, scales, minima.
fn integers(panel: u32, k: u32, half: u32) -> vec4u {
  let nibbles = FORM == INT4 || FORM == INT4_MIN;
  let scales_at = select(17u, 8u, nibbles);
  let size = scales_at + select(1u, 2u, FORM == INT4_MIN);
  let start = panel * (2u + (p.k + 31u) / 32u * size);
  let factor = bitcast<vec4f>(w[start + half]) * 0x1p-56f;
  let block = start + 2u + k / 32u * size;
  let depth = k % 32u;
  let bits = w[block + depth / select(4u, 8u, nibbles) * 2u + half];
  var q: vec4i;
  if (nibbles) {
    q = vec4i((bits >> vec4u(depth % 4u * 8u + depth / 4u % 2u * 4u)) & vec4u(15u));
  } else {
    q = bitcast<vec4i>(bits << vec4u(24u - depth % 4u * 8u)) >> vec4u(24u);
  }
  if (FORM == INT4) {
    q -= vec4i(8);
  }
  var value = vec4f(q) * (bitcast<vec4f>(widen_f16(w[block + scales_at], half)) * factor);
  if (FORM == INT4_MIN) {
    value += bitcast<vec4f>(widen_f16(w[block + scales_at + 1u], half)) * factor;
  }
  // 0 times a negative scale is no -0.
  return select(bitcast<vec4u>(value), vec4u(), value == vec4f());
}

// QLoRA's 16 quantiles.
fn quantile(index: u32) -> f32 {
  var levels = array<f32, 16>(
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
  );
  return levels[index];
}

// A quantile times the largest magnitude of the block, itself a step between the column's least and largest one.
fn quantiles(panel: u32, k: u32, half: u32) -> vec4u {
  let start = panel * (16u + (p.k + 63u) / 64u * 66u);
  let block = start + 16u + k / 64u * 66u;
  let depth = k % 32u;
  let bits = words(block + k / 32u % 2u * 32u + depth / 8u * 8u + 4u * half);
  let q = (bits >> vec4u(depth % 4u * 8u + depth / 4u % 2u * 4u)) & vec4u(15u);
  let code = (vec4u(word(block + 64u + half)) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(255u);
  let least = bitcast<vec4f>(words(start + 4u * half));
  let step = bitcast<vec4f>(words(start + 8u + 4u * half));
  let levels = vec4f(quantile(q.x), quantile(q.y), quantile(q.z), quantile(q.w));
  return bitcast<vec4u>(levels * (vec4f(code) * step + least));
}
