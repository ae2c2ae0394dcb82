// merge: W' (n, k) = W + scaling · B (n, r) A (r, k) in panels, rounded once; sets `bad` where a number is not finite.
//   w       [panel][k][8]  `panels` panels from w_panel, in f32 or bf16
//   a       [panel][k][8]  `ranks` ranks from panel a_panel on; they are the columns of B from rank0 on
//   b       [panel][r][8]  `panels` panels from b_panel
//   target  [panel][k][8]  from panel t_panel, in f32 or bf16
//   bad     (1)            1 if an element of A, B or the result is infinite or NaN, judged by its bits
// With in_place, W is what `target` holds in f32. An invocation computes the 8 columns of one row of a panel.

struct Params {
  groups: u32,
  k: u32,
  r: u32,
  rank0: u32,
  ranks: u32,
  a_panel: u32,
  panels: u32,
  w_panel: u32,
  b_panel: u32,
  t_panel: u32,
  in_place: u32,
  scaling: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> w: array<vec4u>;
@group(0) @binding(2) var<storage, read> a: array<vec4f>;
@group(0) @binding(3) var<storage, read> b: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> target_panels: array<vec4u>;
@group(0) @binding(5) var<storage, read_write> bad: array<atomic<u32>>;

override TARGET_BF16: bool = false;

//@include panel
//@include elements

fn is_bad(bits: vec4u) -> bool {
  return any((bits & vec4u(0x7f800000u)) == vec4u(0x7f800000u));
}

// The bits of bf16, rounded to nearest even, in the high halves.
fn round_bf16(value: vec4f) -> vec4u {
  let bits = bitcast<vec4u>(value);
  return (bits + vec4u(0x7fffu) + ((bits >> vec4u(16u)) & vec4u(1u))) & vec4u(0xffff0000u);
}

fn element(i: u32) {
  if (i >= p.panels * p.k) {
    return;
  }
  let panel = i / p.k;
  let k = i % p.k;
  let at = (p.t_panel + panel) * p.k + k;
  var low = vec4f();
  var high = vec4f();
  var found = false;
  for (var j = 0u; j < p.ranks; j++) {
    let factor = a[((p.a_panel + j / 8u) * p.k + k) * 2u + j / 4u % 2u][j % 4u];
    let b_row = ((p.b_panel + panel) * p.r + p.rank0 + j) * 2u;
    low = fma(vec4f(factor), b[b_row], low);
    high = fma(vec4f(factor), b[b_row + 1u], high);
    found = found || is_bad(vec4u(bitcast<u32>(factor))) || is_bad(bitcast<vec4u>(b[b_row])) || is_bad(bitcast<vec4u>(b[b_row + 1u]));
  }
  let scaling = vec4f(p.scaling);
  if (p.in_place == 1u) {
    low = fma(scaling, low, bitcast<vec4f>(target_panels[at * 2u]));
    high = fma(scaling, high, bitcast<vec4f>(target_panels[at * 2u + 1u]));
  } else {
    low = fma(scaling, low, columns(p.w_panel + panel, k, 0u));
    high = fma(scaling, high, columns(p.w_panel + panel, k, 1u));
  }
  if (TARGET_BF16) {
    let words = array(round_bf16(low), round_bf16(high));
    found = found || is_bad(words[0]) || is_bad(words[1]);
    target_panels[at] = (words[0] >> vec4u(16u)) | words[1];
  } else {
    let words = array(bitcast<vec4u>(low), bitcast<vec4u>(high));
    found = found || is_bad(words[0]) || is_bad(words[1]);
    target_panels[at * 2u] = words[0];
    target_panels[at * 2u + 1u] = words[1];
  }
  if (found) {
    atomicStore(&bad[0], 1u);
  }
}
