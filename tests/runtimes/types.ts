// The declarations in the package say what a user writes.
import { type Adapter, type Backend, loadAdapter, LoraLinear, openBackend } from "@lowrank/lora";
import { file, folder } from "@lowrank/lora/fs";
import { type LanguageModel, loadModel } from "@lowrank/lora/models";
import type { Tokenizer } from "@lowrank/lora/text";

export async function typed(backend: Backend): Promise<Adapter | Tokenizer | null> {
  const model: LanguageModel = await loadModel(file("model.gguf"), { backend });
  const adapter = await loadAdapter(folder("adapter"));
  const layer = new LoraLinear(await openBackend(), {
    weight: backend.weight({ shape: [1, 1], dtype: "f32", bytes: new Uint8Array(4) }),
  });
  layer.forward(backend.tensor([1, 1]), { adapter: { a: 0.5 } }).dispose();
  // @ts-expect-error: a number names no adapter
  layer.forward(backend.tensor([1, 1]), { adapter: 1 });
  return model.tokenizer ?? adapter;
}
