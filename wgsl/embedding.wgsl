// embedding: y (rows, k) = row ids[i] of a table (n, k) in panels, bit for bit; only ids of this run of panels.
//   ids    (rows)
//   w      [panel][k][8]  the table, `panels` panels from `panel`
//   y      (rows, k)      bits of f32
// An invocation copies one element.

struct Params {
  groups: u32,
  rows: u32,
  k: u32,
  panel: u32,
  panels: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> w: array<vec4u>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

//@include panel
//@include elements

fn element(i: u32) {
  if (i >= p.rows * p.k) {
    return;
  }
  let id = ids[i / p.k];
  if (id / 8u < p.panel || id / 8u >= p.panel + p.panels) {
    return;
  }
  y[i] = column_bits(id / 8u - p.panel, i % p.k, id / 4u % 2u)[id % 4u];
}
