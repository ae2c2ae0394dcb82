// workerd compiles no bytes: the kernels come as a module that was compiled when the worker was deployed.
import kernels from "@lowrank/lora/kernels.wasm";
import { openBackend } from "@lowrank/lora";
import { answer } from "./layer.mjs";

export default {
  async test() {
    const answers = JSON.stringify(await answer({ wasm: kernels }));
    if (answers !== "[7,14,14]") throw new Error(`expected [7,14,14], got ${answers}`);
    const { info } = await openBackend({ prefer: "wasm", wasm: kernels, threads: "auto" });
    if (info.threads !== 1 || !/; one thread: /.test(info.reason)) throw new Error(JSON.stringify(info));
  },
};
