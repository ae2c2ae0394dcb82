// embedding: y (rows, k) = row ids[i] of a table (n, k) in panels, bit for bit; only ids of this run of panels.
//   ids    (rows)
//   table  [panel][k][8]  `panels` panels from `panel`, in f32 or bf16 (two to a word)
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
@group(0) @binding(2) var<storage, read> table: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

override BF16: bool = false;

//@include elements

fn element(i: u32) {
  if (i >= p.rows * p.k) {
    return;
  }
  let id = ids[i / p.k];
  if (id / 8u < p.panel || id / 8u >= p.panel + p.panels) {
    return;
  }
  let row = (id / 8u - p.panel) * p.k + i % p.k;
  let column = id % 8u;
  if (BF16) {
    let word = table[row * 4u + column % 4u];
    y[i] = select(word << 16u, word & 0xffff0000u, column >= 4u);
  } else {
    y[i] = table[row * 8u + column];
  }
}
