// Milliseconds from the first import to an open backend: a fresh process each time.
const start = performance.now();
const { openBackend } = await import("@lowrank/lora");
await openBackend({ prefer: "wasm" });
console.log(performance.now() - start);
