// linear_parts: included by linear and linear_rows; what both read and write, with every index checked.

fn x_at(row: u32, k: u32) -> f32 {
  if (row >= p.m || k >= p.k) {
    return 0.0;
  }
  return x[(p.x_row + row) * p.k + k];
}

// Four columns of W, or zeros outside; `panel` counts from the first of this dispatch.
fn w_at(panel: u32, k: u32, half: u32) -> vec4f {
  if (panel >= p.panels || k >= p.k) {
    return vec4f();
  }
  return columns(p.w_panel + panel, k, half);
}

// scaling · x Aᵀ, its partial sums added.
fn h_at(row: u32, j: u32) -> f32 {
  if (row >= p.m || j >= p.r) {
    return 0.0;
  }
  var sum = 0.0;
  for (var part = 0u; part < p.parts; part++) {
    sum += h[(part * p.m + row) * p.r + j];
  }
  return p.scaling * sum;
}

fn b_at(panel: u32, j: u32, half: u32) -> vec4f {
  if (panel >= p.panels || j >= p.r) {
    return vec4f();
  }
  return b[((p.b_panel + panel) * p.r + j) * 2u + half];
}

// Writes one sum in a row that the caller has checked; `column` counts from the first panel of this dispatch.
fn put(row: u32, column: u32, sum: f32) {
  let n = p.panel * 8u + column;
  if (column >= p.panels * 8u || n >= p.n) {
    return;
  }
  let at = (p.y_row + row) * p.n + n;
  var value = sum;
  if (p.has_bias == 1u) {
    value += bias[n];
  }
  if (p.accumulate == 1u) {
    value += y[at];
  }
  y[at] = value;
}
