import assert from "node:assert/strict";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { claimedFolder, refuseOverwrite, type WrittenPlace } from "../src/cli/overwrite.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";

test("refuseOverwrite() judges by what is written and what is there, not by the endings of names", async () => {
  await inTemporaryFolder(async (path) => {
    const base = join(path, "base.v2");
    mkdirSync(base);
    for (const name of ["model.safetensors", "model.gguf", "adapter_model.safetensors", "plain"]) {
      writeFileSync(join(base, name), "");
    }
    symlinkSync(base, join(path, "link"));
    const at = (...parts: string[]) => join(base, ...parts);
    const file = (place: string): WrittenPlace => ({ path: place, writes: null });
    const gguf = (place: string): WrittenPlace => ({ path: place, writes: (name) => name.endsWith(".gguf") });
    const refused: [WrittenPlace, string][] = [
      [file(at("model.safetensors")), at("model.safetensors")],
      [file(at("plain")), at("plain")],
      [file(at("new")), base],
      [file(join(path, "link", "new.gguf")), base],
      [claimedFolder(base), base],
      [claimedFolder(join(path, "link")), base],
      [claimedFolder(base), at("model.safetensors")],
      [claimedFolder(base), at("plain")],
      [gguf(base), at("model.gguf")],
    ];
    for (const [place, from] of refused) {
      const found = refuseOverwrite({ ...place, option: "svg" }, [join(path, "other"), from]);
      await assert.rejects(found, { name: "UsageError", message: /which is read too: another --svg is wanted/ }, from);
    }
    const allowed: [WrittenPlace, string][] = [
      [claimedFolder(at("adapter.v1")), base],
      [claimedFolder(base), at("model.gguf")],
      [gguf(base), at("model.safetensors")],
      [file(at("new.gguf")), at("model.gguf")],
      [file(join(path, "out")), base],
      [claimedFolder(base), "https://example.org/base.v2"],
    ];
    for (const [place, from] of allowed) await refuseOverwrite(place, [from]);
  });
});

test("a folder in place of a file is refused, and a file in place of a folder", async () => {
  await inTemporaryFolder(async (path) => {
    const file = join(path, "plain");
    writeFileSync(file, "");
    const refusal = (message: RegExp) => ({ name: "UsageError", message });
    const found = refuseOverwrite({ path, writes: null }, []);
    await assert.rejects(found, refusal(/is a folder: another --out, a file, is wanted/));
    await assert.rejects(
      refuseOverwrite(claimedFolder(file), []),
      refusal(/is a file: another --out, a folder, is wanted/),
    );
  });
});
