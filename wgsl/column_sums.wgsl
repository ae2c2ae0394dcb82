// column_sums: sums (dim) += factor · Σ over the rows of x ∘ y, or of x alone.
//   x, y  (rows, dim)
//   sums  (dim)
// An invocation adds up one column.

struct Params {
  groups: u32,
  rows: u32,
  dim: u32,
  multiplies: u32,
  factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> sums: array<f32>;

//@include elements

fn element(column: u32) {
  if (column >= p.dim) {
    return;
  }
  var sum = 0.0;
  for (var row = 0u; row < p.rows; row++) {
    let i = row * p.dim + column;
    sum += select(x[i], x[i] * y[i], p.multiplies == 1u);
  }
  sums[column] += p.factor * sum;
}
