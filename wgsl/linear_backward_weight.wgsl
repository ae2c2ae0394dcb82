// linear_backward_weight: dw (n, k) += scale · dyᵀ x over m rows.
//   dy  (rows, n)  from row dy_row
//   x   (rows, k)  from row x_row
//   dw  (n, k)
// A workgroup computes 32 rows of 32 columns of dw; an invocation 4 rows of 4 columns.

struct Params {
  groups: u32,
  m: u32,
  n: u32,
  k: u32,
  dy_row: u32,
  x_row: u32,
  scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> dw: array<f32>;

//@include tile

fn dy_at(row: u32, n: u32) -> f32 {
  if (row >= p.m || n >= p.n) {
    return 0.0;
  }
  return dy[(p.dy_row + row) * p.n + n];
}

fn x_at(row: u32, k: u32) -> f32 {
  if (row >= p.m || k >= p.k) {
    return 0.0;
  }
  return x[(p.x_row + row) * p.k + k];
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
  for (var start = 0u; start < p.m; start += DEPTH) {
    for (var i = t; i < 256u; i += 64u) {
      let m = start + i / 8u;
      let n = row + i % 8u * 4u;
      let k = column + i % 8u * 4u;
      left[i] = vec4f(dy_at(m, n), dy_at(m, n + 1u), dy_at(m, n + 2u), dy_at(m, n + 3u));
      right[i] = vec4f(x_at(m, k), x_at(m, k + 1u), x_at(m, k + 2u), x_at(m, k + 3u));
    }
    multiply(local, min(DEPTH, p.m - start));
  }
  for (var i = 0u; i < 4u; i++) {
    for (var j = 0u; j < 4u; j++) {
      let n = row + local.y * 4u + i;
      let k = column + local.x * 4u + j;
      if (n < p.n && k < p.k) {
        dw[n * p.k + k] = fma(p.scale, sums[i][j], dw[n * p.k + k]);
      }
    }
  }
}
