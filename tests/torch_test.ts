import assert from "node:assert/strict";
import { test } from "node:test";
import { FormatError, LimitError } from "../src/errors.ts";
import { concat } from "../src/formats/concat.ts";
import type { StoredTensor } from "../src/formats/dtype.ts";
import { memorySource } from "../src/formats/memory.ts";
import { readTorch, type TorchOptions } from "../src/formats/torch.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { fixture, fixtureFolder, readTensors } from "./adapter_fixtures.ts";
import { op, orderedDict, pickle, tensor, torchFile, tuple, zip } from "./torch_writer.ts";

const FILE = "adapter_model.bin";

function read(bytes: Uint8Array, options?: TorchOptions): Promise<ReadonlyMap<string, StoredTensor>> {
  return readTorch(memorySource(FILE, bytes), options);
}

async function refused(bytes: Uint8Array, message: RegExp, type: typeof FormatError | typeof LimitError = FormatError) {
  await assert.rejects(read(bytes), (error) => {
    assert.ok(error instanceof type, String(error));
    assert.equal(error.file, FILE);
    assert.match(error.message, message);
    return true;
  });
}

const floats = (...values: number[]): Uint8Array => new Uint8Array(Float32Array.from(values).buffer);
const text = (value: string): Uint8Array => new TextEncoder().encode(value);
const honest = pickle({ w: tensor() });

test("readTorch() gives the bits that PEFT saved as safetensors", async () => {
  const got = await read(fixture("llama-bin/adapter/adapter_model.bin"));
  const want = await readTensors(fixture("llama-plain/adapter/adapter_model.safetensors"));
  assert.deepEqual([...got.keys()].sort(), [...want.keys()].sort());
  for (const [name, { dtype, shape, bytes }] of want) {
    assert.deepEqual({ ...got.get(name), bytes: [...got.get(name)!.bytes] }, { dtype, shape, bytes: [...bytes] }, name);
  }
});

test("readTorch() reads views, parameters, empty tensors and the attributes of an OrderedDict", async () => {
  const parameter = concat([
    op.global("torch._utils", "_rebuild_parameter"),
    tuple(tensor({ shape: [2], strides: [1], offset: 4 }), op.true, orderedDict()),
    op.reduce,
  ]);
  const state = concat([op.dict, op.text("_metadata"), orderedDict(), op.setItem]);
  const root = concat([
    op.proto,
    orderedDict(),
    op.mark,
    ...[op.text("transposed"), tensor({ shape: [3, 2], strides: [1, 3] })],
    ...[op.text("every second"), tensor({ shape: [2], strides: [2], offset: 1 })],
    ...[op.text("repeated"), tensor({ shape: [2, 2], strides: [0, 1], offset: 2 })],
    ...[op.text("parameter"), parameter],
    ...[op.text("empty"), tensor({ shape: [0, 9], strides: [9, 1], offset: 6 })],
    ...[op.text("scalar"), tensor({ shape: [], strides: [], offset: 5 })],
    op.setItems,
    state,
    op.build,
    op.stop,
  ]);
  const tensors = await read(torchFile(root, { "0": floats(0, 1, 2, 3, 4, 5) }));
  const values = [...tensors].map((
    [name, { shape, bytes }],
  ) => [name, shape, [...new Float32Array(bytes.slice().buffer)]]);
  assert.deepEqual(values, [
    ["transposed", [3, 2], [0, 3, 1, 4, 2, 5]],
    ["every second", [2], [1, 3]],
    ["repeated", [2, 2], [2, 3, 2, 3]],
    ["parameter", [2], [4, 5]],
    ["empty", [0, 9], []],
    ["scalar", [], [5]],
  ]);
});

test("readTorch() knows every storage type of torch that safetensors can name", async () => {
  const types = ["Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat"];
  const widths = [8, 4, 2, 2, 8, 4, 2, 1, 1, 1, 8];
  const spec = { shape: [3], strides: [1], length: 3 };
  const found = await Promise.all(types.map(async (type, i) => {
    const pickled = pickle({ w: tensor({ ...spec, type: `${type}Storage` }) });
    return (await read(torchFile(pickled, { "0": new Uint8Array(3 * widths[i]!) }))).get("w")!.dtype;
  }));
  assert.deepEqual(found, ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "C64"]);
});

const call = (module: string, name: string, ...args: Uint8Array[]) =>
  torchFile(concat([op.proto, op.global(module, name), tuple(...args), op.reduce, op.stop]));

test("readTorch() runs nothing: globals outside the list are refused by name, with opcode and position", async () => {
  const globals = [
    ["os", "system"],
    ["posix", "system"],
    ["builtins", "eval"],
    ["builtins", "getattr"],
    ["__builtin__", "exec"],
    ["subprocess", "Popen"],
    ["torch", "load"],
    ["torch.hub", "load"],
    ["torch", "UntypedStorage"],
    ["torch.cuda", "FloatStorage"],
    ["torch._utils", "_rebuild_tensor_v3"],
    ["collections", "OrderedDict.fromkeys"],
    ["torch._utils._rebuild_tensor_v2", "__globals__"],
    ["torch", "__proto__"],
    ["torch", "constructor"],
  ] as const;
  for (const [module, name] of globals) {
    const escaped = `${module}.${name}`.replaceAll(".", "\\.");
    await refused(
      call(module, name, op.text("id")),
      new RegExp(`opcode GLOBAL on "${escaped}" at byte 2 of its pickle`),
    );
  }
});

test("readTorch() refuses what no tensor needs, by opcode and position", async () => {
  const cases: readonly (readonly [Uint8Array, RegExp])[] = [
    [concat([op.dict, op.raw(0x63), text("os\nsystem\n")]), /opcode GLOBAL on "os.system" at byte 3/],
    [op.raw(0x69), /opcode 0x69 at byte 2/], // INST
    [op.raw(0x6f), /opcode 0x6f at byte 2/], // OBJ
    [op.raw(0x81), /opcode 0x81 at byte 2/], // NEWOBJ
    [op.raw(0x82, 1), /opcode 0x82/], // EXT1
    [op.raw(0x93), /opcode 0x93/], // STACK_GLOBAL
    [op.raw(0x50), /opcode 0x50/], // PERSID
    [op.raw(0x30), /opcode 0x30/], // POP
    [op.raw(0x80, 2), /opcode PROTO at byte 2/],
    [concat([op.dict, op.dict, op.build]), /opcode BUILD on "a dict" at byte 4/],
    [concat([tensor(), op.dict, op.build]), /opcode BUILD on "a tensor"/],
    [concat([op.text("storage"), op.persistentId]), /opcode BINPERSID/],
    [concat([tuple(op.text("module"), op.none), op.persistentId]), /opcode BINPERSID .* expected a tuple \("storage"/],
    [concat([op.global("torch", "FloatStorage"), op.emptyTuple, op.reduce]), /opcode REDUCE on "torch.FloatStorage"/],
    [concat([op.text("os.system"), op.emptyTuple, op.reduce]), /opcode REDUCE on "a string"/],
    [concat([op.global("collections", "OrderedDict"), tuple(op.dict), op.reduce]), /expected no arguments/],
    [tensor({ hooks: concat([op.dict, op.int(0), op.none, op.setItem]) }), /expected no hooks/],
    [tensor({ hooks: op.none }), /expected no hooks/],
    [concat([op.int(1), op.stop]), /opcode STOP on "a number" at byte 7.*: expected a dict of tensors/],
    [concat([op.dict, op.dict, op.stop]), /expected one value and then the end/],
    [concat([op.dict, op.stop, op.dict]), /expected one value and then the end/],
    [concat([op.dict, op.int(1), tensor(), op.setItem, op.stop]), /expected names of tensors as keys/],
    [concat([op.dict, op.text("epoch"), op.int(3), op.setItem, op.stop]), /expected a tensor under "epoch"/],
    [concat([op.dict, op.text("model"), op.dict, op.setItem, op.stop]), /on "a dict".*expected a tensor under "model"/],
    [op.dict, /opcode missing at byte 3/],
  ];
  for (const [body, message] of cases) await refused(torchFile(concat([op.proto, body])), message);
  await refused(torchFile(concat([op.raw(0x80, 4), op.dict, op.stop])), /expected a pickle of protocol 2/);
  const twice = concat([op.proto, op.dict, op.mark, ...Array(2).fill([op.text("w"), tensor()]).flat(), op.setItems]);
  await refused(torchFile(concat([twice, op.stop])), /on "w".*expected every name once/);
});

test("readTorch() caps memo, stack, marks, strings, integers and tensors", async () => {
  const many = (count: number, ...parts: Uint8Array[]) =>
    concat([op.proto, ...Array<Uint8Array[]>(count).fill(parts).flat()]);
  const cases: readonly (readonly [Uint8Array, RegExp, (typeof LimitError)?])[] = [
    [concat([op.proto, op.dict, op.put(2 ** 32 - 1)]), /opcode LONG_BINPUT at byte 3.*expected memo number 0/],
    [concat([op.proto, op.dict, op.put(0), op.get(1)]), /opcode LONG_BINGET.*expected one of 1 memo numbers/],
    [concat([op.proto, op.put(0)]), /expected a value on the stack/],
    [many(5000, op.none), /expected a stack of at most 4096 values/],
    [many(100, op.mark), /expected at most 64 marks/],
    [concat([op.proto, op.raw(0x58, 255, 255, 255, 255)]), /opcode BINUNICODE at byte 2.*expected a string of at most/],
    [concat([op.proto, op.raw(0x58, 100, 0, 0, 0)]), /expected 100 more bytes/],
    [concat([op.proto, op.raw(0x8a, 255)]), /opcode LONG1.*expected an integer of at most 8 bytes/],
    [concat([op.proto, op.long(2n ** 53n)]), /expected an integer of at most 2\^53 - 1/],
    [concat([op.proto, op.global("a".repeat(200), "b")]), /expected names of at most 128 bytes/],
    [concat([op.proto, op.text("w"), op.tuple]), /opcode TUPLE.*expected a mark/],
    [concat([op.proto, op.dict, op.mark, op.text("w"), op.setItems]), /expected keys and values in pairs/],
    [
      concat([op.proto, op.dict, ...Array(600_000).fill(concat([op.text(""), op.none, op.setItem]))]),
      /pickled/,
      LimitError,
    ],
    // A memo that names itself over and over is a billion values to whoever follows it.
    [concat([op.proto, op.dict, op.put(0), ...Array(64).fill(tuple(op.get(0), op.get(0))), op.stop]), /one value/],
  ];
  for (const [pickled, message, type] of cases) await refused(torchFile(pickled), message, type);
  const two = torchFile(pickle({ a: tensor(), b: tensor() }));
  await assert.rejects(read(two, { maxTensors: 1 }), LimitError);
  await assert.rejects(read(torchFile(honest), { maxPickleBytes: 10 }), LimitError);
  assert.equal((await read(two, { maxTensors: 2 })).size, 2);
});

test("readTorch() refuses views that leave their storage, and storages that differ from their entries", async () => {
  const cases: readonly (readonly [Parameters<typeof tensor>[0], RegExp])[] = [
    [{ offset: 1 }, /opcode REDUCE .*expected elements within its storage of 6/],
    [{ strides: [4, 1] }, /within its storage/],
    [{ shape: [2 ** 31, 3], strides: [2 ** 52, 1] }, /within its storage/],
    [{ strides: [-3, 1] }, /expected offset, shape and strides of whole numbers from 0/],
    [{ offset: -1 }, /whole numbers from 0/],
    [{ shape: [-2, 3] }, /whole numbers from 0/],
    [{ shape: [6] }, /expected as many strides as dimensions/],
    [{ shape: Array(65).fill(1), strides: Array(65).fill(1) }, /at most 64/],
    [{ length: -6 }, /opcode BINPERSID.*expected a length from 0/],
    [{ length: 7 }, /24 bytes in entry "data\/0": expected 28 bytes, 7 of F32/],
    [{ type: "DoubleStorage" }, /expected 48 bytes/],
    [{ key: "1" }, /tensor "w".*no entry "data\/1"/],
    [{ key: "../data.pkl" }, /no entry/],
  ];
  for (const [spec, message] of cases) await refused(torchFile(pickle({ w: tensor(spec) })), message);
  const bomb = pickle({ w: tensor({ shape: [2 ** 30, 2 ** 30], strides: [0, 0] }) });
  await refused(torchFile(bomb), /expected at most \d+, the size of the file and 64 MiB/, LimitError);
  const names = Array.from({ length: 200 }, (_, i) => [`w${i}`, tensor({ shape: [2 ** 20], strides: [0] })]);
  await refused(torchFile(pickle(Object.fromEntries(names))), /64 MiB/, LimitError);
});

test("readTorch() refuses big-endian files, old streams and programs by name", async () => {
  const big = torchFile(honest, { "0": new Uint8Array(24) }, [["a/byteorder", text("big")]]);
  await refused(big, /byteorder "big": expected "little"/);
  const program = torchFile(honest, { "0": new Uint8Array(24) }, [["a/constants.pkl", honest]]);
  await refused(program, /TorchScript/);
  const legacy = Uint8Array.of(0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e);
  await refused(legacy, /a stream of torch before 1\.6.*torch\.save\(torch\.load/);
  await refused(text("hello"), /5 bytes: expected a zip file/);
  await refused(zip([]), /0 zip entries: expected one folder/);
  await refused(zip([["a/data.pkl", honest], ["b/data.pkl", honest]]), /expected one folder/);
  await refused(zip([["data.pkl", honest]]), /expected one folder/);
  assert.equal((await read(torchFile(honest, { "0": new Uint8Array(24) }, []))).size, 1, "no byteorder is little");
});

const file = ["a/data.pkl", honest] as const;
const data = ["a/data/0", new Uint8Array(24)] as const;

test("readTorch() refuses entries whose header and directory disagree, that overlap or are not plain", async () => {
  const cases: readonly (readonly [Uint8Array, RegExp])[] = [
    [zip([file, data, data]), /two zip entries named "a\/data\/0"/],
    [zip([file, [...data, { localName: "a/data/1" }]]), /name "a\/data\/1" in a header: expected "a\/data\/0"/],
    [zip([file, [...data, { method: 8 }]]), /method 8 of entry "a\/data\/0": expected an entry stored as it is/],
    [zip([file, [...data, { localMethod: 8 }]]), /method 8 in the header/],
    [zip([file, [...data, { flags: 1 }]]), /not encrypted/],
    [zip([file, [...data, { localSize: 12 }]]), /size 12 in the header .*: expected 24, as in its directory/],
    [zip([file, [...data, { size: 23 }]]), /23 bytes in entry "data\/0"/],
    [zip([file, [...data, { size: 2 ** 31 }]]), /bytes from byte \d+ for entry "a\/data\/0"/],
    [zip([file, [...data, { storedSize: 12 }]]), /12 bytes stored of entry/],
    [zip([file, [...data, { offset: 0 }]]), /for entry/],
    [zip([file, [...data, { offset: 5 }]]), /without overlap/],
    [zip([file, [...data, { offset: 2 ** 31 }]]), /for entry/],
    [zip([file, ["a/../data", data[1]]]), /named "a\/\.\.\/data": expected a plain relative path/],
    [zip([["/a/data.pkl", honest]]), /plain relative path/],
    [zip([["a\\data.pkl", honest]]), /plain relative path/],
    [zip([file, ["a/x\0", data[1]]]), /plain relative path/],
  ];
  for (const [bytes, message] of cases) await refused(bytes, message);
});

test("readTorch() refuses end records that lie, in 32 and in 64 bits", async () => {
  const whole = zip([file, data]);
  const view = new DataView(whole.buffer);
  const size = view.getUint32(whole.length - 10, true);
  const offset = view.getUint32(whole.length - 6, true);
  const honest64 = [2n, BigInt(size), BigInt(offset)];
  const long = [24n, 24n, BigInt(30 + file[0].length + honest.length)];
  assert.equal((await read(zip([file, data], { end64: honest64 }))).size, 1);
  const sizes64 = zip([file, [...data, { zip64: long }]], { end64: [2n, BigInt(size + 28), BigInt(offset)] });
  assert.equal((await read(sizes64)).size, 1);
  const cases: readonly (readonly [Uint8Array, RegExp])[] = [
    [zip([file, data], { count: 1 }), /bytes after its directory/],
    [zip([file, data], { count: 3 }), /no directory entry/],
    [zip([file, data], { count: 65535 }), /no directory entry/],
    [zip([file, data], { size: size - 1 }), /expected one that ends at/],
    [zip([file, data], { offset: offset + 1 }), /expected one that ends at/],
    [zip([file, data], { offset: 0xffffffff, size: 0xffffffff }), /expected one that ends at/],
    [zip([file, data], { comment: "PK" }), /no zip directory at its end/],
    [zip([file, data], { prefix: text("#!/bin/sh\n") }), /from byte 10 .*from byte 0/],
    [zip([file, data], { end64: [3n, honest64[1]!, honest64[2]!] }), /the same in all end records/],
    [zip([file, data], { end64: [2n, 2n ** 64n - 1n, honest64[2]!] }), /18446744073709551615 in a zip64 end record/],
    [zip([file, data], { end64: [2n, 0n, 2n ** 63n] }), /zip64 end record/],
    [zip([file, data], { end64: honest64, end64At: 0n }), /misplaced zip64 end record/],
    [zip([file, data], { end64: [2n ** 40n, honest64[1]!, honest64[2]!], count: 65535 }), /zip64 end record/],
    [zip([file, [...data, { zip64: [2n ** 63n, 2n ** 63n, 0n] }]]), /below 2\^53/],
    [zip([file, [...data, { zip64: [24n] }]]), /its size elsewhere/],
    [zip([file, [...data, { zip64: [24n, 24n, 2n ** 40n] }]]), /for entry/],
    [concat([whole.subarray(0, whole.length - 2), Uint8Array.of(1, 0)]), /without a comment/],
    [whole.subarray(0, whole.length - 1), /no zip directory/],
    [concat([whole, text("x")]), /no zip directory/],
  ];
  for (const [bytes, message] of cases) await refused(bytes, message);
});

test("loadAdapter() reads a torch pickle as data when asked to, and only then", async () => {
  const plain = await loadAdapter(fixtureFolder("llama-plain/adapter"));
  const pickled = fixtureFolder("llama-bin/adapter");
  await assert.rejects(loadAdapter(pickled), /allowPickle/);
  const adapter = await loadAdapter(pickled, { allowPickle: true });
  assert.deepEqual([...adapter.modules.keys()].sort(), [...plain.modules.keys()].sort());
  for (const [name, { loraA, loraB, scaling }] of plain.modules) {
    const module = adapter.modules.get(name)!;
    assert.deepEqual([module.loraA.bytes, module.loraB.bytes, module.scaling], [loraA.bytes, loraB.bytes, scaling]);
  }
});
