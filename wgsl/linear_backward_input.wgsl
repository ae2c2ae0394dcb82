// linear_backward_input: dx (m, k) = scale · dy (m, n) W, or dx += that; over the rows of W in one run of panels.
//   dy  (rows, n)       from row dy_row
//   w   [panel][k][8]   `panels` panels from w_panel; they are the columns of dy from panel · 8 on
//   dx  (rows, k)       from row dx_row
// A workgroup computes 32 rows of 32 columns; an invocation 4 rows of 4 columns.

struct Params {
  groups: u32,
  m: u32,
  n: u32,
  k: u32,
  panel: u32,
  panels: u32,
  w_panel: u32,
  dy_row: u32,
  dx_row: u32,
  accumulate: u32,
  scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<vec4u>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;

//@include panel
//@include tile

fn dy_at(row: u32, column: u32) -> f32 {
  let n = p.panel * 8u + column;
  if (row >= p.m || column >= p.panels * 8u || n >= p.n) {
    return 0.0;
  }
  return dy[(p.dy_row + row) * p.n + n];
}

// Rows 4 · quarter to 4 · quarter + 3 of W, counted from the first panel of this dispatch, at column k.
fn w_at(quarter: u32, k: u32) -> vec4f {
  if (quarter >= p.panels * 2u || k >= p.k) {
    return vec4f();
  }
  return columns(p.w_panel + quarter / 2u, k, quarter % 2u);
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
  let row = group / tiles * 32u;
  let column = group % tiles * 32u;
  for (var start = 0u; start < p.panels * 8u; start += DEPTH) {
    for (var i = t; i < 256u; i += 64u) {
      let n = start + i % 32u;
      let first = row + i / 32u * 4u;
      left[i % 32u * 8u + i / 32u] = vec4f(dy_at(first, n), dy_at(first + 1u, n), dy_at(first + 2u, n), dy_at(first + 3u, n));
    }
    let k = column + t % 8u * 4u;
    let quarter = start / 4u + t / 8u;
    let block = transpose(mat4x4f(w_at(quarter, k), w_at(quarter, k + 1u), w_at(quarter, k + 2u), w_at(quarter, k + 3u)));
    for (var i = 0u; i < 4u; i++) {
      right[(t / 8u * 4u + i) * 8u + t % 8u] = block[i];
    }
    multiply(local, min(DEPTH, p.panels * 8u - start));
  }
  for (var i = 0u; i < 4u; i++) {
    for (var j = 0u; j < 4u; j++) {
      let m = row + local.y * 4u + i;
      let k = column + local.x * 4u + j;
      if (m < p.m && k < p.k) {
        let at = (p.dx_row + m) * p.k + k;
        let before = select(0.0, dx[at], p.accumulate == 1u);
        dx[at] = fma(p.scale, sums[i][j], before);
      }
    }
  }
}
