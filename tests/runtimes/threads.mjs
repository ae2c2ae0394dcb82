// A layer on two threads: what computes it, and whether the answer is that of one.
import { openBackend } from "@lowrank/lora";

const SIZE = 512;
const values = Float32Array.from({ length: SIZE * SIZE }, (_, i) => Math.sin(i));
const bytes = new Uint8Array(values.buffer);

async function product(backend) {
  const weight = backend.weight({ shape: [SIZE, SIZE], dtype: "f32", bytes });
  const y = backend.linear(backend.tensor([SIZE, SIZE], values), weight);
  const answer = await backend.read(y);
  for (const handle of [weight, y]) handle.dispose();
  return answer;
}

const one = await product(await openBackend({ prefer: "wasm" }));
const backend = await openBackend({ prefer: "wasm", threads: 2 });
let same = true;
for (let i = 0; i < 2000 && !/; 2 threads$/.test(backend.info.reason); i++) {
  const two = await product(backend);
  same &&= two.every((value, j) => Object.is(value, one[j]));
  await new Promise((resolve) => setTimeout(resolve, 1));
}
const two = await product(backend);
console.log(JSON.stringify([same && two.every((value, j) => Object.is(value, one[j])), backend.info.reason]));
// Neither backend is disposed: the program ends all the same.
