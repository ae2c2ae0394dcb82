// Milliseconds from the first import to an open backend, on the clock and on the processor: a fresh process each time.
import process from "node:process";

const [clock, cpu] = [performance.now(), process.cpuUsage()];
const { openBackend } = await import("@lowrank/lora");
await openBackend();
const { user, system } = process.cpuUsage(cpu);
console.log(JSON.stringify({ wall: performance.now() - clock, cpu: (user + system) / 1000 }));
