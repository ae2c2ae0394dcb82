// attention: y = softmax(q kᵀ · scale) v per query and head, over the positions that the query sees (all if
// window is the largest number).
//   q       (batch · length, heads · dim)
//   keys    (batch, capacity, kv_heads · dim), or (batch, kv_heads, capacity) blocks of dim elements (BY_HEAD)
//   values  as the keys
//   y       (batch · length, heads · dim)
// A workgroup computes 256 columns of one query and head, 64 positions at a time (online softmax).

struct Params {
  groups: u32,
  length: u32,
  capacity: u32,
  heads: u32,
  kv_heads: u32,
  dim: u32,
  past: u32,
  window: u32,
  slabs: u32,
  scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> keys: array<u32>;
@group(0) @binding(3) var<storage, read> values: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

//@include cache

override BY_HEAD: u32 = 0u;

const LOWEST = -3.4e38;
var<workgroup> scores: array<f32, 64>;
var<workgroup> weights: array<f32, 64>;

// e^x for x <= 0; below −100 it is 0 in f32. max() may take the number beside a NaN.
fn exponential(x: f32) -> f32 {
  return exp(select(x, -100.0, x < -100.0));
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
  let slab = group % p.slabs * 256u;
  let head = group / p.slabs % p.heads;
  let row = group / p.slabs / p.heads;
  let everything = p.window == 0xffffffffu;
  let position = p.past + select(row % p.length, p.length - 1u, everything);
  let first = select(0u, position + 1u - p.window, p.window > 0u && position >= p.window);
  let words = block_words(p.dim);
  let stride = select(p.kv_heads * words, words, BY_HEAD == 1u);
  let head_stride = select(words, p.capacity * words, BY_HEAD == 1u);
  let kv_head = head / (p.heads / p.kv_heads);
  let cache = row / p.length * p.capacity * p.kv_heads * words + kv_head * head_stride;
  let query = (row * p.heads + head) * p.dim;
  var largest = LOWEST;
  var total = 0.0;
  var sums = vec4f();
  for (var start = first; start <= position; start += 64u) {
    var score = LOWEST;
    if (start + t <= position) {
      score = 0.0;
      let block = cache + (start + t) * stride;
      for (var i = 0u; i < p.dim; i++) {
        score = fma(q[query + i], element_of(keys[block + word_of(i)], i, keys[block]), score);
      }
      score *= p.scale;
    }
    scores[t] = score;
    workgroupBarrier();
    var bound = largest;
    let seen = min(64u, position + 1u - start);
    for (var i = 0u; i < seen; i++) {
      bound = max(bound, scores[i]);
    }
    weights[t] = exponential(score - bound);
    workgroupBarrier();
    let kept = exponential(largest - bound);
    total *= kept;
    sums *= kept;
    for (var i = 0u; i < seen; i++) {
      total += weights[i];
    }
    for (var j = 0u; j < 4u; j++) {
      let column = slab + j * 64u + t;
      if (column < p.dim) {
        for (var i = 0u; i < seen; i++) {
          let block = cache + (start + i) * stride;
          let value = element_of(values[block + word_of(column)], column, values[block]);
          sums[j] = fma(weights[i], value, sums[j]);
        }
      }
    }
    largest = bound;
    workgroupBarrier();
  }
  for (var j = 0u; j < 4u; j++) {
    let column = slab + j * 64u + t;
    if (column < p.dim) {
      y[query + column] = sums[j] / total;
    }
  }
}
