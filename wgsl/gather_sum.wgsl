// gather_sum: row i of y = Σ weight · x[row] over the terms offsets[i] to offsets[i + 1].
//   x      (rows, dim)
//   lists  [count + 1 offsets][terms rows][terms weights, as bits]
//   y      (count, dim)
// An invocation computes one element.

struct Params {
  groups: u32,
  count: u32,
  dim: u32,
  terms: u32,
  weighted: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> lists: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

//@include elements

fn element(i: u32) {
  if (i >= p.count * p.dim) {
    return;
  }
  let row = i / p.dim;
  var sum = 0.0;
  for (var j = lists[row]; j < lists[row + 1u]; j++) {
    let at = p.count + 1u + j;
    let value = x[lists[at] * p.dim + i % p.dim];
    sum += select(value, value * bitcast<f32>(lists[at + p.terms * p.weighted]), p.weighted == 1u);
  }
  y[i] = sum;
}
