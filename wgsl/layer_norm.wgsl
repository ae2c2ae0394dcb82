// layer_norm: y (rows, dim) = (x − mean) / sqrt(variance + eps) ∘ gain + bias per row.
//   x           (rows, dim)
//   gain, bias  (dim)
//   y           (rows, dim)
// A workgroup normalises one row.

struct Params {
  groups: u32,
  dim: u32,
  eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

var<workgroup> partial: array<f32, 64>;

// The sum of what all invocations bring.
fn total(t: u32, value: f32) -> f32 {
  workgroupBarrier();
  partial[t] = value;
  workgroupBarrier();
  for (var step = 32u; step > 0u; step >>= 1u) {
    if (t < step) {
      partial[t] += partial[t + step];
    }
    workgroupBarrier();
  }
  return partial[0];
}

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
  var sum = 0.0;
  for (var i = t; i < p.dim; i += 64u) {
    sum += x[row * p.dim + i];
  }
  let mean = total(t, sum) / f32(p.dim);
  var squares = 0.0;
  for (var i = t; i < p.dim; i += 64u) {
    let value = x[row * p.dim + i] - mean;
    squares = fma(value, value, squares);
  }
  let inverse = 1.0 / sqrt(total(t, squares) / f32(p.dim) + p.eps);
  for (var i = t; i < p.dim; i += 64u) {
    y[row * p.dim + i] = (x[row * p.dim + i] - mean) * inverse * gain[i] + bias[i];
  }
}
