// tile: included by products whose workgroups compute 32 x 32 elements, 4 x 4 per invocation, 32 deep at a time.

const DEPTH = 32u;
// [depth][8 groups of 4 rows] and [depth][8 groups of 4 columns].
var<workgroup> left: array<vec4f, 256>;
var<workgroup> right: array<vec4f, 256>;
// 4 rows of 4 columns of the result.
var<private> sums: array<vec4f, 4>;

// Adds the products of the staged rows and columns.
fn multiply(local: vec3u, depth: u32) {
  workgroupBarrier();
  for (var d = 0u; d < depth; d++) {
    let a = left[d * 8u + local.y];
    let b = right[d * 8u + local.x];
    for (var i = 0u; i < 4u; i++) {
      sums[i] = fma(vec4f(a[i]), b, sums[i]);
    }
  }
  workgroupBarrier();
}
