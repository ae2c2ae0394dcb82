"""What is compared: each room makes a case and says what PEFT makes of it."""

import math
import re
from pathlib import Path
from random import Random

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import bases
from configs import Config, lora_config, random_config
from truth import (
    Refused, answers, answers64, begin, distance, inputs_for, load_adapter, make_adapter, make_random, merged_weights,
    refuse, save, write_inputs,
)


def make_alone(kind: str, seed: str, folder: Path) -> dict:
    """One adapter: its answers, and what merging it gives."""
    rng, base = begin(kind, seed, folder)
    plain = bases.load_base(kind, base)
    config, trained = make_random(kind, rng, base, folder / "adapter")
    inputs = inputs_for(kind, rng, plain)
    first = answers64(trained.eval().double(), inputs)
    model = load_adapter(kind, base, {"default": folder / "adapter"})
    single = refuse("run", lambda: answers(model, inputs))
    model, plain = model.double(), plain.double()
    before, after = answers64(plain, inputs), answers64(model, inputs)
    case = {"config": config, "rounding": distance(single, after), "reread": distance(first, after)}
    tensors = write_inputs(inputs) | {f"base.{name}": y for name, y in before.items()}
    tensors |= {f"adapted.{name}": y for name, y in after.items()}
    tensors |= {f"trained.{name}": y for name, y in first.items()}
    try:
        changed, gap = merged_weights(model, plain, inputs, after)
        tensors |= {f"merged.{name}": tensor.double() for name, tensor in changed.items()}
        case |= {"gap": gap}
    except Exception as error:  # noqa: BLE001
        case |= {"merge": f"{type(error).__name__}: {str(error)[:200]}"}
    if kind == "modules":
        case["layers"] = plain.layers_by_path
    return save(folder, tensors, case)


def set_active(model: PeftModel, weights: dict[str, float]) -> None:
    model.base_model.set_adapter(list(weights))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, weight in weights.items():
                module.set_scale(name, weight)


def only_factors(config: Config) -> Config:
    """Without what PEFT cannot have of two adapters at once, or what is another room's."""
    whole = ("modules_to_save", "trainable_token_indices")
    return beside_others({key: value for key, value in config.items() if key not in whole})


def beside_others(config: Config) -> Config:
    whole = ("layer_replication", "bias", "target_parameters")
    kept = {key: value for key, value in config.items() if key not in whole}
    if kept.get("task_type") == "SEQ_CLS":  # which saves the classifier in full
        del kept["task_type"]
    # PEFT finds the invocation of one adapter only, and changes the base of all.
    if "alora_invocation_tokens" in kept or re.match("pissa|olora", str(kept.get("init_lora_weights"))):
        raise Refused("several: not beside others")
    return kept | ({} if kept["target_modules"] else {"target_modules": "all-linear"})


def add_mix(rng: Random, model: PeftModel, plain: nn.Module, inputs, case: dict) -> dict:
    """The sum of all adapters with weights, and what merging it gives."""
    case["weights"] = {name: rng.choice([1.0, 0.5, -0.75, 2.0]) for name in case["names"]}
    set_active(model, case["weights"])
    mix = answers64(model, inputs)
    tensors = {f"mix.{key}": y for key, y in mix.items()}
    try:
        changed, case["gap"] = merged_weights(model, plain.double(), inputs, mix)
        return tensors | {f"merged.{name}": tensor.double() for name, tensor in changed.items()}
    except Exception as error:  # noqa: BLE001
        case["merge"] = f"{type(error).__name__}: {str(error)[:200]}"
        return tensors


def make_several(kind: str, seed: str, folder: Path) -> dict:
    """Up to three adapters: each alone, all at once with weights, and another one per row."""
    rng, base = begin(kind, seed, folder)
    plain = bases.load_base(kind, base)
    if kind == "modules" and any(layer["kind"] == "attention" for layer in plain.layers_by_path.values()):
        raise Refused("several: an attention that is adapted whole by one, and its projection by another")
    names = ["a", "b", "c"][: rng.randint(2, 3)]
    configs = {}
    # Of what is held in full PEFT has one adapter's at a time.
    is_whole = kind != "modules" and rng.random() < 0.3
    change = beside_others if is_whole else only_factors
    for name in names:
        plainly = not is_whole and rng.random() < 0.6
        configs[name], _ = make_random(kind, rng, base, folder / name, change, plain=plainly)
    inputs = inputs_for(kind, rng, plain)
    model = load_adapter(kind, base, {name: folder / name for name in names}).double()
    tensors = write_inputs(inputs)
    for name in names:
        refuse("set", lambda: model.set_adapter(name))
        tensors |= {f"{name}.{key}": y for key, y in answers64(model, inputs).items()}
    case = {"configs": configs, "names": names}
    if not is_whole:
        tensors |= add_mix(rng, model, plain, inputs, case)
    if kind != "modules":
        if not is_whole:
            set_active(model, {name: 1.0 for name in names})
        rows = [rng.choice(["__base__", *names]) for _ in range(inputs.shape[0])]
        try:
            tensors |= {f"rows.{key}": y for key, y in answers64(model, inputs, adapter_names=rows).items()}
            case["rows"] = rows
        except Refused as error:
            case["rows_refused"] = str(error)
    else:
        case["layers"] = plain.layers_by_path
    return save(folder, tensors, case)


METHODS = [
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
]


def make_combined(kind: str, seed: str, folder: Path) -> dict:
    """What add_weighted_adapter makes of adapters, as updates of the weights."""
    rng, base = begin(kind, seed, folder)
    plain = bases.load_base(kind, base)
    names = ["a", "b", "c"][: rng.randint(2, 3)]
    configs = {}
    shared, _ = make_random(kind, rng, base, folder / "shared", only_factors, plain=True)
    method = rng.choice(METHODS)
    for name in names:
        own = only_factors(random_config(rng, kind, plain, plain=True))
        config = shared | {key: own[key] for key in ("lora_alpha", "use_rslora", "alpha_pattern") if key in own}
        if method in ("cat", "svd") or method.endswith("_svd"):
            config |= {key: own[key] for key in ("r", "rank_pattern") if key in own}
            if rng.random() < 0.3:
                config = own
        configs[name] = config
        # No two values are equal, of which pruning could keep either.
        make_adapter(kind, rng, base, config, folder / name, dtypes=("F32",))
    model = load_adapter(kind, base, {name: folder / name for name in names}).double()
    options: dict = {"combination_type": method}
    if "svd" in method:  # absent, PEFT takes the largest rank of all modules, and we that of the module
        options["svd_rank"] = rng.randint(1, 6)
    if "ties" in method or "prune" in method or "dare" in method:
        options["density"] = 1.0 if "dare" in method else rng.choice([0.2, 0.5, 0.75, 1.0])
    if "ties" in method:
        options["majority_sign_method"] = rng.choice(["total", "frequency"])
    weights = {name: rng.choice([1.0, 0.7, -0.4, 1.5]) for name in names}
    refuse("combine", lambda: model.add_weighted_adapter(names, list(weights.values()), "out", **options))
    is_rslora = bool(configs["a"].get("use_rslora"))
    tensors = {}
    for path, module in model.base_model.model.named_modules():
        # Paths with "lora_" in them PEFT takes for its own, and leaves out.
        if not isinstance(module, LoraLayer) or "lora_" in path:
            continue
        if isinstance(module.get_base_layer(), nn.MultiheadAttention):
            raise Refused("delta: a whole attention")
        if "out" in module.lora_A or "out" in module.lora_embedding_A:
            with torch.no_grad():
                delta = refuse("delta", lambda: module.get_delta_weight("out"))
                delta = delta.T if isinstance(module.get_base_layer(), Conv1D) else delta
            # The result keeps use_rslora of the first adapter, which scales it by the root of its rank.
            tensors[path] = delta / (math.sqrt(module.r["out"]) if is_rslora else 1)
    return save(folder, tensors, {"configs": configs, "names": names, "weights": weights, "options": options})


def layers_of(model: PeftModel) -> dict:
    found = {}
    for path, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.scaling:
            found[path] = [module.r["default"], module.scaling["default"]]
    return found


def make_targets(kind: str, seed: str, folder: Path) -> dict:
    """Which layers a config adapts, with which rank and scale."""
    rng, base = begin(kind, seed, folder)
    plain = bases.load_base(kind, base)
    config = random_config(rng, kind, plain, plain=True)
    if kind == "modules" and any(layer["kind"] == "attention" for layer in plain.layers_by_path.values()):
        raise Refused("create: a whole attention")
    modules = []
    for name, module in plain.named_modules():
        weight = getattr(module, "weight", None)
        if not name or weight is None or weight.dim() < 2:
            continue
        shape, layer = list(weight.shape), type(module).__name__
        if layer == "Embedding":
            modules.append({"name": name, "kind": "embedding", "inFeatures": shape[0], "outFeatures": shape[1]})
        elif layer == "Conv1D":
            modules.append({"name": name, "inFeatures": shape[0], "outFeatures": shape[1]})
        elif layer == "Linear":
            modules.append({"name": name, "inFeatures": shape[1], "outFeatures": shape[0]})
        elif layer.startswith("Conv"):
            modules.append({"name": name, "kind": "conv", "inFeatures": module.in_channels,
                            "outFeatures": shape[0], "kernel": shape[2:], "groups": module.groups})
    if kind == "mixtral":  # whose targets PEFT rewrites
        raise Refused("create: experts")
    case = {"config": config, "modules": modules}
    try:
        case["adapted"] = layers_of(refuse("wrap", lambda: get_peft_model(plain, lora_config(config))))
    except Refused as error:
        case["refused"] = str(error)
    return save(folder, {"none": torch.zeros(1)}, case)


def read_back(kind: str, folder: Path) -> dict:
    """What PEFT makes of an adapter that this package saved."""
    model = load_adapter(kind, folder / "base", {"default": folder / "saved"})
    adapted = layers_of(model)
    expected = load_file(folder / "expected.safetensors")
    wanted = {name[8:]: y for name, y in expected.items() if name.startswith("adapted.")}
    inputs = {name[6:]: x for name, x in expected.items() if name.startswith("input.")} or expected.get("input_ids")
    return {"adapted": adapted, "distance": distance(answers64(model.double(), inputs), wanted) if wanted else 0}
