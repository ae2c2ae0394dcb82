/** A folder that ends with the test. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Gives `body` an empty folder. */
export async function inTemporaryFolder(body: (path: string) => Promise<void>): Promise<void> {
  const path = mkdtempSync(join(tmpdir(), "lora-"));
  try {
    await body(path);
  } finally {
    rmSync(path, { recursive: true });
  }
}
