import assert from "node:assert/strict";
import { test } from "node:test";
import { urlFolder, urlSource } from "../src/formats/url.ts";
import { FILE, type Handler, ranges, serve, status } from "./url_support.ts";

test("urlSource() tries again where there is no answer, a broken one or a busy server's, and gives up at last", async () => {
  const whole = ranges(FILE);
  const failures: readonly Handler[] = [
    status(503, { "retry-after": "0" }),
    (_request, response) => response.destroy(),
    (request, response) => {
      const range = String(request.headers.range).replace("bytes=", "bytes ");
      response.writeHead(206, { "content-range": `${range}/${FILE.length}`, etag: '"v1"' });
      response.write(new Uint8Array(10));
      setTimeout(() => response.destroy(), 5);
    },
  ];
  for (const fail of failures) {
    const left = new Map([["bytes=0-65535", 1], ["bytes=100000-100099", 1]]);
    const handler: Handler = (request, response) => {
      const range = String(request.headers.range);
      const failsNow = left.get(range) ?? 0;
      left.set(range, failsNow - 1);
      return (failsNow > 0 ? fail : whole)(request, response);
    };
    await serve(handler, async (origin, log) => {
      assert.deepEqual(await urlSource(origin).read(100_000, 100), FILE.slice(100_000, 100_100));
      assert.equal(log.length, 4);
    });
  }
  await serve(status(503), async (origin, log) => {
    await assert.rejects(urlSource(origin, { retries: 1 }).size(), { name: "IntegrityError", code: "unreachable" });
    assert.equal(log.length, 2);
  });
  await serve(status(403), async (origin, log) => {
    await assert.rejects(urlSource(origin).size(), { name: "IntegrityError" });
    assert.equal(log.length, 1);
  });
});

test("urlSource() and urlFolder() refuse retries that would have no end, or are none", () => {
  for (const retries of [NaN, Infinity, -1, 1.5, "2"] as number[]) {
    for (const open of [urlSource, urlFolder]) {
      assert.throws(() => open("https://example.com/a", { retries }), { name: "TypeError", message: /retries/ });
    }
  }
});

test("urlSource() has a typed error for more bytes than there is memory for", async () => {
  const total = 2 ** 49;
  const handler: Handler = (request, response) => {
    const range = String(request.headers.range).replace("bytes=", "bytes ");
    const headers = { "content-range": `${range}/${total}`, etag: '"v1"' };
    response.writeHead(206, headers).end(range.startsWith("bytes 0-65535") ? new Uint8Array(65_536) : "");
  };
  await serve(handler, async (origin, log) => {
    const refusal = { name: "OutOfMemoryError", field: "length", file: `${origin}/`, found: total };
    await assert.rejects(urlSource(origin).read(0, total), refusal);
    assert.equal(log.length, 2);
  });
});

test("urlSource() stops waiting for another try at the signal", async () => {
  await serve(status(503, { "retry-after": "20" }), async (origin) => {
    const controller = new AbortController();
    const size = urlSource(origin).size({ signal: controller.signal });
    setTimeout(() => controller.abort(new Error("enough")), 50);
    await assert.rejects(size, { message: "enough" });
  });
});

test("urlSource() tells a version by a strong ETag only", async () => {
  for (const [etag, version] of [['"v1"', `"v1" ${FILE.length}`], ['W/"v1"', null], [null, null]] as const) {
    const handler = ranges(FILE, (headers) => etag === null ? delete headers.etag : headers.etag = etag);
    await serve(handler, async (origin) => assert.equal(await urlSource(origin).version?.(), version));
  }
});
