import assert from "node:assert/strict";
import { test } from "node:test";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { urlFolder, urlSource } from "../src/formats/url.ts";
import { FILE, type Handler, ranges, serve, status } from "./url_support.ts";

test("urlSource() reads ranges and keeps the first 64 KiB", async () => {
  await serve(ranges(FILE), async (origin, log) => {
    const source = urlSource(`${origin}/a.bin`);
    assert.equal(log.length, 0);
    assert.equal(await source.size(), FILE.length);
    assert.deepEqual(await source.read(10, 100), FILE.slice(10, 110));
    assert.equal(log.length, 1);
    assert.deepEqual(await source.read(65_000, 100_000), FILE.slice(65_000, 165_000));
    assert.deepEqual(await source.read(FILE.length, 0), new Uint8Array());
    assert.deepEqual(log.map((request) => request.headers.range), ["bytes=0-65535", "bytes=65000-164999"]);
    await assert.rejects(source.read(FILE.length - 1, 2), { name: "IntegrityError" });
    assert.equal(log.length, 2);
  });
});

test("urlSource() takes an empty file, and a file of one byte", async () => {
  await serve(ranges(new Uint8Array()), async (origin) => assert.equal(await urlSource(origin).size(), 0));
  await serve(ranges(FILE.slice(0, 1)), async (origin) => assert.equal(await urlSource(origin).size(), 1));
});

test("urlSource() takes a whole file from a server without ranges, up to a cap", async () => {
  await serve(status(200, {}, FILE), async (origin, log) => {
    const source = urlSource(origin);
    assert.equal(await source.size(), FILE.length);
    assert.deepEqual(await source.read(150_000, 7), FILE.slice(150_000, 150_007));
    assert.equal(log.length, 1);
    const limited = urlSource(origin, { maxWholeBytes: 199_999 });
    await assert.rejects(limited.size(), { name: "LimitError", limit: 199_999 });
  });
  // Without a length, the cap holds while the body comes.
  const endless: Handler = (_request, response) => {
    response.writeHead(200);
    const timer = setInterval(() => response.write(new Uint8Array(10_000)), 1);
    response.on("close", () => clearInterval(timer));
  };
  await serve(endless, async (origin) => {
    await assert.rejects(urlSource(origin, { maxWholeBytes: 50_000 }).size(), { name: "LimitError", limit: 50_000 });
  });
});

const SPOILED: readonly (readonly [what: string, handler: Handler, message: RegExp])[] = [
  ["a changed ETag", ranges(FILE, (headers, begin) => begin > 0 && (headers.etag = '"v2"')), /another ETag/],
  ["an ETag that vanished", ranges(FILE, (headers, begin) => begin > 0 && delete headers.etag), /another ETag/],
  [
    "a file that grew",
    ranges(FILE, (headers, begin) => begin > 0 && (headers["content-range"] = `bytes ${begin}-${begin + 99}/200001`)),
    /200001 bytes in all/,
  ],
  [
    "another range than asked for",
    ranges(FILE, (headers, begin) => begin > 0 && (headers["content-range"] = "bytes 1-100/200000")),
    /Content-Range/,
  ],
  ["no Content-Range", ranges(FILE, (headers) => delete headers["content-range"]), /no Content-Range/],
  ["an unknown length", ranges(FILE, (headers) => (headers["content-range"] = "bytes 0-65535/*")), /Content-Range/],
  ["a compressed range", ranges(FILE, (headers) => (headers["content-encoding"] = "br")), /encoding|broken/],
  ["an HTML page", status(200, { "content-type": "text/html; charset=utf-8" }, "<html>"), /HTML/],
  ["status 403", status(403, {}, "secret body"), /status 403/],
  ["status 500", status(500), /status 500/],
  ["status 204", status(204), /status 204/],
  ["a redirect without an address", status(302), /status 302/],
  ["a redirect to a file", status(302, { location: "file:///etc/passwd" }), /unsafe address/],
  ["a circle of redirects", status(302, { location: "/again" }), /more than 10 redirects/],
  [
    "a body shorter than its range",
    (_request, response) => response.writeHead(206, { "content-range": "bytes 0-99/100" }).end(new Uint8Array(99)),
    /99 bytes: expected 100/,
  ],
  [
    "a body longer than its range",
    (_request, response) => response.writeHead(206, { "content-range": "bytes 0-99/100" }).end(new Uint8Array(101)),
    /more than 100 bytes/,
  ],
  [
    "a connection that breaks",
    (_request, response) => {
      response.writeHead(206, { "content-range": "bytes 0-99/100", "content-length": "100" });
      response.write(new Uint8Array(10));
      setTimeout(() => response.destroy(), 10);
    },
    /broken connection|10 bytes: expected 100/,
  ],
];

for (const [what, handler, message] of SPOILED) {
  test(`urlSource() refuses ${what}`, async () => {
    await serve(handler, async (origin) => {
      const source = urlSource(`${origin}/dir/a.bin?token=secret`, { retries: 0 });
      await assert.rejects(source.size().then(() => source.read(100_000, 100)), (error: Error & { file?: string }) => {
        assert.equal(error.name, "IntegrityError");
        assert.match(error.message, message);
        assert.equal(error.file, `${origin}/dir/a.bin`);
        assert.doesNotMatch(error.message, /secret/);
        return true;
      });
    });
  });
}

test("urlSource() refuses 200 where a later range was asked for", async () => {
  const first = ranges(FILE);
  const handler: Handler = (request, response) =>
    request.headers.range === "bytes=0-65535" ? first(request, response) : status(200, {}, FILE)(request, response);
  await serve(handler, async (origin) => {
    await assert.rejects(urlSource(origin).read(100_000, 5), { name: "IntegrityError", found: "status 200" });
  });
});

test("urlSource() says that a file is missing, and can be asked again", async () => {
  let isThere = false;
  const handler: Handler = (request, response) => (isThere ? ranges(FILE) : status(404))(request, response);
  await serve(handler, async (origin) => {
    const source = urlSource(`${origin}/a`);
    await assert.rejects(source.size(), { name: "MismatchError", code: "missing-file", missing: [`${origin}/a`] });
    isThere = true;
    assert.equal(await source.size(), FILE.length);
  });
});

test("urlSource() sends headers to its own origin only", async () => {
  await serve(ranges(FILE), async (other, otherLog) => {
    const away: Handler = (request, response) =>
      request.url === "/start" ? status(307, { location: "/moved" })(request, response) : response.writeHead(302, {
        location: `${other}/b?signature=1`,
      }).end();
    await serve(away, async (origin, log) => {
      const headers = { authorization: "Bearer secret", "x-api-key": "secret" };
      const source = urlSource(`${origin}/start`, { headers });
      assert.deepEqual(await source.read(70_000, 3), FILE.slice(70_000, 70_003));
      assert.equal(log.length, 4);
      assert.ok(log.every((request) => request.headers["x-api-key"] === "secret"));
      assert.equal(otherLog.length, 2);
      assert.ok(otherLog.every((request) => !JSON.stringify(request.headers).includes("secret")));
    });
  });
});

test("urlSource() refuses a redirect that a browser hides, if there are headers", async () => {
  const hidden = { type: "opaqueredirect", status: 0, headers: new Headers(), body: null } as unknown as Response;
  const inits: RequestInit[] = [];
  const fetchHidden = (_url: unknown, init: RequestInit = {}): Promise<Response> => {
    inits.push(init);
    if (init.redirect === "manual") return Promise.resolve(hidden);
    const answer = new Response(new Uint8Array([5]), { status: 206, headers: { "content-range": "bytes 0-0/1" } });
    return Promise.resolve(Object.defineProperty(answer, "url", { value: "https://cdn.example/a" }));
  };
  const options = { fetch: fetchHidden as typeof fetch };
  const guarded = urlSource("https://example.com/a", { ...options, headers: { authorization: "x" } });
  await assert.rejects(guarded.size(), { name: "IntegrityError", message: /redirect while `headers`/ });
  assert.deepEqual(inits.map(({ redirect }) => redirect), ["manual"]);
  assert.deepEqual(await urlSource("https://example.com/a", options).read(0, 1), new Uint8Array([5]));
});

test("urlSource() refuses a redirect from https to http", async () => {
  const fetchDown = (url: unknown): Promise<Response> => {
    assert.equal(url, "https://example.com/a");
    return Promise.resolve(new Response(null, { status: 302, headers: { location: "http://example.com/a" } }));
  };
  const source = urlSource("https://example.com/a", { fetch: fetchDown as typeof fetch });
  await assert.rejects(source.size(), { name: "IntegrityError", message: /unsafe address/ });
});

test("urlSource() stops at the signal, with its reason", async () => {
  const silent: Handler = () => {};
  await serve(silent, async (origin) => {
    const controller = new AbortController();
    const size = urlSource(origin).size({ signal: controller.signal });
    setTimeout(() => controller.abort(new Error("enough")), 20);
    await assert.rejects(size, { message: "enough" });
  });
  const halfway: Handler = (_request, response) => {
    response.writeHead(206, { "content-range": "bytes 0-99/100", "content-length": "100" });
    response.write(new Uint8Array(10));
  };
  await serve(halfway, async (origin) => {
    const controller = new AbortController();
    const size = urlSource(origin).size({ signal: controller.signal });
    setTimeout(() => controller.abort(new Error("enough")), 100);
    await assert.rejects(size, { message: "enough" });
  });
});

test("urlSource() wraps a failed request, and keeps its cause", async () => {
  const fetchNothing = () => Promise.reject(new TypeError("fetch failed"));
  const source = urlSource("https://example.com/a?token=secret", { fetch: fetchNothing, retries: 0 });
  await assert.rejects(source.size(), (error: Error) => {
    assert.equal(error.name, "IntegrityError");
    assert.ok(error.cause instanceof TypeError);
    assert.doesNotMatch(error.message, /secret/);
    return true;
  });
});

test("urlSource() and urlFolder() refuse other URLs without repeating them", () => {
  for (const url of ["secret", "file:///secret", "data:,secret", "ftp://secret", "https://user:secret@example.com/"]) {
    for (const open of [urlSource, urlFolder]) {
      assert.throws(() => open(url), (error: Error) => error instanceof TypeError && !error.message.includes("secret"));
    }
  }
});

test("urlFolder() opens files beside each other, with the folder's query", async () => {
  const model = encodeSafetensors(new Map([["w", { dtype: "U8", shape: [1], bytes: new Uint8Array([7]) }]]));
  const handler: Handler = (request, response) =>
    (request.url === "/repo/model.safetensors?v=1" ? ranges(model) : status(404))(request, response);
  await serve(handler, async (origin, log) => {
    const folder = urlFolder(`${origin}/repo?v=1`);
    assert.equal(folder.name, `${origin}/repo/`);
    assert.equal(await folder.has("config.json"), false);
    const checkpoint = await openCheckpoint(folder);
    assert.deepEqual((await checkpoint.read("w")).bytes, new Uint8Array([7]));
    assert.deepEqual(log.map(({ url }) => url), ["/repo/config.json?v=1", "/repo/model.safetensors?v=1"]);
    assert.equal(folder.open("a b+c.json").name, `${origin}/repo/a%20b%2Bc.json`);
  });
});

test("urlFolder().has() does not take a refusal for absence", async () => {
  await serve(status(403), async (origin) => {
    await assert.rejects(urlFolder(origin).has("a.json"), { name: "IntegrityError", found: "status 403" });
  });
});

test("urlFolder() refuses names that would leave the folder, before any request", async () => {
  const names = ["..", "../a", "%2e%2e", "%2e%2e%2fa", "%252e%252e", "..\\a", "/a", "//host/a", "a/b", "C:a", "a\0"];
  names.push("https://host/a", "a?b", "a#b", "", ".", "a/../b", "\\\\host\\a", "a%00", "x".repeat(300), "\ud800");
  await serve(ranges(FILE), async (origin, log) => {
    const folder = urlFolder(origin, { headers: { authorization: "secret" } });
    for (const name of names) {
      assert.throws(() => folder.open(name), { name: "FormatError", field: "file name" }, name);
      await assert.rejects(folder.has(name), { name: "FormatError" });
    }
    assert.equal(log.length, 0);
  });
});

test("urlSource() of which two first calls get two files refuses one of them", async () => {
  for (const changed of [{ etag: '"v2"' }, { "content-range": "bytes 0-65535/300000" }]) {
    let requests = 0;
    const second = ranges(FILE, (headers) => Object.assign(headers, changed));
    await serve(
      (request, response) => (requests++ === 0 ? ranges(FILE) : second)(request, response),
      async (origin) => {
        const source = urlSource(origin);
        const ends = await Promise.allSettled([source.size(), source.read(0, 10)]);
        const [refused, ...others] = ends.filter((end) => end.status === "rejected");
        assert.equal(others.length, 0);
        assert.equal(refused?.reason.name, "IntegrityError");
      },
    );
  }
});
