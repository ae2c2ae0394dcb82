"""PEFT loads what this package writes: python3 scripts/check_with_peft.py FOLDER, with the packages of setup_peft.sh.

FOLDER comes from scripts/write_for_peft.ts. Of every case PEFT must load the adapter without a warning and without a
missing or unexpected key, its unmerged model must answer as the model that this package merged, and the weights that
it merges must be those that this package merged: 2e-5 of the largest value.
"""

import json
import logging
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
from safetensors.torch import load_file
from torch import nn

TOLERANCE = 2e-5
MODELS = {
    "BertForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "BertModel": transformers.AutoModel,
}


class ConvNet(nn.Module):
    """The five layers of tests/fixtures/base/conv, each called on its own."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(5, 6, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(4, 6, (3, 5), stride=(1, 2), padding=(1, 2))
        self.point = nn.Conv2d(4, 7, 1)
        self.conv3 = nn.Conv3d(3, 6, 3, padding=1, bias=False)
        self.head = nn.Linear(9, 4)

    def forward(self):
        shapes = {"conv1": (2, 5, 11), "conv2": (2, 4, 7, 9), "point": (2, 4, 7, 9), "conv3": (2, 3, 5, 5, 5)}
        torch.manual_seed(0)
        outputs = [getattr(self, name)(torch.randn(shape)) for name, shape in shapes.items()]
        return torch.cat([output.flatten() for output in [*outputs, self.head(torch.randn(3, 9))]])


def load_model(folder: Path) -> nn.Module:
    if not (folder / "config.json").exists():
        model = ConvNet()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()
    [architecture] = json.loads((folder / "config.json").read_text())["architectures"]
    kind = MODELS.get(architecture, transformers.AutoModelForCausalLM)
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def answer(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        if isinstance(base, ConvNet):
            return base()
        ids = torch.tensor([[(7 * row + 3 * place) % 90 + 3 for place in range(11)] for row in range(3)])
        output = model(input_ids=ids)
        return output.logits if "logits" in output else output.last_hidden_state


class Complaints(logging.Handler):
    """Collects what libraries log from warnings on."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def load_adapter(model: nn.Module, folder: Path) -> tuple[PeftModel, list[str]]:
    complaints = Complaints()
    for name in ("peft", "transformers", ""):
        logging.getLogger(name).addHandler(complaints)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # What libraries say about each other is not about the adapter.
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)
        wrapped = PeftModel.from_pretrained(model, folder)
    for name in ("peft", "transformers", ""):
        logging.getLogger(name).removeHandler(complaints)
    texts = [f"warning: {one.message}" for one in caught] + [f"log: {text}" for text in complaints.texts]
    stored = {name: tensor.float() for name, tensor in load_peft_weights(folder, device="cpu").items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT takes every one-dimensional bias of B for a broken save
        loaded = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    for name, tensor in stored.items():
        if "embed_tokens.base_layer" in name:  # the whole base table, which PEFT saves beside the factors of its layer
            continue
        if name not in loaded:
            texts.append(f"unexpected key {name}")
        elif not torch.equal(loaded[name].float(), tensor):
            texts.append(f"{name} has other values than the file")
    # With bias "all" PEFT lists the biases of a module in modules_to_save twice more, under the names of its wrapper.
    twice = (".original_module.", ".modules_to_save.")
    texts += [f"missing key {name}" for name in loaded if name not in stored and not any(part in name for part in twice)]
    return wrapped.eval(), texts


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)).item()


def check(folder: Path) -> tuple[float, list[str]]:
    case = json.loads((folder / "case.json").read_text())
    model, problems = load_adapter(load_model(Path(case["base"])), folder / "adapter")
    ours = load_model(folder / "merged")
    worst = distance(answer(model), answer(ours))
    if worst > TOLERANCE:
        problems.append(f"outputs differ by {worst:.1e}")
    merged = model.merge_and_unload().state_dict()
    for name, tensor in ours.state_dict().items():
        difference = distance(merged[name].float(), tensor.float())
        worst = max(worst, difference)
        if difference > TOLERANCE:
            problems.append(f"merged {name} differs by {difference:.1e}")
    return worst, problems


def main() -> int:
    transformers.utils.logging.disable_progress_bar()
    folders = sorted(path.parent for path in Path(sys.argv[1]).glob("*/case.json"))
    failed = 0
    for folder in folders:
        worst, problems = check(folder)
        failed += bool(problems)
        print(f"{folder.name}: {'; '.join(problems) or f'as PEFT, to {worst:.0e}'}", flush=True)
    print(f"PEFT loads {len(folders) - failed} of {len(folders)} adapters as they are meant")
    return 1 if failed or not folders else 0


sys.exit(main())
