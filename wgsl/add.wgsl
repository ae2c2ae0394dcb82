// add: sum = x + y.
//   x, y, sum  (size)
// An invocation computes one element.

struct Params {
  groups: u32,
  size: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> sum: array<f32>;

//@include elements

fn element(i: u32) {
  if (i < p.size) {
    sum[i] = x[i] + y[i];
  }
}
