import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import type { Backend } from "../backend.ts";
import { openBackend } from "../open.ts";

/** What `--device` takes. */
export const DEVICES = ["auto", "wasm", "webgpu"] as const;

/** One of {@linkcode DEVICES}. */
export type DeviceChoice = typeof DEVICES[number];

/**
 * Opens what `--device` names; "auto" is left to the model, which knows how much there is to do.
 *
 * @throws {BackendUnavailableError} If there is none of that name.
 */
export async function openDevice(choice: DeviceChoice, threads: number | "auto"): Promise<Backend | undefined> {
  if (choice === "wasm") return await openBackend({ prefer: "wasm", threads });
  // Where it is not set, Mesa's drivers complain on stderr.
  if (process.platform === "linux") process.env.XDG_RUNTIME_DIR ??= tmpdir();
  await installWebGpu();
  return choice === "auto" ? undefined : await openBackend({ prefer: "webgpu" });
}

/** Gives Node and Bun the `navigator.gpu` of npm `webgpu`, where that is installed, as its readme does. */
async function installWebGpu(): Promise<void> {
  const { navigator } = globalThis as { navigator?: { gpu?: unknown } };
  const path = navigator && !navigator.gpu ? findPackage("webgpu") : null;
  if (path === null) return;
  const { create } = await import(pathToFileURL(path).href) as { create(flags: string[]): unknown };
  Object.defineProperty(navigator, "gpu", { value: create([]), configurable: true });
}

/** A package beside the project that the command runs in, or beside this one. */
function findPackage(name: string): string | null {
  for (const from of [join(process.cwd(), "package.json"), import.meta.url]) {
    try {
      return createRequire(from).resolve(name);
    } catch {
      continue;
    }
  }
  return null;
}
