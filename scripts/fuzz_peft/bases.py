"""Small base models at random: language models and encoders of transformers, and plain modules of torch."""

from pathlib import Path
from random import Random

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

LANGUAGE = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "mixtral"]
ENCODERS = ["bert", "bertcls"]


def sizes(rng: Random) -> dict:
    heads = rng.choice([1, 2, 3, 4, 6])
    return {
        "vocab_size": rng.randint(24, 90),
        "hidden_size": heads * rng.randint(2, 12),
        "intermediate_size": rng.randint(5, 50),
        "num_hidden_layers": rng.choice([1, 2, 2, 3]),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        "head_dim": rng.choice([2, 4, 6, 8, 12]),
        "max_position_embeddings": 64,
        "tie_word_embeddings": rng.random() < 0.4,
        "rms_norm_eps": rng.choice([1e-6, 1e-5]),
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def rope(rng: Random) -> dict:
    theta = rng.choice([1e4, 1e6, 500.0])
    kind = rng.choice(["default", "default", "linear", "llama3"])
    more = {"default": {}, "linear": {"factor": 2.0}}.get(kind)
    if more is None:
        more = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def config_of(kind: str, rng: Random) -> transformers.PretrainedConfig:
    own = sizes(rng)
    window = rng.choice([None, 2, 3, 5])
    if kind == "llama":
        bias = {"attention_bias": rng.random() < 0.3, "mlp_bias": rng.random() < 0.3}
        return transformers.LlamaConfig(**own, **rope(rng), **bias)
    if kind == "mistral":
        return transformers.MistralConfig(**own, **rope(rng), sliding_window=window)
    if kind in ("qwen2", "qwen3"):
        layers = own["num_hidden_layers"]
        slide = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": rng.randint(0, layers)}
        make = transformers.Qwen2Config if kind == "qwen2" else transformers.Qwen3Config
        bias = {"attention_bias": rng.random() < 0.3} if kind == "qwen3" else {}
        return make(**own, **rope(rng), **bias, **(slide if rng.random() < 0.3 else {}))
    if kind == "mixtral":
        experts = rng.choice([2, 3, 4, 5])
        own |= {"num_local_experts": experts, "num_experts_per_tok": rng.randint(1, min(3, experts))}
        return transformers.MixtralConfig(**own, **rope(rng), sliding_window=window)
    width = own["num_attention_heads"] * rng.choice([2, 4, 6, 8, 12])
    if kind == "gpt2":
        names = {"n_embd": width, "n_layer": own["num_hidden_layers"], "n_head": own["num_attention_heads"]}
        inner = rng.choice([None, own["intermediate_size"]])
        act = rng.choice(["gelu_new", "gelu"])
        tie = rng.random() < 0.7
        ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
        return transformers.GPT2Config(
            vocab_size=own["vocab_size"], n_positions=64, n_inner=inner, activation_function=act,
            tie_word_embeddings=tie, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, **names, **ids,
        )
    labels = {"num_labels": rng.randint(2, 6)} if kind == "bertcls" else {}
    return transformers.BertConfig(
        vocab_size=own["vocab_size"], hidden_size=width, num_hidden_layers=own["num_hidden_layers"],
        num_attention_heads=own["num_attention_heads"], intermediate_size=own["intermediate_size"],
        max_position_embeddings=64, hidden_act=rng.choice(["gelu", "gelu_new"]), **labels,
    )


def class_of(kind: str):
    if kind == "bert":
        return transformers.AutoModel
    return transformers.AutoModelForSequenceClassification if kind == "bertcls" else transformers.AutoModelForCausalLM


def randomise(model: nn.Module) -> None:
    """Nothing is near zero, and no norm is one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1:
                parameter.copy_(noise * 0.2)
            elif "norm" in name.lower() or ".ln_" in name:
                parameter.copy_(noise * 0.1 + (1 if name.endswith("weight") else 0))
            else:
                parameter.copy_(noise * 0.1)


def make_base(kind: str, rng: Random, folder: Path, dtype: torch.dtype) -> None:
    model = class_of(kind).from_config(config_of(kind, rng), attn_implementation="eager")
    randomise(model)
    model.to(dtype).save_pretrained(folder)


def load_base(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    if kind == "modules":
        net = Net(Random((folder / "net.seed").read_text()))
        net.load_state_dict(load_file(folder / "model.safetensors"))
        return net.to(dtype).eval()
    more = {"experts_implementation": "eager"} if kind == "mixtral" else {}
    return class_of(kind).from_pretrained(folder, dtype=dtype, attn_implementation="eager", **more).eval()


PATHS = [
    "{leaf}", "blocks.{i}.{leaf}", "model.layers.{i}.attn.{leaf}", "encoder.layers.{i}.{leaf}", "lora_net.{leaf}",
    "layers.{i}.{leaf}", "weight.{leaf}", "stack.{i}.stack.{j}.{leaf}", "base_layer.{leaf}",
]
LEAVES = ["q_proj", "v_proj", "fc", "fc1", "emb", "conv", "conv_in", "dense", "proj_out", "lora_fc", "to_q", "word"]


class Net(nn.Module):
    """Layers of several kinds under several paths; each is called on an input of its own."""

    def __init__(self, rng: Random):
        super().__init__()
        self.layers_by_path: dict[str, dict] = {}
        # Of a square weight among others of both orientations nothing tells which it has.
        mixed = ["linear", "linear", "attention", "embedding", "conv"]
        kinds = rng.choice([mixed, mixed, mixed, ["linear", "embedding", "conv"], ["conv1d", "embedding", "conv"]])
        for _ in range(rng.randint(2, 6)):
            path = rng.choice(PATHS).format(leaf=rng.choice(LEAVES), i=rng.randint(0, 3), j=rng.randint(0, 2))
            if path in self.layers_by_path or not self.is_free(path):
                continue
            layer, spec = random_layer(rng, rng.choice(kinds))
            self.put(path, layer)
            self.layers_by_path[path] = spec

    def is_free(self, path: str) -> bool:
        known = self.layers_by_path
        return not any(other.startswith(path + ".") or path.startswith(other + ".") for other in known)

    def put(self, path: str, layer: nn.Module) -> None:
        module = self
        *names, leaf = path.split(".")
        for name in names:
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module._modules[name]
        module.add_module(leaf, layer)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = {}
        for path in self.layers_by_path:
            layer = self.get_submodule(path)
            x = inputs[path]
            y = layer(x, x, x)[0] if self.layers_by_path[path]["kind"] == "attention" else layer(x)
            outputs[path] = y
        return outputs


def random_layer(rng: Random, kind: str) -> tuple[nn.Module, dict]:
    n, m = rng.randint(1, 17), rng.randint(1, 17)
    if kind == "linear":
        return nn.Linear(n, m, bias=rng.random() < 0.6), {"kind": kind, "input": [rng.randint(1, 5), n]}
    if kind == "conv1d":  # as GPT-2 has them
        return Conv1D(m, n), {"kind": kind, "input": [rng.randint(1, 5), n]}
    if kind == "embedding":
        rows, padding = rng.randint(3, 30), rng.choice([None, 0, 2])
        return nn.Embedding(rows, m, padding_idx=padding), {"kind": kind, "ids": rows, "padding": padding}
    if kind == "attention":
        width = rng.choice([2, 4, 6, 12])
        layer = nn.MultiheadAttention(width, 2, bias=rng.random() < 0.7, batch_first=True)
        return layer, {"kind": kind, "input": [2, 3, width]}
    dimensions = rng.choice([1, 2, 2, 3])
    groups = rng.choice([1, 1, 1, 2, 3])
    each = lambda low, high: [rng.randint(low, high) for _ in range(dimensions)]  # noqa: E731
    kernel = rng.choice([[1] * dimensions, each(1, 3)])
    dilation = rng.choice([[1] * dimensions] * 5 + [each(1, 2)])
    spec = {
        "kind": kind, "stride": each(1, 2), "padding": each(0, 2), "dilation": dilation, "groups": groups,
        "paddingMode": rng.choice(["zeros"] * 5 + ["reflect", "replicate", "circular"]),
        "input": [2, groups * rng.randint(1, 4), *[rng.randint(5, 7) for _ in range(dimensions)]],
    }
    make = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dimensions - 1]
    layer = make(
        spec["input"][1], groups * rng.randint(1, 4), kernel, stride=spec["stride"], padding=spec["padding"],
        dilation=dilation, groups=groups, padding_mode=spec["paddingMode"], bias=rng.random() < 0.6,
    )
    return layer, spec


def make_modules(seed: str, folder: Path, dtype: torch.dtype) -> None:
    net = Net(Random(seed))
    randomise(net)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.seed").write_text(seed)
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in net.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def net_inputs(net: Net) -> dict[str, torch.Tensor]:
    inputs = {}
    for path, spec in net.layers_by_path.items():
        is_table = spec["kind"] == "embedding"
        inputs[path] = torch.randint(0, spec["ids"], (4, 3)) if is_table else torch.randn(spec["input"])
    return inputs
