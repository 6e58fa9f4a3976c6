// Hosts that misbehave when they are asked for rows: the answer is right all the same, or fails with a sentence, and
// nothing wrong is kept.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { answered, ask, lastAnswer, pagesKept, resultOf } from "./harness.mjs";
import { folder, native, QUESTION, realPage } from "./real.mjs";

/** The first and last byte that are asked for, and the bytes. */
async function asked({ url, headers }) {
  const whole = await readFile(join(folder, url.slice(1)));
  const [first, last] = headers.range?.match(/\d+/g)?.map(Number) ?? [0, whole.length - 1];
  return { whole, first, last, bytes: Buffer.from(whole.subarray(first, last + 1)) };
}

function partial(response, { whole, first, last }, body, headers = {}) {
  response.writeHead(206, {
    "content-range": `bytes ${first}-${last}/${whole.length}`,
    "content-length": body.length,
    ...headers,
  });
  response.end(body);
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Whether an answer was given. `n` counts the requests for the table, from 0. */
const faults = {
  async "ranges are refused with 416"({ headers }, response) {
    if (!headers.range) return false;
    response.writeHead(416).end();
    return true;
  },
  async "every second body is shorter than it says"(request, response, n) {
    if (n % 2) return false;
    const part = await asked(request);
    response.writeHead(206, {
      "content-range": `bytes ${part.first}-${part.last}/${part.whole.length}`,
      "content-length": part.bytes.length,
    });
    response.write(part.bytes.subarray(0, part.bytes.length / 2), () => request.socket.destroy());
    return true;
  },
  async "the first ranges are too short, and say so"(request, response, n) {
    if (n >= 3) return false;
    const part = await asked(request);
    partial(response, { ...part, last: part.last - 7 }, part.bytes.subarray(0, -7));
    return true;
  },
  async "another part comes than was asked for"(request, response, n) {
    if (n >= 3 || !request.headers.range) return false;
    const part = await asked(request);
    partial(response, part, part.whole.subarray(part.first + 1, part.last + 2));
    return true;
  },
  async "bytes are flipped every now and then"(request, response, n) {
    if (n % 3) return false;
    const part = await asked(request);
    part.bytes[part.bytes.length >> 1] ^= 1;
    if (request.headers.range) partial(response, part, part.bytes);
    else response.writeHead(200, { "content-length": part.bytes.length }).end(part.bytes);
    return true;
  },
  async "bodies are compressed"(request, response) {
    const { whole } = await asked(request);
    const body = gzipSync(whole, { level: 1 });
    response.writeHead(200, { "content-encoding": "gzip", "content-length": body.length }).end(body);
    return true;
  },
  async "bodies come in drops"(request, response) {
    const part = await asked(request);
    response.writeHead(206, {
      "content-range": `bytes ${part.first}-${part.last}/${part.whole.length}`,
      "content-length": part.bytes.length,
    });
    const drop = Math.ceil(part.bytes.length / 5);
    for (let at = 0; at < part.bytes.length; at += drop) {
      response.write(part.bytes.subarray(at, at + drop));
      await pause(60);
    }
    response.end();
    return true;
  },
  async "the host is overwhelmed now and then"(_, response, n) {
    if (n % 3) return false;
    response.writeHead([500, 429, 503][(n % 9) / 3] ?? 500).end();
    return true;
  },
  async "connections are dropped now and then"(request, _, n) {
    if (n % 3) return false;
    request.socket.destroy();
    return true;
  },
};

for (const [what, fault] of Object.entries(faults)) {
  test(`the answer is right although ${what}`, async (t) => {
    let [n, spoilt, gone] = [0, 0, false];
    const page = await realPage(t, {
      async intercept(request, response) {
        if (gone && request.url.includes("/model/")) {
          response.destroy();
          return true;
        }
        if (!/stem-\d+\.bin$/.test(request.url)) return false;
        const done = await fault(request, response, n++);
        spoilt += Number(done);
        return done;
      },
    });
    const expected = (await native()).tokens;
    assert.deepEqual((await answered(page, QUESTION)).result.tokens, expected);
    assert.ok(spoilt > 0, "the fault was met");

    // What was kept of it is right as well: it has to do without the host.
    await pagesKept(page);
    gone = true;
    await page.reload();
    await page.getByRole("button", { name: "New chat" }).click();
    const again = await answered(page, QUESTION);
    assert.deepEqual(again.result.tokens, expected);
    assert.equal(again.info.rows.bytesFetched, 0);
  });
}

test("bytes that stay wrong fail the answer with a sentence, and are not kept", async (t) => {
  let wrong = true;
  const page = await realPage(t, {
    async intercept(request, response) {
      if (!wrong || !/stem-\d+\.bin$/.test(request.url)) return false;
      const part = await asked(request);
      part.bytes.fill(7);
      if (request.headers.range) partial(response, part, part.bytes);
      else response.writeHead(200, { "content-length": part.bytes.length }).end(part.bytes);
      return true;
    },
  });
  await ask(page, QUESTION);
  const answer = await lastAnswer(page);
  await answer.getByText(/bundle file `stem-000\.bin`: hash [0-9a-f]{64}, the manifest says/).waitFor();
  wrong = false;
  const { result } = await resultOf(page, () => answer.getByRole("button", { name: "Try again" }).click());
  assert.deepEqual(result.tokens, (await native()).tokens);
});
