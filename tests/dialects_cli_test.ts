import assert from "node:assert/strict";
import { cpSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { readAdapter } from "../src/adapter/dialects/convert.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { convert } from "../src/cli/convert.ts";
import { file, folder } from "../src/fs/mod.ts";
import { readTorch } from "../src/formats/torch.ts";
import { encodeTorch } from "../src/formats/torch_writer.ts";
import { FIXTURES } from "./cli_support.ts";
import { assertSame, deltaError } from "./dialects_support.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";

const BASE = join(FIXTURES, "base", "llama");

async function lora(...args: string[]): Promise<void> {
  await convert.run(args, new AbortController().signal);
}

test("lora convert takes PEFT's adapters to every dialect and back", async () => {
  for (const name of ["llama-plain", "llama-bf16"]) {
    const source = join(FIXTURES, name, "adapter");
    const adapter = await loadAdapter(folder(source));
    await inTemporaryFolder(async (path) => {
      for (const to of ["peft", "kohya", "diffusers", "gguf", "mlx", "loralib"]) {
        const [there, back] = [join(path, to), join(path, `${to}-back`)];
        await lora(source, "--to", to, "--out", there, "--base", BASE);
        await lora(there, "--to", "peft", "--out", back, "--alpha", String(adapter.config.loraAlpha));
        assertSame(await loadAdapter(folder(back)), adapter, `${name} ${to}`);
      }
    });
  }
});

test("lora convert folds what a GGUF cannot say, and writes the file that --out names", async () => {
  const source = join(FIXTURES, "llama-patterns", "adapter");
  await inTemporaryFolder(async (path) => {
    const out = join(path, "small.gguf");
    await lora(source, "--to", "gguf", "--out", out, "--base", BASE);
    assert.deepEqual(readdirSync(path), ["small.gguf"]);
    const { dialect, adapter } = await readAdapter(file(out));
    assert.equal(dialect, "gguf");
    assert(deltaError(adapter, await loadAdapter(folder(source))) < 1e-7);
    await lora(out, "--to", "peft", "--out", join(path, "peft"));
    assertSame(await loadAdapter(folder(join(path, "peft"))), adapter, "from a file");
  });
});

test("lora convert refuses wrong words, a folder for a file, and loralib's files without --alpha", async () => {
  const source = join(FIXTURES, "llama-plain", "adapter");
  await inTemporaryFolder(async (path) => {
    const out = join(path, "out");
    const usage = { name: "UsageError" };
    await assert.rejects(lora("--to", "peft", "--out", out), usage);
    await assert.rejects(lora(source, source, "--to", "peft", "--out", out), usage);
    await assert.rejects(lora(source, "--to", "onnx", "--out", out), usage);
    await assert.rejects(lora(source, "--to", "peft"), usage);
    for (const [to, name] of [["peft", "a.safetensors"], ["kohya", "a.pt"]] as const) {
      const message = /named as a file of another dialect: a folder/;
      await assert.rejects(lora(source, "--to", to, "--out", join(path, name)), { ...usage, message });
    }
    await assert.rejects(lora(source, "--to", "gguf", "--out", out), { code: "architecture" });
    cpSync(source, join(path, "a.gguf"), { recursive: true });
    await assert.rejects(lora(source, "--to", "gguf", "--out", join(path, "a.gguf"), "--base", BASE), usage);
    await lora(source, "--to", "loralib", "--out", join(path, "lora.pt"));
    await lora(join(path, "lora.pt"), "--to", "peft", "--out", join(path, "peft"));
    assertSame(await loadAdapter(folder(join(path, "peft"))), await loadAdapter(folder(source)), "no alpha is needed");
    rmSync(join(path, "peft"), { recursive: true });
    writeFileSync(join(path, "lora.pt"), encodeTorch(await readTorch(file(join(path, "lora.pt")))));
    await assert.rejects(lora(join(path, "lora.pt"), "--to", "peft", "--out", out), { code: "alpha" });
    assert.deepEqual(readdirSync(path).sort(), ["a.gguf", "lora.pt"]);
  });
});

test("lora convert makes safetensors of a torch pickle, and never writes over what it reads", async () => {
  await inTemporaryFolder(async (path) => {
    const out = join(path, "out");
    await lora(join(FIXTURES, "llama-bin", "adapter"), "--to", "peft", "--out", out);
    const plain = await loadAdapter(folder(join(FIXTURES, "llama-plain", "adapter")));
    assertSame(await loadAdapter(folder(out)), plain, "from a pickle");
    const isRead = { name: "UsageError", message: /which is read too/ };
    await assert.rejects(lora(out, "--to", "peft", "--out", out), isRead);
    await assert.rejects(lora(out, "--to", "kohya", "--out", join(out, "adapter_model.safetensors")), isRead);
    // A copy: a command that refuses too little must not leave its files among the fixtures.
    const base = join(path, "base");
    cpSync(join(FIXTURES, "base", "llama"), base, { recursive: true });
    const weights = join(base, "model.safetensors");
    await assert.rejects(lora(out, "--to", "kohya", "--base", base, "--out", weights), isRead);
    await assert.rejects(lora(out, "--to", "peft", "--base", weights, "--out", base), isRead);
  });
});
