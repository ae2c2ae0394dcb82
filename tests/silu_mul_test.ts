import { forEachBackend } from "./backends.ts";
import { assertClose, runGuarded } from "./compare.ts";
import * as reference from "./reference.ts";
import { matrix } from "./reference.ts";
import { ELEMENTWISE_SHAPES, random, randomMatrix, tensorOf } from "./values.ts";

/** From gate = -88.73 on e⁻ᵍᵃᵗᵉ is infinite in f32 and the result 0; the exact one is 2⁻¹¹⁵ there, and falling. */
const OVERFLOW = 2 ** -94;

/** Where e⁻ˣ is 1, tiny, subnormal, zero and infinite. */
const EDGES = [
  0,
  -0,
  1e-30,
  -1e-30,
  1,
  -1,
  20,
  -20,
  80,
  -80,
  87.5,
  -87.5,
  88.8,
  -88.8,
  103,
  -103,
  110,
  -110,
  1e4,
  -1e4,
];

forEachBackend("siluMul() is gate / (1 + e⁻ᵍᵃᵗᵉ) ∘ up", async (backend) => {
  const next = random(1);
  const gates = ELEMENTWISE_SHAPES.map((shape) => randomMatrix(next, ...shape, { scale: 8 }));
  for (const gate of [...gates, matrix(1, EDGES.length, (_, i) => Math.fround(EDGES[i]!))]) {
    const up = randomMatrix(next, ...gate.shape, { scale: 3 });
    const inputs = [tensorOf(backend, gate), tensorOf(backend, up)] as const;
    const got = await runGuarded(backend, { shape: gate.shape, inputs }, () => backend.siluMul(...inputs));
    const want = reference.siluMul(gate, up);
    const scale = matrix(...gate.shape, (i, j) => {
      return Math.abs(reference.at(want, i, j)) * (1 + Math.abs(reference.at(gate, i, j))) + OVERFLOW;
    });
    assertClose(got, want, { k: 0, scale, label: `gate [${gate.shape}]` });
  }
});
