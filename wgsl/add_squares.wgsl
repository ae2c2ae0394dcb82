// add_squares: sums += (W + scaling · B A)² by row of W, or by column, over a run of panels.
//   w     [panel][k][8]  `panels` panels from w_panel; their rows begin with row 8 · panel of the matrix (n, k)
//   a     [rank / 8][k][8]
//   b     [panel][r][8]  `panels` panels from b_panel
//   sums  (n), or by column (k)
// By row a workgroup sums one panel, by column an invocation one column. Rows of padding are zero.

struct Params {
  groups: u32,
  n: u32,
  k: u32,
  r: u32,
  panel: u32,
  panels: u32,
  w_panel: u32,
  b_panel: u32,
  scaling: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> w: array<vec4u>;
@group(0) @binding(2) var<storage, read> a: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;

override BY_COLUMN: bool = false;

//@include panel

var<workgroup> partial: array<array<vec4f, 2>, 64>;

// The squares of the 8 rows of a panel of this run at one column.
fn squares(panel: u32, column: u32) -> array<vec4f, 2> {
  var delta: array<vec4f, 2>;
  for (var j = 0u; j < p.r; j++) {
    let factor = vec4f(p.scaling * a[(j / 8u * p.k + column) * 8u + j % 8u]);
    let at = ((p.b_panel + panel) * p.r + j) * 2u;
    delta[0] = fma(factor, b[at], delta[0]);
    delta[1] = fma(factor, b[at + 1u], delta[1]);
  }
  let low = columns(p.w_panel + panel, column, 0u) + delta[0];
  let high = columns(p.w_panel + panel, column, 1u) + delta[1];
  return array<vec4f, 2>(low * low, high * high);
}

fn by_column(column: u32) {
  if (column >= p.k) {
    return;
  }
  var sum = 0.0;
  for (var panel = 0u; panel < p.panels; panel++) {
    let eight = squares(panel, column);
    sum += dot(eight[0] + eight[1], vec4f(1.0));
  }
  sums[column] += sum;
}

fn by_row(panel: u32, t: u32) {
  var total: array<vec4f, 2>;
  for (var column = t; column < p.k; column += 64u) {
    let eight = squares(panel, column);
    total[0] += eight[0];
    total[1] += eight[1];
  }
  partial[t] = total;
  workgroupBarrier();
  for (var step = 32u; step > 0u; step >>= 1u) {
    if (t < step) {
      partial[t][0] += partial[t + step][0];
      partial[t][1] += partial[t + step][1];
    }
    workgroupBarrier();
  }
  let row = (p.panel + panel) * 8u + t;
  if (t < 8u && row < p.n) {
    sums[row] += partial[0][t / 4u][t % 4u];
  }
}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) id: vec3u,
  @builtin(num_workgroups) count: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let group = id.y * count.x + id.x;
  if (group >= p.groups) {
    return;
  }
  if (BY_COLUMN) {
    by_column(group * 64u + t);
  } else {
    by_row(group, t);
  }
}
