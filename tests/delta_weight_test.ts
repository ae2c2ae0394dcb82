import { forEachBackend } from "./backends.ts";
import { absoluteBranch, assertClose, runGuarded } from "./compare.ts";
import * as reference from "./reference.ts";
import { branchOf, random, randomBranch } from "./values.ts";

/** [out, in, rank]. */
const SIZES = [
  [1, 1, 1],
  [0, 5, 2],
  [5, 0, 2],
  [7, 5, 1],
  [8, 6, 8],
  [9, 7, 9],
  [16, 4, 7],
  [17, 13, 13],
  [3, 40, 40],
  [40, 3, 3],
  [11, 259, 16],
  [258, 5, 17],
  [5, 1025, 4],
  [9, 9, 64],
] as const;

forEachBackend("deltaWeight() is s B A for every size and rank", async (backend) => {
  const next = random(1);
  for (const [i, [outFeatures, inFeatures, rank]] of SIZES.entries()) {
    const branch = randomBranch(next, { inFeatures, outFeatures, rank, scaling: [2, -0.125, 0][i % 3]! });
    const uploaded = branchOf(backend, branch);
    const shape = [outFeatures, inFeatures];
    const got = await runGuarded(backend, { shape, inputs: [] }, () => backend.deltaWeight(uploaded));
    const scale = reference.deltaWeight(absoluteBranch(branch));
    const label = `B [${outFeatures}, ${rank}], A [${rank}, ${inFeatures}]`;
    assertClose(got, reference.deltaWeight(branch), { k: rank, scale, label });
  }
});
