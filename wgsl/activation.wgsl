// activation: y = x / 2 · (1 + erf(x / sqrt 2)), its approximation by tanh, or tanh x, as KIND says (0, 1, 2).
//   x, y  (size)
// An invocation computes one element. The formulas are those of rust-kernels/src/activation.rs.

struct Params {
  groups: u32,
  size: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

override KIND: u32 = 0u;

//@include elements

// erfc z for z >= 0 with a relative error below 1.2e-7 (Press et al., Numerical Recipes, erfcc).
fn erfc(z: f32) -> f32 {
  let t = 1.0 / (1.0 + 0.5 * z);
  var q = fma(t, 0.17087277, -0.82215223);
  q = fma(t, q, 1.48851587);
  q = fma(t, q, -1.13520398);
  q = fma(t, q, 0.27886807);
  q = fma(t, q, -0.18628806);
  q = fma(t, q, 0.09678418);
  q = fma(t, q, 0.37409196);
  q = fma(t, q, 1.00002368);
  q = fma(t, q, -1.26551223);
  return t * exp(max(q - z * z, -100.0));
}

// tanh x; the series is that of Cephes' tanhf.
fn tangent(v: f32) -> f32 {
  let square = v * v;
  var q = fma(square, -5.70498872745e-3, 2.06390887954e-2);
  q = fma(square, q, -5.37397155531e-2);
  q = fma(square, q, 1.33314422036e-1);
  q = fma(square, q, -3.33332819422e-1);
  // max() may take the number beside a NaN
  let e = exp(select(-2.0 * abs(v), -100.0, abs(v) > 50.0));
  return select(sign(v) * (1.0 - e) / (1.0 + e), fma(v, q * square, v), abs(v) < 0.625);
}

fn element(i: u32) {
  if (i >= p.size) {
    return;
  }
  let v = x[i];
  if (KIND == 0u) {
    let tail = erfc(abs(v) * 0.70710678118654752);
    y[i] = 0.5 * v * select(2.0 - tail, tail, v < 0.0);
  } else if (KIND == 1u) {
    let u = 1.5957691216057308 * (v + 0.044715 * v * v * v);
    // Of |u|, so that the exponential is never infinite.
    let e = exp(max(-abs(u), -100.0));
    y[i] = v * select(e, 1.0, u >= 0.0) / (1.0 + e);
  } else {
    y[i] = tangent(v);
  }
}
