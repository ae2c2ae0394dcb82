"""What PEFT computes, in float64."""

import copy
import json
import math
from pathlib import Path
from random import Random

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

import bases
from configs import Config, lora_config, random_config

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Refused(Exception):
    """PEFT does not take this case."""


class Float64(TorchFunctionMode):
    """Norms, softmax and rotary angles are in float64 too, which transformers computes in float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        wide = lambda x: torch.float64 if x is torch.float32 else x  # noqa: E731
        return func(*[wide(x) for x in args], **{key: wide(x) for key, x in (kwargs or {}).items()})


def refuse(step: str, action):
    try:
        return action()
    except Exception as error:  # noqa: BLE001
        raise Refused(f"{step}: {type(error).__name__}: {str(error)[:200]}") from error


def train(model: nn.Module, config: Config) -> None:
    """All that trains gets values that show; what begins from the base moves from there."""
    moves = isinstance(config.get("init_lora_weights"), str) or "kasa_config" in config
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or "monteclora_sampler" in name:
                continue
            noise = torch.randn_like(parameter)
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * noise)
            elif "lora_" in name and not moves:
                parameter.copy_(noise * (0.3 if "A" in name.split("lora_")[-1] else 0.2))
            else:
                parameter.add_(0.1 * noise)


def make_adapter(
    kind: str, rng: Random, base: Path, config: Config, folder: Path, dtypes=("F32", "F32", "F32", "BF16", "F16")
) -> PeftModel:
    """Trains an adapter by chance and saves it as PEFT does."""
    model = refuse("wrap", lambda: get_peft_model(bases.load_base(kind, base), lora_config(config)))
    train(model, config)
    dtype = DTYPES[rng.choice(dtypes)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(dtype)
    refuse("save", lambda: model.save_pretrained(folder, safe_serialization=rng.random() < 0.85))
    return model


def make_random(
    kind: str, rng: Random, base: Path, folder: Path, change=lambda config: config, plain=False
) -> tuple[Config, PeftModel]:
    """Draws configs until PEFT takes one."""
    model = bases.load_base(kind, base)
    for last in [False] * 9 + [True]:
        try:
            config = change(random_config(rng, kind, model, plain=plain))
            return config, make_adapter(kind, rng, base, config, folder)
        except Refused:
            if last:
                raise
    raise AssertionError


def load_adapter(kind: str, base: Path, adapters: dict[str, Path]) -> PeftModel:
    model = bases.load_base(kind, base)
    for name, folder in adapters.items():
        if isinstance(model, PeftModel):
            refuse("load", lambda: model.load_adapter(folder, adapter_name=name))
        else:
            model = refuse("load", lambda: PeftModel.from_pretrained(model, folder, adapter_name=name))
    return model.eval()


def answers(model: nn.Module, inputs, **options) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        if not isinstance(inputs, dict):
            output = model(input_ids=inputs, **options)
            return {"output": output.logits if "logits" in output else output.last_hidden_state}
        dtype = next(model.parameters()).dtype
        cast = {path: x.to(dtype) if x.is_floating_point() else x for path, x in inputs.items()}
        return model(cast, **options)


def answers64(model: nn.Module, inputs, **options) -> dict[str, torch.Tensor]:
    with Float64():
        return {name: y.double() for name, y in refuse("run", lambda: answers(model, inputs, **options)).items()}


def distance(got: dict, wanted: dict) -> float:
    worst = 0.0
    for name, value in wanted.items():
        size = value.abs().max().clamp(min=1e-30)
        worst = max(worst, ((got[name].double() - value).abs().max() / size).item())
    return worst if math.isfinite(worst) else math.inf


def merged_weights(model: PeftModel, base: nn.Module, inputs, wanted: dict) -> tuple[dict, float]:
    """The weights that PEFT's merge changes, and how far the merged model is from the unmerged one."""
    merged = copy.deepcopy(model).merge_and_unload()
    before = base.state_dict()
    changed = {
        name: tensor for name, tensor in merged.state_dict().items()
        if name not in before or before[name].shape != tensor.shape or not torch.equal(before[name].double(), tensor)
    }
    return changed, distance(answers64(merged, inputs), wanted)


def inputs_for(kind: str, rng: Random, base: nn.Module):
    if kind == "modules":
        return bases.net_inputs(base)
    return torch.randint(0, min(base.config.vocab_size, 24), (rng.randint(2, 4), rng.randint(2, 9)))


def write_inputs(inputs) -> dict[str, torch.Tensor]:
    if not isinstance(inputs, dict):
        return {"input_ids": inputs}
    return {f"input.{path}": x if x.dtype == torch.int64 else x.double() for path, x in inputs.items()}


def save(folder: Path, tensors: dict[str, torch.Tensor], case: dict) -> dict:
    owned = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(owned, folder / "expected.safetensors")
    (folder / "case.json").write_text(json.dumps(case, indent=1))
    return case


def begin(kind: str, seed: str, folder: Path) -> tuple[Random, Path]:
    rng = Random(seed)
    torch.manual_seed(rng.getrandbits(40))
    dtype = DTYPES[rng.choice(["F32", "F32", "F32", "BF16", "F16"])]
    base = folder / "base"
    if kind == "modules":
        bases.make_modules(seed, base, dtype)
    else:
        bases.make_base(kind, rng, base, dtype)
    return rng, base
