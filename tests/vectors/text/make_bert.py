"""Writes bert.json.gz: what Hugging Face's tokenizers say of BERT's, for the texts of expected.json.gz.

pip install tokenizers==0.23.3
python make_bert.py
"""
import gzip
import json
import os

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def read(path):
    with gzip.open(path) as file:
        return json.load(file)


texts = [text for text, _, _ in read(f"{HERE}/expected.json.gz")["tiny"]["rows"]]
texts += ["[CLS] a [SEP][MASK]", "you do not n't I 'm . , ! ?", "𠀀𪜀𫜀 漢字kanji", "ΟΔΥΣΣΕΥΣ ΣΑΣ", "a" * 101, "unaffable" * 9]
with open(f"{HERE}/../../../examples/models/tiny/texts.json") as file:
    corpus = texts * 3 + [text for kind in json.load(file).values() for text in kind]


def make(cleanup=True, **normalizer):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=cleanup)
    trainer = trainers.WordPieceTrainer(vocab_size=1200, special_tokens=SPECIAL, min_frequency=4, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    cls, sep = ("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[cls, sep]
    )
    return tokenizer


def rows(tokenizer):
    found = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        found.append([text, ids, tokenizer.decode(ids, skip_special_tokens=False), plain])
    return found


kinds = {
    "uncased": make(lowercase=True),
    "cased": make(cleanup=False, lowercase=False),
    "accents": make(lowercase=True, strip_accents=False, handle_chinese_chars=False, clean_text=False),
}
value = {name: {"file": json.loads(tokenizer.to_str()), "rows": rows(tokenizer)} for name, tokenizer in kinds.items()}
with open(f"{HERE}/bert.json.gz", "wb") as file:
    file.write(gzip.compress(json.dumps(value).encode(), 9, mtime=0))
