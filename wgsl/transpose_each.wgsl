// transpose_each: y (batch, columns, rows) = x (batch, rows, columns) with its matrices turned.
// An invocation writes one element.

struct Params {
  groups: u32,
  size: u32,
  rows: u32,
  columns: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

//@include elements

fn element(i: u32) {
  if (i >= p.size) {
    return;
  }
  let row = i % p.rows;
  let column = i / p.rows % p.columns;
  let first = i - i % (p.rows * p.columns);
  y[i] = x[first + row * p.columns + column];
}
