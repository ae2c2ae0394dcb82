// linear: y (m, n) = x (m, k) Wᵀ + bias (n) + scaling · h (m, r) Bᵀ, or y += that, for many rows.
// LoRA's expand is the tail of the base product: the depth k goes on for r more.
//   x     (rows, k)            from row x_row
//   w     [panel][k][8]        from panel w_panel
//   bias  (n)                  if has_bias
//   h     (parts, m, r)        partial sums of x Aᵀ
//   b     [panel][r][8]        from panel b_panel
//   y     (rows, n)            from row y_row, the columns of `panels` panels from `panel`
// A workgroup computes 32 rows of 4 panels; an invocation 4 rows of 4 columns.

struct Params {
  groups: u32,
  m: u32,
  n: u32,
  k: u32,
  r: u32,
  parts: u32,
  panel: u32,
  panels: u32,
  w_panel: u32,
  b_panel: u32,
  x_row: u32,
  y_row: u32,
  has_bias: u32,
  accumulate: u32,
  scaling: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<vec4u>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> h: array<f32>;
@group(0) @binding(5) var<storage, read> b: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

//@include panel
//@include tile
//@include linear_parts

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
  let tiles = (p.panels + 3u) / 4u;
  let row = group / tiles * 32u;
  let panel = group % tiles * 4u;
  for (var start = 0u; start < p.k; start += DEPTH) {
    for (var i = t; i < 256u; i += 64u) {
      let k = start + i % 32u;
      let first = row + i / 32u * 4u;
      left[i % 32u * 8u + i / 32u] = vec4f(x_at(first, k), x_at(first + 1u, k), x_at(first + 2u, k), x_at(first + 3u, k));
      right[i] = w_at(panel + i % 8u / 2u, start + i / 8u, i % 2u);
    }
    multiply(local, min(DEPTH, p.k - start));
  }
  for (var start = 0u; start < p.r; start += DEPTH) {
    for (var i = t; i < 256u; i += 64u) {
      let j = start + i % 32u;
      let first = row + i / 32u * 4u;
      left[i % 32u * 8u + i / 32u] = vec4f(h_at(first, j), h_at(first + 1u, j), h_at(first + 2u, j), h_at(first + 3u, j));
      right[i] = b_at(panel + i % 8u / 2u, start + i / 8u, i % 2u);
    }
    multiply(local, min(DEPTH, p.r - start));
  }
  for (var i = 0u; i < 4u; i++) {
    let m = row + local.y * 4u + i;
    for (var j = 0u; j < 4u && m < p.m; j++) {
      put(m, panel * 8u + local.x * 4u + j, sums[i][j]);
    }
  }
}
