// linear_rows: the product of linear for few rows: y (m, n) = x (m, k) Wᵀ + bias (n) + scaling · h (m, r) Bᵀ.
// With span < k the depth is split: part i sums k from i · span on and writes y (parts, m, n); r is then 0.
//   x, w, bias, h, b, y        as in linear
// A workgroup computes ROWS rows of one panel: its invocations share the depth and add up in workgroup memory.

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
  span: u32,
  scaling: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<vec4u>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> h: array<f32>;
@group(0) @binding(5) var<storage, read> b: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

// 1 to 4.
override ROWS: u32 = 1u;
var<workgroup> partial: array<vec4f, 128>;

//@include panel
//@include linear_parts

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
  let panel = group % p.panels;
  let rows = (p.m + ROWS - 1u) / ROWS;
  let row = group / p.panels % rows * ROWS;
  let part = group / p.panels / rows;
  var low: array<vec4f, 4>;
  var high: array<vec4f, 4>;
  for (var k = part * p.span + t; k < min(p.k, (part + 1u) * p.span); k += 64u) {
    let w0 = w_at(panel, k, 0u);
    let w1 = w_at(panel, k, 1u);
    for (var i = 0u; i < ROWS; i++) {
      let a = vec4f(x_at(row + i, k));
      low[i] = fma(a, w0, low[i]);
      high[i] = fma(a, w1, high[i]);
    }
  }
  for (var j = t; j < p.r; j += 64u) {
    let b0 = b_at(panel, j, 0u);
    let b1 = b_at(panel, j, 1u);
    for (var i = 0u; i < ROWS; i++) {
      let a = vec4f(h_at(row + i, j));
      low[i] = fma(a, b0, low[i]);
      high[i] = fma(a, b1, high[i]);
    }
  }
  for (var i = 0u; i < ROWS; i++) {
    partial[t] = low[i];
    partial[64u + t] = high[i];
    workgroupBarrier();
    for (var step = 32u; step > 0u; step >>= 1u) {
      if (t < step) {
        partial[t] += partial[t + step];
        partial[64u + t] += partial[64u + t + step];
      }
      workgroupBarrier();
    }
    if (t < 8u && row + i < p.m) {
      put(part * p.m + row + i, panel * 8u + t, partial[t / 4u * 64u][t % 4u]);
    }
    workgroupBarrier();
  }
}
