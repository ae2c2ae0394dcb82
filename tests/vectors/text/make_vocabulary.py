"""Writes vocabulary.json.gz: what transformers says of folders without tokenizer.json, for the texts of expected.json.gz.

pip install tokenizers==0.23.3 transformers==5.23.0
python make_vocabulary.py
"""
import gzip
import json
import os
import tempfile

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))


def read(path):
    with gzip.open(path) as file:
        return json.load(file)


texts = [text for text, _, _ in read(f"{HERE}/expected.json.gz")["tiny"]["rows"]]
texts += ["[CLS] a [SEP][MASK] <m><x>hello", "𠀀𪜀𫜀 漢字kanji", "ΟΔΥΣΣΕΥΣ ΣΑΣ ÉCOLE école e\u0301", "a" * 101]
texts += ["a\u0000b\u00adc\ufffdd\u200be\u0085f\u3000g", "<s>a <mask> b</s><|endoftext|> <pad>x <new> y", "it's IT'S 12345 ½"]
with open(f"{HERE}/../../../examples/models/tiny/texts.json") as file:
    corpus = texts * 3 + [text for kind in json.load(file).values() for text in kind]

pieces = list(read(f"{HERE}/bert.json.gz")["uncased"]["file"]["model"]["vocab"])
cased = list(read(f"{HERE}/bert.json.gz")["cased"]["file"]["model"]["vocab"])
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
alphabet = pre_tokenizers.ByteLevel.alphabet()
bpe.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
model = json.loads(bpe.to_str())["model"]
tokens = sorted(model["vocab"], key=model["vocab"].get)
merges = "#version: 0.2\n" + "".join(f"{' '.join(merge)}\n" for merge in model["merges"])


def added(content, special=True, **more):
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": not special}
    return {"content": content, "special": special, **flags, **more}


def words(vocab=pieces, model_type="bert", **files):
    text = "".join(f"{token}\n" for token in vocab)
    return {"vocab.txt": text, "config.json": {"model_type": model_type}, **{name + ".json": value for name, value in files.items()}}


def pairs(first=(), last=(), model_type="gpt2", **files):
    vocab = {token: i for i, token in enumerate([*first, *tokens, *last])}
    return {
        "vocab.json": vocab,
        "merges.txt": merges,
        "config.json": {"model_type": model_type},
        **{name + ".json": value for name, value in files.items()},
    }


MASK = added("[MASK]", lstrip=True)
END = "<|endoftext|>"
folders = {
    "bert": words(),
    "bert cased": words(cased, tokenizer_config={"do_lower_case": False}),
    "bert accents": words(tokenizer_config={"strip_accents": False, "tokenize_chinese_chars": False}),
    "bert stripped": words(cased, tokenizer_config={"do_lower_case": False, "strip_accents": True}),
    "bert class": words(model_type="gpt2", tokenizer_config={"tokenizer_class": "BertTokenizerFast", "cls_token": "[SEP]"}),
    "bert special": words(
        special_tokens_map={"mask_token": "<m>", "unk_token": "[UNK]", "additional_special_tokens": ["<x>", "*", ">"]}
    ),
    "bert objects": words(
        added_tokens={"<new>": len(pieces)}, tokenizer_config={"mask_token": {"__type": "AddedToken", **MASK}}
    ),
    "bert decoder": words(
        tokenizer_config={
            "added_tokens_decoder": {str(len(pieces)): added("<new>", False), str(pieces.index("[MASK]")): MASK}
        }
    ),
    "bert lines": {
        **words(),
        "vocab.txt": "".join(f"{token}{end}" for token, end in zip(pieces, ["\r\n", " \n", "\u00a0\n"] * len(pieces)))
        + "a\n\nb",
    },
    "distilbert": words(model_type="distilbert"),
    "gpt2": pairs(last=[END]),
    "gpt2 bos": pairs(
        tokenizer_config={"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "add_bos_token": True}
    ),
    "gpt2 special": {
        **pairs(last=[END], special_tokens_map={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}),
        "merges.txt": merges.replace("#version: 0.2\n", "").replace("\n", "\r\n"),
    },
    "roberta": pairs(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"], "roberta"),
    "qwen2": pairs(model_type="qwen2"),
    "qwen2 decoder": pairs(
        tokenizer_config={
            "tokenizer_class": "Qwen2Tokenizer",
            "added_tokens_decoder": {str(len(tokens)): added(END), str(len(tokens) + 1): added("<new>")},
            "eos_token": "<new>",
            "pad_token": END,
        }
    ),
}


def rows(files):
    with tempfile.TemporaryDirectory() as path:
        for name, content in files.items():
            with open(f"{path}/{name}", "w", newline="") as file:
                file.write(content if isinstance(content, str) else json.dumps(content))
        tokenizer = AutoTokenizer.from_pretrained(path)
    found = [tokenizer(text)["input_ids"] for text in texts]
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return {"ids": found, "plain": plain}


value = {"texts": texts, "folders": {name: {"files": files, **rows(files)} for name, files in folders.items()}}
with open(f"{HERE}/vocabulary.json.gz", "wb") as file:
    file.write(gzip.compress(json.dumps(value).encode(), 9, mtime=0))
