// inverse_roots: y = 1 / sqrt(y), 0 for 0.
//   y  (size)
// An invocation computes one element.

struct Params {
  groups: u32,
  size: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

//@include elements

fn element(i: u32) {
  if (i >= p.size) {
    return;
  }
  y[i] = select(1.0 / sqrt(y[i]), 0.0, y[i] == 0.0);
}
