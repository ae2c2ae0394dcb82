import assert from "node:assert/strict";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { FIXTURES, kill, lora, loraJson, startLora, TINY } from "./cli_support.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";
import { expectedTensors } from "./adapter_fixtures.ts";
import { gpuSkip } from "./webgpu_support.ts";
import { type Handler, serve } from "./url_support.ts";

test("lora inspect --json tells rank, alpha and scaling of every module", async () => {
  const adapter = join(FIXTURES, "llama-patterns", "adapter");
  const { modules, ...rest } = await loraJson("inspect", adapter) as { modules: Record<string, unknown>[] };
  const base = modules.reduce((sum, module) => sum + 2 * (module.in as number) * (module.out as number), 0);
  assert.deepEqual(rest, {
    format: "peft",
    sha256: "837f8848303fa9b5f0c1ffde2d005d3282747e732501f619b08d15092a302ffa",
    bytes: statSync(join(adapter, "adapter_model.safetensors")).size,
    parameters: 3240,
    costs: {
      ...{ parameters: 3240, branchFlops: 6480, branchBackwardFlops: 12960, optimizerValues: 6480 },
      ...{ baseFlops: base, baseBackwardFlops: base },
    },
    replacements: [],
    tokenRows: [],
    trainingState: [],
    invocationTokens: null,
    baseChange: null,
  });
  assert.equal(modules.length, 8);
  const name = "model.layers.1.mlp.down_proj";
  const kind = { kind: "linear", rank: 7, alpha: 8, scaling: 8 / 7, in: 72, out: 48, dtype: "F32", parts: [] };
  const { norm, flops, ...found } = modules.find((module) => module.name === name)!;
  assert.deepEqual([found, flops], [{ name, ...kind }, 2 * 7 * (72 + 48)]);
  const delta = (await expectedTensors("llama-patterns", "delta.")).get(name)!.values;
  assert.ok(Math.abs(norm as number / Math.hypot(...delta) - 1) < 1e-6, `${norm}`);
});

test("lora inspect names and places every tensor of every kind", async () => {
  const inspect = (name: string) => loraJson("inspect", join(FIXTURES, name, "adapter"));
  const [moe, tokens, conv, full] = await Promise.all(
    ["moe", "llama-new-tokens", "conv-dora", "bertcls-plain"].map(inspect),
  ) as [Record<string, unknown>, ...Record<string, unknown>[]];
  const modules = (answer: Record<string, unknown>) => answer.modules as Record<string, unknown>[];
  assert.deepEqual(modules(moe)[0]!.name, "model.layers.0.mlp.experts.gate_up_proj");
  assert.deepEqual(tokens!.tokenRows, [{ name: "model.embed_tokens", indices: [3, 5, 17] }]);
  assert.deepEqual(modules(conv!).map(({ kind, parts }) => [kind, parts]), Array(4).fill(["conv", ["dora"]]));
  const shapes = [["classifier.bias", [5]], ["classifier.weight", [5, 36]]];
  assert.deepEqual(full!.replacements, shapes.map(([name, shape]) => ({ name, shape, dtype: "F32" })));
  const { stdout } = await lora("inspect", join(FIXTURES, "moe", "adapter"));
  assert.match(stdout, /^model\.layers\.\*\.mlp\.experts\.down_proj +4 experts +0-1 +3 /m);
});

test("lora inspect groups the layers for people", async () => {
  const { status, stdout } = await lora("inspect", join(TINY, "news"));
  assert.equal(status, 0);
  assert.match(stdout, /^news {2}peft, 35 modules, 112,000 parameters/);
  assert.match(stdout, /^model\.layers\.\*\.mlp\.down_proj +0-4 +8 +16 +2 +432 +160 +F32 +11\.2 +23,680 +47,360$/m);
  assert.match(stdout, /^token {3}224,000 FLOPs more, 8\.3% of the adapted layers; none once merged$/m);
});

test("lora inspect reads a snapshot of the Hugging Face cache, whose files are links", async () => {
  await inTemporaryFolder(async (path) => {
    const snapshot = join(path, "snapshots", "abc");
    mkdirSync(snapshot, { recursive: true });
    cpSync(join(TINY, "news"), join(path, "blobs"), { recursive: true });
    for (const name of readdirSync(join(path, "blobs"))) symlinkSync(`../../blobs/${name}`, join(snapshot, name));
    assert.equal((await loraJson("inspect", snapshot)).parameters, 112_000);
  });
});

test("lora generate --json gives the reference's greedy tokens", async () => {
  const { greedy } = JSON.parse(readFileSync(join(TINY, "expected.json"), "utf8"));
  const { prompt, tokens } = greedy.find((one: { adapter: string }) => one.adapter === "news");
  const options = ["--model", join(TINY, "base"), "--adapter", join(TINY, "news"), "--max-new-tokens", "20"];
  const answer = await loraJson("generate", ...options, "--prompt", `<|end|>${prompt}`, "--dtype", "f32");
  assert.deepEqual(Object.keys(answer), ["text", "tokens", "promptTokens", "tokensPerSecond", "loadMs", "backend"]);
  assert.deepEqual(answer.tokens, tokens);
  assert.equal(answer.promptTokens, 3);
  assert.ok(Number(answer.tokensPerSecond) > 0 && Number(answer.loadMs) > 0);
  const half = await loraJson(
    "generate",
    ...options,
    "--prompt",
    `<|end|>${prompt}`,
    "--dtype",
    "f32",
    "--cache",
    "f16",
  );
  assert.deepEqual(half.tokens, tokens);
});

test("lora generate streams plain text, the same for the same seed", async () => {
  const options = ["--model", join(TINY, "base"), "--prompt", "<|end|>The", "--max-new-tokens", "8"];
  const sampling = ["--temperature", "1", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01", "--seed", "7"];
  const runs = [await lora("generate", ...options, ...sampling), await lora("generate", ...options, ...sampling)];
  assert.equal(runs[0]!.status, 0, runs[0]!.stderr);
  assert.equal(runs[0]!.stderr, "");
  assert.match(runs[0]!.stdout, /^ .+\n$/);
  assert.deepEqual(runs[0], runs[1]);
});

test("Ctrl-C ends lora generate with 130 and no message", async () => {
  const model = ["--model", join(TINY, "base"), "--adapter", join(TINY, "emotion")];
  const { child, ended } = startLora("generate", ...model, "--prompt", "<|end|>The movie", "--max-new-tokens", "9999");
  child.stdout!.once("data", () => kill(child, "SIGINT"));
  const { status, stderr } = await ended;
  assert.equal(stderr, "");
  assert.equal(status, 130);
});

test("lora generate ends quietly when its reader goes away", async () => {
  const model = ["--model", join(TINY, "base"), "--adapter", join(TINY, "emotion")];
  const { child, ended } = startLora("generate", ...model, "--prompt", "<|end|>The movie", "--max-new-tokens", "9999");
  child.stdout!.once("data", () => child.stdout!.destroy());
  const { status, stderr } = await ended;
  assert.equal(stderr, "");
  assert.equal(status, 1);
});

test("what cannot be loaded exits 1 with one line that names it", async () => {
  await inTemporaryFolder(async (path) => {
    mkdirSync(join(path, "empty"));
    const tiny = join(TINY, "base");
    const cases: [string[], RegExp][] = [
      [["inspect", join(path, "empty")], /adapter_config\.json/],
      [["inspect", join(path, "emtpy")], /emtpy": there is no such folder/],
      [["inspect", join(tiny, "model.safetensors")], /model\.safetensors": it is a file/],
      [["inspect", join(FIXTURES, "llama-bin", "adapter")], /adapter_model\.bin/],
      [["generate", "--model", join(path, "absent"), "--prompt", "x"], /absent": there is no such file or folder/],
      [
        ["generate", "--model", tiny, "--adapter", join(path, "nope"), "--prompt", "x"],
        /nope": there is no such folder/,
      ],
      [["generate", "--model", tiny, "--prompt", ""], /empty prompt/],
      [["generate", "--model", tiny, "--adapter", join(FIXTURES, "llama-plain", "adapter"), "--prompt", "x"], /q_proj/],
    ];
    const results = await Promise.all(cases.map(([args]) => lora(...args)));
    for (const [index, { status, stdout, stderr }] of results.entries()) {
      assert.equal(status, 1, stderr);
      assert.equal(stdout, "");
      assert.match(stderr, /^Cannot [^\n]+\n$/);
      assert.match(stderr, cases[index]![1]);
    }
  });
});

/** npm webgpu where `JSRT_WEBGPU` names it, for Node and Bun. */
const gpuPackages = process.env.JSRT_WEBGPU ? dirname(dirname(process.env.JSRT_WEBGPU)) : "";

test("lora generate --device webgpu gives wasm's tokens, and tells which GPU", await gpuSkip(), async () => {
  const before = process.env.NODE_PATH;
  process.env.NODE_PATH = gpuPackages;
  try {
    const options = ["--model", join(TINY, "base"), "--adapter", join(TINY, "news"), "--max-new-tokens", "6"];
    const answers = [];
    for (const device of ["wasm", "webgpu"]) {
      answers.push(await loraJson("generate", ...options, "--prompt", "<|end|>The", "--device", device));
    }
    const [wasm, webgpu] = answers as [Record<string, unknown>, Record<string, unknown>];
    assert.deepEqual(webgpu.tokens, wasm.tokens);
    const named = (answer: Record<string, unknown>) => answer.backend as Record<string, unknown>;
    assert.deepEqual([named(wasm).name, named(wasm).gpu], ["wasm", undefined]);
    assert.deepEqual([named(webgpu).name, named(webgpu).reason], ["webgpu", "asked for by name"]);
    assert.equal(typeof (named(webgpu).gpu as { software: unknown }).software, "boolean");
  } finally {
    if (before === undefined) delete process.env.NODE_PATH;
    else process.env.NODE_PATH = before;
  }
});

test("lora generate --threads tells how many compute, and refuses what is no number", async () => {
  const options = ["generate", "--model", join(TINY, "base"), "--prompt", "<|end|>The", "--max-new-tokens", "2"];
  const answers = [];
  for (const threads of ["1", "2"]) {
    answers.push(await loraJson(...options, "--device", "wasm", "--threads", threads) as Record<string, unknown>);
  }
  const counts = answers.map(({ backend }) => (backend as { threads: number }).threads);
  assert.deepEqual([counts, answers[1]!.tokens], [[1, 2], answers[0]!.tokens]);
  const refused = await lora(...options, "--threads", "many");
  assert.equal(refused.status, 2);
  assert.match(refused.stderr, /^Cannot use --threads "many": a whole number from 1 up to 32 is wanted\n/);
});

test("lora generate --device webgpu is refused where there is none, and other devices by name", async () => {
  const hidden = { VK_DRIVER_FILES: "/none", VK_ICD_FILENAMES: "/none", DENO_WEBGPU_BACKEND: "vulkan" };
  const before = { ...process.env };
  Object.assign(process.env, hidden);
  try {
    const options = ["generate", "--model", join(TINY, "base"), "--prompt", "x"];
    const refused = await lora(...options, "--device", "webgpu");
    assert.deepEqual([refused.status, refused.stdout], [1, ""]);
    assert.match(refused.stderr, /^Cannot open "webgpu": .*\n$/);
    const unknown = await lora(...options, "--device", "cuda");
    assert.equal(unknown.status, 2);
    assert.match(unknown.stderr, /^Cannot use --device "cuda": one of auto, wasm, webgpu is wanted\n/);
    const auto = await loraJson(...options, "--max-new-tokens", "1");
    assert.equal((auto.backend as { name: string }).name, "wasm");
  } finally {
    for (const name of Object.keys(hidden)) {
      if (before[name] === undefined) delete process.env[name];
      else process.env[name] = before[name];
    }
  }
});

test("lora generate and convert read what is behind a URL; generate refuses a file of a folder by its folder", async () => {
  const base = new URL("../examples/models/tiny/base/", import.meta.url);
  let copied = new Uint8Array();
  const handler: Handler = ({ url }, response) => {
    if (url === "/copied.pt") return response.end(copied);
    const path = new URL(url!.startsWith("/news") ? `..${url}` : `.${url}`, base);
    if (!existsSync(path)) return response.writeHead(404).end();
    response.end(readFileSync(path));
  };
  await serve(handler, async (origin) => {
    const { text } = await loraJson("generate", "--model", `${origin}/`, "--prompt", "The", "--max-new-tokens", "4");
    const own = await loraJson("generate", "--model", join(TINY, "base"), "--prompt", "The", "--max-new-tokens", "4");
    assert.equal(text, own.text);
    await inTemporaryFolder(async (out) => {
      const [file, back] = [join(out, "news.pt"), join(out, "back")];
      await loraJson("convert", `${origin}/news`, "--to", "loralib", "--out", file);
      copied = readFileSync(file);
      assert.equal((await loraJson("convert", `${origin}/copied.pt`, "--to", "peft", "--out", back)).from, "loralib");
    });
  });
  const { status, stderr } = await lora("generate", "--model", join(TINY, "base/model.safetensors"), "--prompt", "x");
  assert.deepEqual([status, stderr.includes("alone: expected its folder, or a .gguf file")], [1, true]);
});
