// The real engine in the page, on a small random model, against what the native command makes of the same model.

import assert from "node:assert/strict";
import { cp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { answered, ask, lastAnswer, resultOf, scratch, xylem } from "./harness.mjs";
import { native, nativeAsGpu, QUESTION, realPage, table } from "./real.mjs";

/** What the page says of a model that it could not load. */
async function complaint(page) {
  const alert = page.locator(".load").getByRole("alert");
  await alert.waitFor();
  return alert.innerText();
}

test("the CPU gives the text of the native command, with rows by range", async (t) => {
  const page = await realPage(t);
  const { result, info } = await answered(page, QUESTION);
  const expected = await native();
  assert.deepEqual(result.tokens, expected.tokens);
  assert.equal(result.text, expected.text);
  assert.ok(new Set(result.tokens).size > 10, "a text worth comparing");
  assert.deepEqual([result.promptTokens, result.finish], [expected.prompt_tokens, expected.finish]);
  assert.deepEqual([info.backend, info.notice], ["cpu", null]);

  const asked = table(page.requests);
  assert.ok(asked.length > 1);
  assert.ok(asked.every(({ range, status }) => status === 206 && /^bytes=\d+-\d+$/.test(range)));
  const bytes = asked.map(({ range }) => range.match(/\d+/g)).reduce((sum, [a, b]) => sum + (b - a + 1), 0);
  assert.ok(bytes < info.tableBytes / 2, `${bytes} of ${info.tableBytes} bytes`);
  assert.equal(page.hosts.size, 1);
  assert.deepEqual(page.problems, []);
});

for (const precision of ["q8", "f32"]) {
  test(`so it does with ${precision} weights of odd sizes`, async (t) => {
    const other = await scratch(t);
    const sizes = ["--hidden", "160", "--heads", "10", "--vocab", "303", "--context", "4096", "--seed", "1"];
    await xylem("random", "--out", join(other, "model"), "--precision", precision, ...sizes);
    const page = await realPage(t, {
      spoil: (model) => cp(join(other, "model"), model, { recursive: true }),
    });
    const { result } = await answered(page, QUESTION);
    assert.deepEqual(result.tokens, (await native(join(other, "model"))).tokens);
  });
}

test("the GPU gives the text of the native command", async (t) => {
  const page = await realPage(t, { settings: { backend: "gpu" } });
  const { result, info } = await answered(page, QUESTION);
  assert.deepEqual(result.tokens, (await nativeAsGpu()).tokens);
  assert.equal(info.backend, "gpu");
  assert.match(info.adapter, /swiftshader/i);
  assert.ok(info.gpuBytes > info.coreBytes);
  assert.deepEqual(page.problems, []);
});

test("a GPU that is software gives way to the CPU, and the page says why", async (t) => {
  const page = await realPage(t, { settings: { backend: "auto" } });
  await page.getByRole("tab", { name: "Model" }).click();
  await page.getByText(/swiftshader.* is software, the CPU itself is faster/i).waitFor();
  const { result, info } = await answered(page, QUESTION);
  assert.equal(info.backend, "cpu");
  assert.deepEqual(result.tokens, (await native()).tokens);
});

test("a browser without WebGPU computes on the CPU, unless the reader insists", async (t) => {
  const withoutGpu = async (model) => {
    const worker = join(model, "../worker.js");
    await writeFile(worker, `delete WorkerNavigator.prototype.gpu;${await readFile(worker, "utf8")}`);
  };
  const page = await realPage(t, { settings: { backend: "auto" }, spoil: withoutGpu });
  const { info } = await answered(page, QUESTION);
  assert.equal(info.backend, "cpu");
  assert.match(info.notice, /no adapter/);

  const insistent = await realPage(t, { settings: { backend: "gpu" }, spoil: withoutGpu });
  assert.match(await complaint(insistent), /^GPU: the browser has no adapter/);
  await insistent.getByRole("button", { name: "Use the CPU" }).click();
  assert.equal((await answered(insistent, QUESTION)).info.backend, "cpu");
});

test("rows come while the message is still being written", async (t) => {
  const page = await realPage(t);
  await answered(page, QUESTION);
  const asked = () => table(page.requests).length;
  const before = asked();
  await page.getByRole("textbox", { name: "Message", exact: true }).fill("zebra quorum 7531");
  const deadline = Date.now() + 20_000;
  while (asked() === before && Date.now() < deadline) await page.waitForTimeout(50);
  assert.ok(asked() > before);
  assert.equal(await page.evaluate(() => window.results.length), 1, "nothing was sent");
});

test("over a slow link a new token waits for one request at most, the second time for none", async (t) => {
  // 50 ms and 20 Mbit/s, shared by all requests under way.
  let free = 0;
  const slow = async ({ url, headers }) => {
    if (!/stem-\d+\.bin$/.test(url)) return false;
    const [first, last] = headers.range.match(/\d+/g).map(Number);
    const arrived = Date.now() + 50;
    free = Math.max(free, arrived) + ((last + 1 - first) * 8) / 20_000;
    await new Promise((resolve) => setTimeout(resolve, free - Date.now()));
    return false;
  };
  const prompt = await realPage(t, { settings: { maxTokens: 1 }, intercept: slow });
  await answered(prompt, QUESTION);
  const page = await realPage(t, { intercept: slow });
  const { result, info } = await answered(page, QUESTION);
  assert.deepEqual(result.tokens, (await native()).tokens);
  const asked = table(page.requests).length;
  const added = asked - table(prompt.requests).length;
  assert.ok(added > 0 && added <= result.generatedTokens, `${added} requests for ${result.generatedTokens} tokens`);
  t.diagnostic(
    `${added} requests for ${result.generatedTokens} new tokens, waited ${Math.round(info.rows.stallMs)} ms in all`,
  );

  await page.getByRole("button", { name: "New chat" }).click();
  const second = await answered(page, QUESTION);
  assert.deepEqual(second.result.tokens, result.tokens);
  assert.equal(table(page.requests).length, asked);
});

test("a host that serves no ranges gives whole shards", async (t) => {
  const page = await realPage(t, {
    intercept(request) {
      delete request.headers.range;
      return false;
    },
  });
  const { result } = await answered(page, QUESTION);
  assert.deepEqual(result.tokens, (await native()).tokens);
  assert.ok(table(page.requests).every(({ status }) => status === 200));
});

test("what passes by itself does not show", async (t) => {
  const failures = new Map();
  const page = await realPage(t, {
    // Each file fails once, in one of three ways.
    intercept(request, response) {
      if (!request.url.includes("/model/") || failures.has(request.url)) return false;
      failures.set(request.url, failures.size);
      if (failures.size % 3 === 0) response.writeHead(503).end();
      else if (failures.size % 3 === 1) request.socket.destroy();
      else response.writeHead(200, { "content-length": 1000 }).write("cut off", () => request.socket.destroy());
      return true;
    },
  });
  const { result } = await answered(page, QUESTION);
  assert.deepEqual(result.tokens, (await native()).tokens);
  assert.ok(failures.size > 4);
});

test("the engine works from a sub-path", async (t) => {
  const page = await realPage(t, { path: "some/sub path/" });
  const { result } = await answered(page, QUESTION);
  assert.deepEqual(result.tokens, (await native()).tokens);
  assert.equal(page.hosts.size, 1);
});

for (const [what, spoil, expected] of [
  [
    "a damaged shard",
    async (model) => {
      const bytes = await readFile(join(model, "core-000.bin"));
      bytes[1000] ^= 1;
      await writeFile(join(model, "core-000.bin"), bytes);
    },
    /bundle file `core-000\.bin`: hash [0-9a-f]{64}, the manifest says/,
  ],
  [
    "a shard that is too short",
    (model) => writeFile(join(model, "core-000.bin"), "short"),
    /core-000\.bin: broke off after 5 of \d+ bytes/,
  ],
  [
    "a shard that is too long",
    async (model) => writeFile(join(model, "core-000.bin"), Buffer.alloc(1 << 24)),
    /core-000\.bin: is longer than \d+ bytes/,
  ],
  ["a missing shard", (model) => rm(join(model, "core-000.bin")), /core-000\.bin: HTTP 404: not found/],
  ["a missing index", (model) => rm(join(model, "stem-index.bin")), /stem-index\.bin: HTTP 404: not found/],
  ["a missing model", (model) => rm(model, { recursive: true }), /model\/manifest\.json: HTTP 404: not found/],
  [
    "a manifest of another version",
    async (model) => {
      const path = join(model, "manifest.json");
      await writeFile(path, (await readFile(path, "utf8")).replace('"version": 1', '"version": 2'));
    },
    /version 2, this program reads version 1; convert the model again/,
  ],
  [
    "something else in the manifest's place",
    (model) => writeFile(join(model, "manifest.json"), "<!doctype html>"),
    /`manifest\.json`: not a manifest/,
  ],
  [
    "a damaged tokenizer",
    async (model) => {
      const path = join(model, "tokenizer.json");
      await writeFile(path, (await readFile(path, "utf8")).replace("BPE", "BBE"));
    },
    /bundle file `tokenizer\.json`: hash/,
  ],
]) {
  test(`${what} is named`, async (t) => {
    const page = await realPage(t, { spoil });
    assert.match(await complaint(page), expected);
    assert.ok(await page.getByRole("button", { name: "Try again" }).isVisible());
  });
}

test("a row that cannot be had fails the answer, not the engine", async (t) => {
  let broken = true;
  const page = await realPage(t, {
    intercept(request, response) {
      if (!broken || !/stem-\d+\.bin$/.test(request.url)) return false;
      response.writeHead(403).end();
      return true;
    },
  });
  await ask(page, QUESTION);
  const answer = await lastAnswer(page);
  await answer.getByText(/stem-000\.bin: HTTP 403: the host refuses to give it/).waitFor();
  broken = false;
  const { result } = await resultOf(page, () => answer.getByRole("button", { name: "Try again" }).click());
  assert.deepEqual(result.tokens, (await native()).tokens);
});

test("a second turn reuses the first", async (t) => {
  const page = await realPage(t);
  const first = (await answered(page, QUESTION)).result;
  const second = (await answered(page, "And in a vine?")).result;
  assert.equal(first.reusedTokens, 0);
  assert.ok(second.reusedTokens >= first.promptTokens);
  assert.ok(second.promptTokens > second.reusedTokens);
});

test("a chat beyond the context loses its oldest turns, and the page says so", async (t) => {
  const page = await realPage(t, {
    settings: { maxTokens: 1024 },
    async spoil(model) {
      await rm(model, { recursive: true });
      await xylem("random", "--out", model, "--context", "512");
    },
  });
  let dropped = 0;
  for (let turn = 0; turn < 6 && dropped === 0; turn += 1) {
    dropped = (await answered(page, `${turn}: ${"more ".repeat(30)}`)).result.droppedTurns;
  }
  assert.ok(dropped > 0);
  await page
    .getByText(/oldest/i)
    .first()
    .waitFor();
  await ask(page, "too long ".repeat(80));
  await page.getByText(/the prompt has \d+ tokens, the context holds \d+/).waitFor();
});

test("an answer can be stopped, and the engine goes on", async (t) => {
  const page = await realPage(t, { settings: { maxTokens: 4096, repetitionPenalty: 1 } });
  for (const question of [QUESTION, "again"]) {
    const { result } = await resultOf(page, async () => {
      await ask(page, question);
      const writing = page.getByRole("article", { name: "Answer" }).and(page.locator('[aria-busy="true"]'));
      await writing.getByText(/tokens\/s$/).waitFor();
      await page.keyboard.press("Escape");
    });
    assert.equal(result.finish, "stopped");
    assert.ok(result.generatedTokens > 3);
  }
});

test("an answer that waits for rows says so and can be stopped", async (t) => {
  const page = await realPage(t, { intercept: ({ url }) => /stem-\d+\.bin$/.test(url) });
  const { result } = await resultOf(page, async () => {
    await ask(page, QUESTION);
    await page.getByText("Waiting for rows of the table").waitFor();
    await page.keyboard.press("Escape");
  });
  assert.equal(result.finish, "stopped");
});

test("equal seeds give equal texts, and an answer without one tells its own", async (t) => {
  const page = await realPage(t, { settings: { temperature: 1, repetitionPenalty: 1.1 } });
  const first = (await answered(page, QUESTION)).result;
  assert.ok(Number.isInteger(first.seed));
  await page.getByRole("button", { name: "New chat" }).click();
  await page.getByRole("tab", { name: "Settings" }).click();
  await page.getByLabel("Seed").fill(String(first.seed));
  await page.keyboard.press("Tab");
  const again = (await answered(page, QUESTION)).result;
  assert.equal(again.seed, first.seed);
  assert.deepEqual(again.tokens, first.tokens);
});
