// rms_norm: y (rows, dim) = x / sqrt(mean(x²) + eps) ∘ gain (dim) per row.
//   x     (rows, dim)
//   gain  (dim)
//   y     (rows, dim)
// A workgroup normalises one row.

struct Params {
  groups: u32,
  dim: u32,
  eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

var<workgroup> partial: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) id: vec3u,
  @builtin(num_workgroups) count: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let row = id.y * count.x + id.x;
  if (row >= p.groups) {
    return;
  }
  var squares = 0.0;
  for (var i = t; i < p.dim; i += 64u) {
    let value = x[row * p.dim + i];
    squares = fma(value, value, squares);
  }
  partial[t] = squares;
  workgroupBarrier();
  for (var step = 32u; step > 0u; step >>= 1u) {
    if (t < step) {
      partial[t] += partial[t + step];
    }
    workgroupBarrier();
  }
  let inverse = 1.0 / sqrt(partial[0] / f32(p.dim) + p.eps);
  for (var i = t; i < p.dim; i += 64u) {
    y[row * p.dim + i] = x[row * p.dim + i] * inverse * gain[i];
  }
}
