"""Writes the vectors of this folder: what Hugging Face's tokenizers and transformers say.

pip install tokenizers==0.23.3 transformers==5.23.0 jinja2 sentencepiece protobuf gguf
python make.py SmolLM2-135M-Instruct.gguf
"""
import datetime
import gzip
import json
import os
import random
import sys

import sentencepiece as spm
import transformers.utils.chat_template_utils as chat_templates
from gguf import GGUFReader
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import generate_merges

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = HERE + "/../../../examples/models/tiny/"


def write(name, value):
    with open(f"{HERE}/{name}.json.gz", "wb") as file:
        file.write(gzip.compress(json.dumps(value).encode(), 9, mtime=0))


# Texts

random.seed(7)
base=["","a"," ","  ","\n","\r\n\r\n","\t\tx","Hello world","Hello  world ","don't I'll we've he'd I'm they're it's DON'T I'LL","naïve café résumé","日本語のテキストです。","한국어 텍스트","Привет, мир!","العربية ١٢٣ نص","हिन्दी पाठ ४५","👩‍👩‍👧‍👦 family 🎉🎉 🇫🇷","½ ² ³ Ⅷ 12345 3.14159 1,000,000","def f(x):\n    return x**2  # ok\n\n\nclass A:\n\tpass\n","a\u00a0b\u2003c\u3000d\u0085e\ufefff\u200bg\u2028h","\ufeffBOM","x"*70,"....!!!???---___","<|im_start|>user\nhi<|im_end|>\n"," <|im_end|> text","<|im_end|><|im_end|>","<|endoftext|","https://example.com/a?b=c&d=%20#e","{\"a\": [1, 2, {\"b\": null}]}","e\u0301 vs é","\u0000\u0001\u001f\u007f","ﬁ ligature ſ it'ſ","ＦＵＬＬ　ＷＩＤＴＨ","a\n \n  \nb","   leading","trailing   ","∑∫√π ≈ 3.14","ŽÜŁĐ ß ẞ İ ı","𝒳𝓎𝓏 𐍈","🏳️‍🌈🏴‍☠️","1st 2nd 22nd","snake_case camelCase kebab-case","\\n \\t \\x00","<s> </s> <unk> <0x0A> [INST]","▁ low ▁▁ line","The review: \"Great!\" (5/5)\n"]
pool="abc ABC 019 \n\t'.,<|>_-ÄéñΩжא٣ह字한👍\u200d\u0301½\u00a0▁"
for n in (3,8,20,50):
    for _ in range(6): base.append(''.join(random.choice(pool) for _ in range(n)))

corpus = base * 3
for kind in json.load(open(TINY + "texts.json")).values():
    corpus += kind


def rows(tokenizer):
    found = []
    for text in base:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        found.append([text, ids, tokenizer.decode(ids, skip_special_tokens=False)])
    return found


def plain(tokenizer):
    tokenizer.encode_special_tokens = True
    found = [tokenizer.encode(text, add_special_tokens=False).ids for text in base]
    tokenizer.encode_special_tokens = False
    return found


expected = {}

# SmolLM2: the GGUF's metadata, and the tokenizer.json of the same vocabulary

reader = GGUFReader(sys.argv[1])
meta = {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer.")}
tokens = meta.pop("tokenizer.ggml.tokens")
merges = meta.pop("tokenizer.ggml.merges")
controls = meta.pop("tokenizer.ggml.token_type").count(3)
first = len(tokens) - len(merges)
assert tokens[first:] == [merge.replace(" ", "") for merge in merges]
file = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, token in enumerate(tokens[:controls])
    ],
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {}, "merges": []},
}
write("smollm2", {"metadata": meta, "first": tokens[:first], "controls": controls, "merges": merges, "file": file})
file["model"] = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [m.split(" ") for m in merges]}
tokenizer = Tokenizer.from_str(json.dumps(file))
expected["smollm2"] = {"rows": rows(tokenizer), "plain": plain(tokenizer)}

# The tiny model

tokenizer = Tokenizer.from_file(TINY + "base/tokenizer.json")
expected["tiny"] = {"rows": rows(tokenizer), "plain": plain(tokenizer)}

# Small tokenizers of every supported kind

LLAMA3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
small = {}


def special(*contents, **flags):
    return [AddedToken(content, normalized=False, special=True, **flags) for content in contents]


def train(tokenizer, size, specials):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    )


def byte_level(pattern, nfc=False, ignore=False, bos=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    train(tokenizer, 700, ["<|endoftext|>"])
    tokenizer.add_special_tokens(special("<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    if bos:
        template = processors.TemplateProcessing(
            single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|> $B", special_tokens=[("<|endoftext|>", 0)]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


small["llama3"] = byte_level(LLAMA3, ignore=True, bos=True)
small["qwen2"] = byte_level(QWEN2, nfc=True)

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
train(tokenizer, 600, ["<s>", "</s>"])
tokenizer.add_special_tokens(special("<|im_end|>", lstrip=True, rstrip=True))
tokenizer.add_tokens([AddedToken("low", single_word=True, normalized=False)])
tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
small["gpt2"] = tokenizer

work = os.environ.get("TMPDIR", "/tmp") + "/text_vectors"
with open(work + ".txt", "w") as out:
    out.write("\n".join(corpus))
spm.SentencePieceTrainer.train(
    input=work + ".txt", model_prefix=work, vocab_size=900, model_type="bpe", byte_fallback=True,
    normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.98,
    user_defined_symbols=["[INST]"], allow_whitespace_only_pieces=True, split_digits=True, minloglevel=2, num_threads=1,
)
model = pb.ModelProto()
model.ParseFromString(open(work + ".model", "rb").read())
pieces = [piece.piece for piece in model.pieces]
scores = [piece.score for piece in model.pieces]
types = [piece.type for piece in model.pieces]
vocab = {piece: i for i, piece in enumerate(pieces)}
skip = [piece for piece, kind in zip(pieces, types) if kind == 3]
piece_merges = generate_merges(vocab, dict(zip(pieces, scores)), skip)


def sentence_piece(metaspace=None):
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=piece_merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>"))
    tokenizer.add_tokens([AddedToken("[INST]", normalized=False)])
    if metaspace:
        tokenizer.pre_tokenizer = metaspace
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


small["llama"] = sentence_piece()
small["llama_metaspace"] = sentence_piece(pre_tokenizers.Metaspace("▁", "first", False))
small["metaspace_split"] = sentence_piece(pre_tokenizers.Metaspace("▁", "always", True))
small["metaspace_split"].decoder = decoders.Metaspace("▁", "always")

for name, tokenizer in small.items():
    around = tokenizer.encode("Hello", add_special_tokens=True).ids
    expected[name] = {"rows": rows(tokenizer), "plain": plain(tokenizer), "around": around}
gguf = {"model": "llama", "tokens": pieces, "scores": scores, "token_type": types}
gguf |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
gguf = {"tokenizer.ggml." + key: value for key, value in gguf.items()}
write("small", {"files": {name: json.loads(value.to_str()) for name, value in small.items()}, "gguf": gguf})
write("expected", expected)

# Chats

templates = {}
templates["chatml"] = meta["tokenizer.chat_template"]
# Written after the habits of published templates: trim, refusals, the date, namespaces, reasoning split off, tools.
templates["trimmed"] = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = 'None.' %}
{%- endif %}
{{- '<|im_start|>system\\n\\nToday: ' + strftime_now('%d %b %Y') + '\\n\\n' + system + '<|im_end|>' }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n\\n' }}
{%- endif %}
"""
templates["reasoning"] = """{%- set ns = namespace(last=messages|length - 1, seen=false) %}
{%- for message in messages[::-1] %}
    {%- if not ns.seen and message.role == 'user' %}
        {%- set ns.seen = true %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
templates["tools"] = """{% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for message in messages %}{{ '<|im_start|>' ~ message.role ~ '\\n' }}{% if message.tool_calls %}{% for call in message.tool_calls %}{{ call.name }}({{ call.arguments | tojson }}){% endfor %}{% else %}{{ message.content }}{% endif %}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""



def conversation(*turns):
    return [{"role": role, "content": content} for role, content in turns]


conversations = [
    conversation(("user", "Hi!")),
    conversation(
        ("system", " Be brief.\n"), ("user", "  What's 2+2?  "), ("assistant", "4."), ("user", "Ünïcödé 👍\n\n")
    ),
    conversation(
        ("user", "Why < 3?"),
        ("assistant", "<think>\nhmm\n</think>\n\nBecause."),
        ("user", "> quoted | text |> <|"),
    ),
    conversation(("user", "a"), ("assistant", "<think>\nx\n</think>\n\nb")),
    conversation(("user", "")),
    conversation(("user", " \n"), ("assistant", "\n ok"), ("user", "end")),
]
call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2.5}}]}
call = [{"role": "user", "content": "sum"}, call, {"role": "tool", "content": "3.5"}]
tools = [{"name": "add", "description": "Adds a & b <int>", "parameters": {"a": "int", "b": '"int"'}}]
variables = {"reasoning": [{}, {"enable_thinking": False}], "tools": [{}, {"tools": tools}]}


class Clock(datetime.datetime):
    @classmethod
    def now(cls):
        return cls(2024, 2, 5, 9, 3)


chat_templates.datetime = Clock
found = []
for name, template in templates.items():
    for messages in conversations + ([call] if name == "tools" else []):
        for generation in (True, False):
            for values in variables.get(name, [{}]):
                texts, _ = chat_templates.render_jinja_template(
                    [messages], chat_template=template, add_generation_prompt=generation,
                    bos_token="<|endoftext|>", eos_token="<|im_end|>", **{"tools": None, **values},
                )
                found.append({
                    "template": name, "messages": messages, "addGenerationPrompt": generation, "variables": values,
                    "text": texts[0], "ids": small["qwen2"].encode(texts[0], add_special_tokens=False).ids,
                })
write("chats", {"templates": templates, "rows": found})
