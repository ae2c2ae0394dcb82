// sum_rows: sums (n) += column sums of x (m, n).
//   x     (m, n)
//   sums  (n)
// An invocation adds up one column.

struct Params {
  groups: u32,
  m: u32,
  n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;

//@include elements

fn element(column: u32) {
  if (column >= p.n) {
    return;
  }
  var sum = 0.0;
  for (var row = 0u; row < p.m; row++) {
    sum += x[row * p.n + column];
  }
  sums[column] += sum;
}
