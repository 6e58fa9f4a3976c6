// The engine for several threads, which an isolated page takes.

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { cp } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { answered, browser, copySite, isolate, pagesKept, root, scratch, serve, watchResults } from "./harness.mjs";
import { folder, GREEDY, native, QUESTION } from "./real.mjs";

// The scripts set THREADS where they have built it: then it must not be missing.
const wanted = process.env.THREADS || existsSync(join(root, "dist/pkg/threads/xylem.js"));

/** A page on the site with the small model, from a host that goes through `intercept` first. */
async function visit(t, intercept) {
  const site = await scratch(t);
  await copySite(site);
  await cp(join(folder, "model"), join(site, "model"), { recursive: true });
  const page = await browser(t);
  await watchResults(page, GREEDY);
  await page.goto(await serve(t, site, intercept));
  return page;
}

test("an isolated page computes on several threads, and says the same", { skip: !wanted }, async (t) => {
  const page = await visit(t, isolate);
  const { result, info } = await answered(page, QUESTION);
  const cores = await page.evaluate(() => (crossOriginIsolated ? navigator.hardwareConcurrency : 0));
  assert.ok(cores > 0, "the page is not isolated");
  const threads = Math.min(4, cores);
  assert.match(info.adapter, new RegExp(`\\b${threads} threads?$`));
  assert.deepEqual(result.tokens, (await native()).tokens);
  assert.ok((await pagesKept(page)).length > 0);
  assert.deepEqual(page.problems, []);
});

test("without its files the page takes the engine for one thread", async (t) => {
  const page = await visit(t, (request, response) => {
    isolate(request, response);
    if (!request.url.includes("pkg/threads")) return false;
    response.writeHead(404).end();
    return true;
  });
  const { result, info } = await answered(page, QUESTION);
  assert.match(info.adapter, /\b1 thread$/);
  assert.deepEqual(result.tokens, (await native()).tokens);
});

test("a thread that breaks off ends the engine, and the page says so", { skip: !wanted }, async (t) => {
  const page = await visit(t, (request, response) => {
    isolate(request, response);
    if (!request.url.endsWith("/team.js")) return false;
    // As a trap in the engine's code: the thread has come, and then is gone.
    const script = `self.onmessage = () => { self.postMessage("joined"); setTimeout(() => { throw new Error("trapped"); }, 50); };`;
    response.writeHead(200, { "Content-Type": "text/javascript" }).end(script);
    return true;
  });
  await page.getByText("The engine broke off").waitFor();
});
