// append_heads: cache (batch, heads, capacity) at positions past … past + length = blocks of x, rounded to nearest even.
//   x      (batch · length, heads · dim)
//   cache  (batch, heads, capacity) blocks of f32, f16 or int8
// A workgroup rounds one block.

struct Params {
  groups: u32,
  length: u32,
  capacity: u32,
  heads: u32,
  dim: u32,
  past: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> cache: array<u32>;

//@include cache

var<workgroup> magnitudes: array<u32, 64>;

// The bits of element i of the block that begins at `start`; those that pad it are 0.
fn bits_at(start: u32, i: u32) -> u32 {
  if (i >= p.dim) {
    return 0u;
  }
  return x[start + i];
}

// f32 as f16, to nearest even.
fn half_of(bits: u32) -> u32 {
  let magnitude = bits & 0x7fffffffu;
  let odd = (magnitude >> 13u) & 1u;
  let normal = (magnitude + odd + 0xc8000fffu) >> 13u;
  // a multiple of the least half, all of which are exact
  let small = u32(round(bitcast<f32>(min(magnitude, 0x38800000u)) * 0x1p24f));
  let finite = select(normal, small, magnitude < 0x38800000u);
  let special = 0x7c00u | select(0u, 0x200u, magnitude > INFINITE);
  return select(finite, special, magnitude >= 0x477ff000u) | ((bits >> 16u) & 0x8000u);
}

// x / scale to nearest even, as a byte.
fn integer_of(bits: u32, scale: f32) -> u32 {
  return bitcast<u32>(i32(clamp(round(bitcast<f32>(bits) / scale), -127.0, 127.0))) & 0xffu;
}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) id: vec3u,
  @builtin(num_workgroups) count: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let group = id.y * count.x + id.x;
  if (group >= p.groups) {
    return;
  }
  let start = group * p.dim;
  var largest = 0u;
  for (var i = t; i < p.dim; i += 64u) {
    largest = max(largest, x[start + i] & 0x7fffffffu);
  }
  magnitudes[t] = largest;
  workgroupBarrier();
  for (var i = 0u; i < 64u; i++) {
    largest = max(largest, magnitudes[i]);
  }
  let row = group / p.heads;
  let position = (row / p.length * p.heads + group % p.heads) * p.capacity + p.past + row % p.length;
  let block = position * block_words(p.dim);
  if (CACHE == 0u) {
    for (var i = t; i < p.dim; i += 64u) {
      cache[block + i] = x[start + i];
    }
    return;
  }
  if (CACHE == F16) {
    for (var i = 2u * t; i < p.dim; i += 128u) {
      cache[block + i / 2u] = half_of(bits_at(start, i)) | (half_of(bits_at(start, i + 1u)) << 16u);
    }
    return;
  }
  // Of a scale of 0 all elements are; one that is not finite makes the block NaN.
  let scale = bitcast<f32>(largest) / 127.0;
  let rounds = largest < INFINITE && scale > 0.0;
  if (t == 0u) {
    cache[block] = select(bitcast<u32>(scale), 0x7fc00000u, largest >= INFINITE);
  }
  for (var i = 4u * t; i < p.dim; i += 256u) {
    var word = 0u;
    for (var j = 0u; j < 4u && rounds; j++) {
      word |= integer_of(bits_at(start, i + j), scale) << (8u * j);
    }
    cache[block + 1u + i / 4u] = word;
  }
}
