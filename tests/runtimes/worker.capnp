using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (services = [(name = "main", worker = (
  compatibilityDate = "2026-06-01",
  modules = [
    (name = "worker", esModule = embed "worker.js"),
    (name = "@lowrank/lora/kernels.wasm", wasm = embed "kernels.wasm"),
  ],
))]);
