import { answer } from "./layer.mjs";

console.log(JSON.stringify(await answer({ prefer: "wasm" })));
