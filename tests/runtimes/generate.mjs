// A folder with a model and a folder with a PEFT adapter in, the adapter's words out.
import process from "node:process";
import { folder } from "@lowrank/lora/fs";
import { loadModel } from "@lowrank/lora/models";

const [, , base, adapter, prompt] = process.argv;
const model = await loadModel(folder(base), { dtype: "f32" });
await model.loadAdapter("it", folder(adapter));
let text = "";
for await (const piece of model.generate(prompt, { adapter: "it", maxNewTokens: 8 })) text += piece;
model.dispose();
console.log(JSON.stringify(text));
