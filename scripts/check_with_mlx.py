"""mlx-lm's side of scripts/check_with_mlx.ts: python3 scripts/check_with_mlx.py FOLDER, with the packages of setup_mlx.sh.

Every folder with a `case.json` in FOLDER has an adapter of this package, over `base`. mlx-lm loads it; its logits go
into `logits.safetensors`, and those after mlx-lm's own fuse. Every folder with a `train.json` gets the adapter that
mlx-lm trains for some steps, as its trainer writes it, and its logits.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model, save_config

# Compiled functions would want a C++ compiler on this machine.
mx.disable_compile()


def write_logits(folder: Path, model: nn.Module, ids: mx.array) -> None:
    model.eval()
    adapted = model(ids)
    fused = [(name, module.fuse()) for name, module in model.named_modules() if hasattr(module, "fuse")]
    model.update_modules(tree_unflatten(fused))
    mx.save_safetensors(str(folder / "logits.safetensors"), {"adapted": adapted, "fused": model(ids)})


def check(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text())
    model, _ = load_model(Path(case["base"]))
    load_adapters(model, str(folder / "adapter"))
    write_logits(folder, model, mx.array(case["ids"]))


def train(folder: Path) -> None:
    case = json.loads((folder / "train.json").read_text())
    config = case["config"]
    mx.random.seed(0)
    model, _ = load_model(Path(case["base"]))
    model.freeze()
    linear_to_lora_layers(model, config["num_layers"], config["lora_parameters"], config["fine_tune_type"] == "dora")
    ids = mx.array(case["ids"])
    step = nn.value_and_grad(model, lambda m: nn.losses.cross_entropy(m(ids[:, :-1]), ids[:, 1:]).mean())
    optimizer = optim.Adam(learning_rate=1e-2)
    for _ in range(5):
        _, gradients = step(model)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
    adapter = folder / "adapter"
    adapter.mkdir()
    # As mlx-lm's trainer does it.
    mx.save_safetensors(str(adapter / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    save_config(config, adapter / "adapter_config.json")
    write_logits(folder, model, ids)


def main() -> None:
    for kind, run in (("case.json", check), ("train.json", train)):
        for path in sorted(Path(sys.argv[1]).glob(f"*/{kind}")):
            try:
                run(path.parent)
            except Exception as error:  # the other side tells it as that of this case
                (path.parent / "error.txt").write_text(f"{type(error).__name__}: {error}")


main()
