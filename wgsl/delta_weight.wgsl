// delta_weight: delta (n, k) = scaling · B (n, r) A (r, k), or delta += that, over a run of ranks.
//   a      [panel][k][8]  `ranks` ranks from panel a_panel on; they are the columns of B from rank0 on
//   b      [panel][r][8]  `panels` panels from b_panel
//   delta  (n, k)         rows of `panels` panels from `panel`
// A workgroup computes 32 rows of 32 columns; an invocation 4 rows of 4 columns.

struct Params {
  groups: u32,
  n: u32,
  k: u32,
  r: u32,
  rank0: u32,
  ranks: u32,
  a_panel: u32,
  panel: u32,
  panels: u32,
  b_panel: u32,
  accumulate: u32,
  scaling: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4f>;
@group(0) @binding(2) var<storage, read> b: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> delta: array<f32>;

//@include tile

// Four rows of B at rank j of this run.
fn b_at(panel: u32, j: u32, half: u32) -> vec4f {
  if (panel >= p.panels || j >= p.ranks) {
    return vec4f();
  }
  return b[((p.b_panel + panel) * p.r + p.rank0 + j) * 2u + half];
}

// Ranks 4 · quarter to 4 · quarter + 3 of this run at column k; A is zero in the padding of its last panel.
fn a_at(quarter: u32, k: u32) -> vec4f {
  if (quarter * 4u >= p.ranks || k >= p.k) {
    return vec4f();
  }
  return a[((p.a_panel + quarter / 2u) * p.k + k) * 2u + quarter % 2u];
}

@compute @workgroup_size(8, 8)
fn main(
  @builtin(workgroup_id) id: vec3u,
  @builtin(num_workgroups) count: vec3u,
  @builtin(local_invocation_id) local: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let group = id.y * count.x + id.x;
  if (group >= p.groups) {
    return;
  }
  let tiles = (p.k + 31u) / 32u;
  let panel = group / tiles * 4u;
  let column = group % tiles * 32u;
  for (var start = 0u; start < p.ranks; start += DEPTH) {
    for (var i = t; i < 256u; i += 64u) {
      left[i] = b_at(panel + i % 8u / 2u, start + i / 8u, i % 2u);
    }
    let k = column + t % 8u * 4u;
    let quarter = start / 4u + t / 8u;
    let block = transpose(mat4x4f(a_at(quarter, k), a_at(quarter, k + 1u), a_at(quarter, k + 2u), a_at(quarter, k + 3u)));
    for (var i = 0u; i < 4u; i++) {
      right[(t / 8u * 4u + i) * 8u + t % 8u] = block[i];
    }
    multiply(local, min(DEPTH, p.ranks - start));
  }
  for (var i = 0u; i < 4u; i++) {
    for (var j = 0u; j < 4u; j++) {
      let row = panel * 8u + local.y * 4u + i;
      let n = p.panel * 8u + row;
      let k = column + local.x * 4u + j;
      if (row < p.panels * 8u && n < p.n && k < p.k) {
        let at = n * p.k + k;
        let before = select(0.0, delta[at], p.accumulate == 1u);
        delta[at] = fma(p.scaling, sums[i][j], before);
      }
    }
  }
}
