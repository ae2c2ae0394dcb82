// elements: included by kernels whose invocation i does element(i), which checks i.

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) id: vec3u,
  @builtin(num_workgroups) count: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let group = id.y * count.x + id.x;
  if (group < p.groups) {
    element(group * 64u + t);
  }
}
