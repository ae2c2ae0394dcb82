// One adapter over one weight: y = W x + s B A x = [3 + 4] + 0.5 [2 (3 + 4)] = [14].
import { LoraLinear, openBackend } from "@lowrank/lora";

const matrix = (rows, columns, ...values) => (
  { shape: [rows, columns], dtype: "f32", bytes: new Uint8Array(Float32Array.from(values).buffer) }
);

/** Answers `[7, 14, 14]`: the base, through the adapter, merged. */
export async function answer(options) {
  const backend = await openBackend(options);
  const adapters = { a: { loraA: matrix(1, 2, 1, 1), loraB: matrix(1, 1, 2), scaling: 0.5 } };
  const layer = new LoraLinear(backend, { weight: backend.weight(matrix(1, 2, 1, 1)), adapters });
  const forward = async (options) => [...await backend.read(layer.forward(x, options))];
  const x = backend.tensor([1, 2], Float32Array.of(3, 4));
  const answers = [...await forward({ adapter: null }), ...await forward({ adapter: "a" })];
  await layer.merge("a");
  return [...answers, ...await forward()];
}
