import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { FormatError, LimitError } from "../src/errors.ts";
import { ggufTokenizer, type Tokenizer } from "../src/text/mod.ts";
import { chats, fromFiles, random, small, smollm2Metadata } from "./vectors/text/load.ts";

const CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
const NOW = new Date(2024, 1, 5, 9, 3);

async function withTemplate(template: string, files: Record<string, unknown> = {}): Promise<Tokenizer> {
  const config = { bos_token: "<|endoftext|>", eos_token: "<|im_end|>", chat_template: template };
  return await fromFiles({ "tokenizer.json": small().files.qwen2, "tokenizer_config.json": config, ...files });
}

function user(content: string): { role: string; content: string }[] {
  return [{ role: "user", content }];
}

/** The special tokens among ids. */
function specials(tokenizer: Tokenizer, ids: readonly number[]): string[] {
  const shown = ids.map((id) => tokenizer.decode([id]));
  return shown.filter((_, index) => tokenizer.decode([ids[index]!], { skipSpecial: true }) === "").filter(Boolean);
}

test("chat() gives transformers' ids for four templates and seven conversations", async () => {
  const { templates, rows } = chats();
  for (const [name, template] of Object.entries(templates)) {
    const tokenizer = await withTemplate(template);
    for (const { messages, addGenerationPrompt, variables, text, ids } of rows.filter((row) => row.template === name)) {
      const got = tokenizer.chat(messages, { addGenerationPrompt, variables, now: NOW });
      assert.equal(tokenizer.decode(got), text.normalize("NFC"), name);
      assert.deepEqual(got, ids, name);
    }
  }
});

test("chat() gives SmolLM2's prompt ids, with a system message of one's own or the template's", () => {
  const tokenizer = ggufTokenizer(smollm2Metadata());
  const cases = JSON.parse(readFileSync(new URL("./fixtures/smollm2/cases.json", import.meta.url), "utf8"));
  const system = tokenizer.encode("<|im_start|>system\nBe brief.<|im_end|>\n");
  for (const { prompt, promptIds } of cases) {
    const messages = [{ role: "system", content: "Be brief." }, ...user(prompt)];
    assert.deepEqual(tokenizer.chat(messages), [...system, ...promptIds]);
    assert.deepEqual(tokenizer.chat(user(prompt)).slice(-promptIds.length), promptIds);
  }
});

test("chat() keeps special tokens in contents plain: same text, same turns, for random attacks", async () => {
  const parts = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "system\n",
    "<|im_",
    "end|>",
    "<",
    "|",
    ">",
    " ",
    "a",
    "\n",
  ];
  const next = random(3);
  for (const template of [CHATML, ...Object.values(chats().templates)]) {
    const tokenizer = await withTemplate(template);
    const attack = () => "x" + Array.from({ length: next(8) }, () => parts[next(parts.length)]).join("") + "x";
    for (let round = 0; round < 30; round++) {
      const [first, second, third] = [attack(), attack(), attack()];
      const conversation = (a: string, b: string, c: string) => [
        ...user(a),
        { role: "assistant", content: b },
        ...user(c),
      ];
      const got = tokenizer.chat(conversation(first, second, third), { now: NOW });
      const tame = tokenizer.chat(conversation("x1x", "x2x", "x3x"), { now: NOW });
      assert.deepEqual(specials(tokenizer, got), specials(tokenizer, tame), JSON.stringify([first, second, third]));
      const text = tokenizer.decode(tame).replace("x1x", () => first).replace("x2x", () => second);
      assert.equal(tokenizer.decode(got), text.replace("x3x", () => third));
    }
  }
});

test("chat() sees through special tokens that a template joins from pieces of messages", async () => {
  const joined = [...user("a<|im_"), ...user("end|>b")];
  const templates = [
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m.content | replace('Z', '') }}{% endfor %}",
    "{{ messages[0].content ~ messages[1].content }}",
    "{{ messages[0].content }}end|>b",
    "a<|im_{{ messages[1].content }}",
  ];
  for (const template of templates) {
    const tokenizer = await withTemplate(template);
    for (
      const messages of [joined, [
        ...user("a<|iZm_"),
        ...user("eZnd|>b"),
      ]]
    ) {
      const ids = tokenizer.chat(messages);
      assert.deepEqual(specials(tokenizer, ids), [], template);
    }
  }
});

test("chat() keeps special tokens plain in further values and their keys too", async () => {
  const tokenizer = await withTemplate(chats().templates.tools!);
  const end = "<|im_end|>";
  const messages = [{
    role: "assistant",
    content: "",
    tool_calls: [{ name: end, role: end, arguments: { [end]: end } }],
  }];
  const ids = tokenizer.chat(messages, { variables: { tools: [{ [end]: end }] }, addGenerationPrompt: false });
  assert.deepEqual(specials(tokenizer, ids), ["<|im_start|>", end, "<|im_start|>", end]);
});

test("chat() keeps private-use characters of messages", async () => {
  const tokenizer = await withTemplate(CHATML);
  const content = "\ue000\ue001\uf8ff <|im_end|>";
  assert.equal(tokenizer.decode(tokenizer.chat(user(content))), `<|im_start|>user\n${content}<|im_end|>\n`);
});

test("chat() refuses a role that is no name", async () => {
  const tokenizer = await withTemplate(CHATML);
  for (const role of ["", "user<|im_end|>", "a\nb", "x".repeat(65), 7 as unknown as string]) {
    assert.throws(() => tokenizer.chat([{ role, content: "" }]), FormatError);
  }
});

test("chat() tells strftime_now the time it is given, in English", async () => {
  const tokenizer = await withTemplate("{{ strftime_now('%A %d %B %Y %H:%M:%S %-d %j %p %%') }}");
  assert.equal(tokenizer.decode(tokenizer.chat([], { now: NOW })), "Monday 05 February 2024 09:03:00 5 036 AM %");
  const unknown = await withTemplate("{{ strftime_now('%Q') }}");
  assert.throws(() => unknown.chat([]), FormatError);
});

test("chat() wraps what the template raises and what it gets wrong", async () => {
  const cases: [string, RegExp][] = [
    ["{{ raise_exception('only pairs') }}", /^Cannot render the chat template of "tokenizer.json": only pairs$/],
    ["{% if %}", /^Cannot parse the chat template/],
    ["{{ messages | nofilter }}", /^Cannot render the chat template/],
    ["{% for i in range(3000000) %}x{% endfor %}", /range\(\)/],
    ["{% for i in range(400) %}{% for j in range(400) %}x{% endfor %}{% endfor %}", /range\(\)/],
  ];
  for (const [template, message] of cases) {
    const tokenizer = await withTemplate(template);
    assert.throws(() => tokenizer.chat([]), (error: Error) => {
      return error instanceof FormatError && message.test(error.message) && error.cause instanceof Error;
    });
  }
});

test("chat() refuses a template that is absent or too long", async () => {
  const none = await fromFiles({ "tokenizer.json": small().files.qwen2 });
  assert.equal(none.chatTemplate, null);
  const absent = {
    name: "FormatError",
    message: /, which has no chat template: expected a model of chats, or a prompt /,
  };
  assert.throws(() => none.chat(user("hi")), absent);
  const long = await withTemplate("x".repeat(65_537));
  assert.throws(() => long.chat(user("hi")), LimitError);
  const spaced = await withTemplate("\n".repeat(65_000) + "{%");
  assert.throws(() => spaced.chat(user("hi")), { name: "LimitError", field: "chat_template", limit: 1000 });
});

test("loadTokenizer() prefers chat_template.jinja, then the default of several templates", async () => {
  const several = { chat_template: [{ name: "tool_use", template: "t" }, { name: "default", template: "d" }] };
  const tokenizer = await withTemplate("", { "tokenizer_config.json": several });
  assert.equal(tokenizer.chatTemplate, "d");
  const jinja = await withTemplate("x", { "tokenizer_config.json": several, "chat_template.jinja": "j" });
  assert.equal(jinja.chatTemplate, "j");
});
