/** The tests of threads as one page: `runTests()` runs them, `openInfo()` tells what two threads come to here. */
import "../threads_test.ts";
import { openBackend } from "../../src/open.ts";
import { runAll } from "./node_test.ts";

Object.assign(globalThis, {
  runTests: runAll,
  openInfo: async () => (await openBackend({ prefer: "wasm", threads: 2 })).info,
});
