import assert from "node:assert/strict";
import { test } from "node:test";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { memorySink } from "../src/formats/memory.ts";
import type { Sink } from "../src/formats/source.ts";
import { filled, fixtureFiles, smallAdapter } from "./adapter_fixtures.ts";

const CASES = [
  "bert-plain/adapter",
  "gpt2-plain/adapter",
  "llama-all-linear/adapter",
  "llama-bf16/adapter",
  "llama-exclude/adapter",
  "llama-f16/adapter",
  "llama-layers-to-transform/adapter",
  "llama-patterns/adapter",
  "llama-plain/adapter",
  "llama-rslora/adapter",
  "qwen3-plain/adapter",
  "multi/emotion",
  "multi/qa",
  "multi/summary",
  "smollm2/adapters/emotion",
];

test("saveAdapter() writes the very bytes that PEFT wrote", async () => {
  for (const path of CASES) {
    const files = fixtureFiles(path);
    const sink = memorySink();
    await saveAdapter(await loadAdapter(files), sink);
    assert.deepEqual([...sink.files.keys()].sort(), ["adapter_config.json", "adapter_model.safetensors"]);
    for (const [name, bytes] of sink.files) {
      assert.ok(bytes.every((byte, i) => byte === files.get(name)![i]), `${path}: ${name}`);
      assert.equal(bytes.length, files.get(name)!.length, `${path}: ${name}`);
    }
  }
});

test("saveAdapter() completes a short config, keeps unknown keys and number text, and normalises tensor names", async () => {
  const path = "layers.0.q_proj";
  const extra = "base_model.model.layers.0.q_proj.lora_velora_embed";
  const files = smallAdapter({
    tensors: {
      [`base_model.model.${path}.lora_A.weight`]: undefined,
      [`base_model.model.${path}.lora_B.weight`]: undefined,
      [`${path}.lora_A.weight`]: filled([2, 4], 0.25),
      [`_orig_mod.${path}.lora_B.default.weight`]: filled([6, 2]),
      [extra]: filled([3]),
    },
  });
  const text =
    '{"zz": "é", "peft_type": "LORA", "r": 2, "lora_alpha": 4.0, "target_modules": ["q_proj"], "eps": 1e-05}';
  const sink = memorySink();
  await saveAdapter(await loadAdapter(files.set("adapter_config.json", new TextEncoder().encode(text))), sink);
  const saved = new TextDecoder().decode(sink.files.get("adapter_config.json"));
  const config = JSON.parse(saved);
  assert.equal(Object.keys(config).length, 43);
  assert.deepEqual(Object.keys(config), Object.keys(config).toSorted());
  assert.match(saved, /"lora_alpha": 4\.0,/);
  assert.match(saved, /"eps": 1e-05,/);
  assert.match(saved, /"zz": "\\u00e9"\n}$/);
  assert.match(saved, /"lora_dropout": 0\.0,/);
  const again = await loadAdapter(sink.files);
  assert.deepEqual(again.modules.get(path)!.loraA, filled([2, 4], 0.25));
  assert.deepEqual([...again.trainingState.keys()], [extra]);
  assert.equal(again.report.length, 2);
});

test("saveAdapter() leaves nothing when the sink fails or the signal aborts", async () => {
  const adapter = await loadAdapter(smallAdapter());
  const reason = new Error("stop");
  const controller = new AbortController();
  const inner = memorySink();
  const log: string[] = [];
  const sink: Sink = {
    name: "log",
    create: async (name) => {
      const file = await inner.create(name);
      return {
        write: (bytes) => {
          if (log.includes("fail")) return Promise.reject(reason);
          controller.abort(reason);
          return file.write(bytes);
        },
        commit: () => file.commit(),
        abort: () => {
          log.push(`abort ${name}`);
          return file.abort();
        },
      };
    },
  };
  await assert.rejects(saveAdapter(adapter, sink, { signal: controller.signal }), reason);
  assert.deepEqual([log, inner.files.size], [["abort adapter_model.safetensors"], 0]);
  log.push("fail");
  await assert.rejects(saveAdapter(adapter, sink), reason);
  assert.equal(inner.files.size, 0);
});
