// silu_mul: y = gate / (1 + e^−gate) ∘ up.
//   gate, up, y  (size)
// An invocation computes one element.

struct Params {
  groups: u32,
  size: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read> up: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

//@include elements

fn element(i: u32) {
  if (i >= p.size) {
    return;
  }
  // Of |gate|, so that the exponential is never infinite.
  let e = exp(-abs(gate[i]));
  y[i] = gate[i] * select(e, 1.0, gate[i] >= 0.0) / (1.0 + e) * up[i];
}
