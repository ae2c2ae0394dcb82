// affine_rows: y = factor · scale ∘ x + shift in the rows from `row` on; flags say whether scale (1) and shift (2) count.
//   x             (rows, dim)
//   scale, shift  (dim)
//   y             (rows, dim)
// An invocation computes one element.

struct Params {
  groups: u32,
  row: u32,
  rows: u32,
  dim: u32,
  flags: u32,
  factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read> shift: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

//@include elements

fn element(i: u32) {
  if (i >= p.rows * p.dim) {
    return;
  }
  let column = i % p.dim;
  var value = x[p.row * p.dim + i] * p.factor;
  if ((p.flags & 1u) != 0u) {
    value *= scale[column];
  }
  if ((p.flags & 2u) != 0u) {
    value += shift[column];
  }
  y[p.row * p.dim + i] = value;
}
