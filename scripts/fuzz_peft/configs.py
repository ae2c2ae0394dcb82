"""Adapter configs at random, over the fields of LoraConfig that a model of this kind can take."""

import re
from random import Random

import peft
from torch import nn
from transformers.pytorch_utils import Conv1D

TASKS = {"bert": "FEATURE_EXTRACTION", "bertcls": "SEQ_CLS", "modules": None}
ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D, nn.MultiheadAttention)
Config = dict


def some(rng: Random, items: list, least: int = 1, most: int = 4) -> list:
    items = sorted(set(items))
    return rng.sample(items, min(len(items), rng.randint(least, most)))


def paths_of(model: nn.Module, kinds=ADAPTABLE) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kinds) and name]


def leaf(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def tail(rng: Random, path: str) -> str:
    names = path.split(".")
    return ".".join(names[rng.randrange(len(names)):])


def alternatives(names: list[str]) -> str:
    return "|".join(re.escape(name) if "." in name else name for name in names)


def pattern_of(rng: Random, paths: list[str]) -> str:
    """A regular expression as people write them, over whole paths."""
    leaves = some(rng, [leaf(path) for path in paths])
    path = rng.choice(paths)
    one = re.sub(r"\d+", rng.choice([r"\\d+", r"[0-9]+", "[01]", "(0|2)", "."]), path.replace(".", r"\."))
    choices = [
        rf".*\.({alternatives(leaves)})", rf".*({alternatives(leaves)})$", rf"^.*\.(?:{alternatives(leaves)})$", one,
        rf"(?:.*?(?:model|layers|h).*?(?:self_attn|mlp|attn|attention).*?(?:{alternatives(leaves)})).*?",
        rf".*\.[02]\..*\.({alternatives(leaves)})", rf"{re.escape(path)}|.*\.{leaves[0]}", rf"(.*\.)?{leaves[0]}",
        rf".*{leaves[0][:2]}\w+", rf".*layers\.(0|1)\..*_proj", rf".*[._](q|k|v|o)_?proj$", rf".*\.[a-z]*_proj",
    ]
    return rng.choice(choices)


def key_of(rng: Random, paths: list[str]) -> str:
    """A key of rank_pattern or alpha_pattern."""
    path = rng.choice(paths)
    leaves = some(rng, [leaf(one) for one in paths])
    choices = [
        leaf(path), tail(rng, path), path, f"^{path}", path.replace(".", r"\."), f"^{path}$", rf".*\.{leaf(path)}",
        alternatives(leaves), f"({alternatives(leaves)})", re.sub(r"\d+", r"\\d+", path), ".*", leaf(path)[1:],
        r"layers\.0\..*", "0..*", r".*\.[1-9]\..*", f"{leaf(path)}.*", r"\w+_proj", "attn..*", "self_attn.(q|k)_proj",
    ]
    return rng.choice(choices)


def targets_of(rng: Random, paths: list[str], linear: list[str]) -> Config:
    kind = rng.random()
    pool = linear if linear and rng.random() < 0.7 else paths
    if kind < 0.4:
        return {"target_modules": some(rng, [leaf(path) for path in pool])}
    if kind < 0.55:
        return {"target_modules": some(rng, [tail(rng, path) for path in pool])}
    if kind < 0.65:
        return {"target_modules": some(rng, pool)}
    if kind < 0.9:
        return {"target_modules": pattern_of(rng, pool)}
    return {"target_modules": rng.choice(["all-linear", "ALL-LINEAR", "all-linear"])}


def narrowed(rng: Random, paths: list[str], config: Config) -> Config:
    more: Config = {}
    if rng.random() < 0.15:
        more["exclude_modules"] = rng.choice([
            some(rng, [tail(rng, path) for path in paths]), pattern_of(rng, paths), some(rng, paths),
        ])
    if rng.random() < 0.2 and isinstance(config["target_modules"], list):
        more["layers_to_transform"] = rng.choice([0, 1, [0], [1], [0, 2], [1, 2]])
        if rng.random() < 0.5:
            more["layers_pattern"] = rng.choice(["layers", ["layers"], ["h", "layers"], "h", ["layer"], "blocks", []])
    return more


def scales(rng: Random, paths: list[str]) -> Config:
    config: Config = {"r": rng.choice([1, 2, 3, 4, 6]), "lora_alpha": rng.choice([1, 2, 3, 4, 5.5, 8, 0.25, 8.0])}
    if rng.random() < 0.03:
        config["lora_alpha"] = rng.choice([0, -2])
    if rng.random() < 0.3:
        config["use_rslora"] = True
    if rng.random() < 0.35:
        config["rank_pattern"] = {key_of(rng, paths): rng.randint(1, 5) for _ in range(rng.randint(1, 3))}
    if rng.random() < 0.35:
        config["alpha_pattern"] = {key_of(rng, paths): rng.choice([1, 2.5, 3, 7]) for _ in range(rng.randint(1, 3))}
    return config


def variants(rng: Random, kind: str, model: nn.Module, paths: list[str]) -> Config:
    """At most one of what PEFT calls variants, and what goes with all of them."""
    more: Config = {}
    which = rng.random()
    leaves = sorted({leaf(path) for path in paths})
    if which < 0.2:
        more["use_dora"] = True
    elif which < 0.28:
        more["lora_bias"] = True
    elif which < 0.4:
        more["init_lora_weights"] = rng.choice([False, "gaussian", "orthogonal", "mica", "eva"])
    elif which < 0.5:
        more["init_lora_weights"] = rng.choice(["pissa", "pissa", "olora", "pissa_niter_3"])
    elif which < 0.54:
        more["kasa_config"] = {}
    elif which < 0.58:
        half = some(rng, leaves, 1, 3)
        rest = [name for name in leaves if name not in half]
        more["use_bdlora"] = {
            "nblocks": rng.choice([1, 2, 3]), "target_modules_bd_a": half, "target_modules_bd_b": rest[:2],
            "match_strict": rng.random() < 0.3,
        }
    elif which < 0.62:
        more[rng.choice(["velora_config", "monteclora_config"])] = {}
    elif which < 0.66 and TASKS.get(kind, "CAUSAL_LM") == "CAUSAL_LM":
        more["alora_invocation_tokens"] = [rng.randint(0, 4) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.1:
        more["bias"] = rng.choice(["all", "lora_only"])
    if rng.random() < 0.1:
        more["fan_in_fan_out"] = True
    if rng.random() < 0.1:
        more["lora_dropout"] = 0.1
    return more


def in_full(rng: Random, kind: str, model: nn.Module) -> Config:
    """modules_to_save, token rows, parameters, and copies of layers."""
    more: Config = {}
    tables = paths_of(model, nn.Embedding)
    everything = [name for name, _ in model.named_modules() if name]
    if rng.random() < 0.12:
        norms = [name for name in everything if re.search(r"norm|ln_|Norm", leaf(name))]
        pick = [*norms, "lm_head", *tables] if kind != "modules" else everything
        pick = pick or everything
        more["modules_to_save"] = some(rng, [rng.choice([leaf(name), tail(rng, name), name]) for name in pick], 1, 2)
    if rng.random() < 0.12 and tables:
        ids = sorted(rng.sample(range(20), rng.randint(1, 4))) if rng.random() < 0.7 else [3, 1, 2]
        named = {leaf(rng.choice(tables)): ids} | ({"lm_head": [0, 5]} if rng.random() < 0.3 else {})
        more["trainable_token_indices"] = rng.choice([ids, named])
    if kind == "mixtral" and rng.random() < 0.6:
        names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "experts.down_proj", "mlp.experts.gate_up_proj"]
        more["target_parameters"] = some(rng, names, 1, 2)
    elif rng.random() < 0.05:
        weights = [tail(rng, path) + ".weight" for path in paths_of(model, nn.Linear)]
        more["target_parameters"] = some(rng, weights, 1, 2)
    if kind not in ("modules", "bert", "bertcls", "gpt2") and rng.random() < 0.06:
        ranges = [[[0, 1], [0, 1]], [[0, 2], [1, 2]], [[0, 2], [0, 2]], [[1, 2], [0, 1]]]
        more["layer_replication"] = rng.choice(ranges)
    if rng.random() < 0.05:
        more["ensure_weight_tying"] = True
    return more


def random_config(rng: Random, kind: str, model: nn.Module, plain: bool = False) -> Config:
    paths = paths_of(model)
    linear = paths_of(model, (nn.Linear, Conv1D))
    config = targets_of(rng, paths, linear)
    config |= narrowed(rng, paths, config) | scales(rng, paths)
    if not plain:
        config |= variants(rng, kind, model, paths) | in_full(rng, kind, model)
        if "target_parameters" in config and rng.random() < 0.5:
            config["target_modules"] = []
    task = TASKS.get(kind, "CAUSAL_LM")
    return config | ({"task_type": task} if task else {})


def lora_config(config: Config) -> peft.LoraConfig:
    made = {
        "kasa_config": peft.tuners.lora.config.KasaConfig, "velora_config": peft.tuners.lora.config.VeloraConfig,
        "monteclora_config": peft.tuners.lora.config.MontecloraConfig,
        "use_bdlora": peft.tuners.lora.config.BdLoraConfig,
    }
    return peft.LoraConfig(**{
        key: made[key](**value) if key in made and isinstance(value, dict) else value for key, value in config.items()
    })
