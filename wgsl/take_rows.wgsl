// take_rows: y (m, dim) = the rows `rows` of x (n, dim), bit for bit.
//   x     (n, dim)
//   rows  (m)
//   y     (m, dim)
// An invocation copies one element.

struct Params {
  groups: u32,
  m: u32,
  dim: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read> rows: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

//@include elements

fn element(i: u32) {
  if (i < p.m * p.dim) {
    y[i] = x[rows[i / p.dim] * p.dim + i % p.dim];
  }
}
