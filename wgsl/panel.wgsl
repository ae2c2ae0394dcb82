// panel: included by kernels that read a weight W in panels of 8 columns, [panel][k][8], as f32 or as bf16.
// A bf16 row is one vec4u whose word i holds column i (low half) and column i + 4 (high half).

override BF16: bool = false;

// Columns 4 · half to 4 · half + 3 of row `at` (panel · k + index) of the panels.
fn columns(at: u32, half: u32) -> vec4f {
  if (BF16) {
    let words = w[at];
    return bitcast<vec4f>(select(words << vec4u(16u), words & vec4u(0xffff0000u), half == 1u));
  }
  return bitcast<vec4f>(w[at * 2u + half]);
}
