// A small random model with Engram layers in the page, against what the native command makes of it.

import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { answered, browser, copySite, like, scratch, serve, watchResults, xylem } from "./harness.mjs";

const QUESTION = "What rises in a tree?";
const MODEL = ["--layers", "3", "--stem", "1,2", "--engram-layers", "0,1", "--engram-tables", "5000,9000"];
const SETTINGS = { temperature: 0, repetitionPenalty: 1.3, maxTokens: 32, backend: "cpu" };

/** Counts what the worker writes to its database. */
const COUNT_WRITES = `{
  self.writes = 0;
  const { put } = IDBObjectStore.prototype;
  IDBObjectStore.prototype.put = function (...values) {
    self.writes += 1;
    return put.apply(this, values);
  };
}
`;

/** A page on a site with the model, which `spoil` may damage first; `page.asked` has what the host was asked for. */
async function modelPage(t, { settings = {}, spoil } = {}) {
  const site = await scratch(t);
  await copySite(site);
  const model = join(site, "model");
  await xylem("random", "--out", model, "--context", "2048", ...MODEL);
  await spoil?.(model);
  const worker = join(site, "worker.js");
  await writeFile(worker, `${COUNT_WRITES}${await readFile(worker, "utf8")}`);
  const asked = [];
  const address = await serve(t, site, (request) => {
    asked.push(request.url);
    return false;
  });
  const page = await browser(t);
  await watchResults(page, { ...SETTINGS, ...settings });
  await page.goto(address);
  Object.assign(page, { asked, model });
  return page;
}

async function native(model, ...more) {
  const sampling = ["--temperature", "0", "--repetition-penalty", "1.3", "--max-tokens", "32"];
  return JSON.parse(
    await xylem("generate", "--bundle", model, "--prompt", QUESTION, "--chat", ...sampling, ...more, "--json"),
  );
}

for (const backend of ["cpu", "gpu"]) {
  test(`the ${backend} gives the text of the native command`, async (t) => {
    const page = await modelPage(t, { settings: { backend } });
    const { result, info } = await answered(page, QUESTION);
    const expected = await native(page.model, ...like(backend));
    assert.deepEqual(result.tokens, expected.tokens);
    assert.ok(new Set(result.tokens).size > 8, "a text worth comparing");
    assert.deepEqual([info.backend, info.engramLayers], [backend, [0, 1]]);
    // 2 layers of 4 heads, for each token that was read.
    const read = expected.prompt_tokens + result.tokens.length - 1;
    assert.equal(info.engram.lookedUp, 8 * read);
    assert.ok(info.engram.bytesFetched > 0);
    assert.deepEqual(page.problems, []);

    // The second turn reuses the first one's positions, and with them its n-grams.
    const more = await answered(page, "And why?");
    assert.ok(more.result.reusedTokens >= expected.prompt_tokens);
    await page.getByRole("button", { name: "New chat" }).click();
    assert.deepEqual((await answered(page, QUESTION)).result.tokens, expected.tokens);
    await page.getByRole("tab", { name: "Model" }).click();
    await page.getByText("Rows of n-grams looked up").waitFor();
  });
}

test("pages that come in numbers are written once", async (t) => {
  const page = await modelPage(t);
  const { info } = await answered(page, QUESTION);
  await page.waitForTimeout(1000);
  const writes = await page.workers()[0].evaluate(() => self.writes);
  // A page may come along with others more than once, and is then written again; files are few.
  const fetched = (info.engram.bytesFetched + info.rows.bytesFetched) / 4000;
  assert.ok(fetched > 256, "more than is written together");
  assert.ok(writes > 200 && writes < fetched + 20, `${writes} for ${fetched} pages`);
});

test("pages of both tables are kept for the next visit", async (t) => {
  const page = await modelPage(t);
  const first = await answered(page, QUESTION);
  await page.getByRole("tab", { name: "Model" }).click();
  await page.getByRole("button", { name: "Download the whole table" }).click();
  await page.getByRole("button", { name: "Download the whole table" }).waitFor({ state: "hidden" });
  await page.getByText(/^Kept on this device/).waitFor();
  // Both are written to the database within moments.
  await page.waitForTimeout(1000);
  page.asked.length = 0;
  await page.reload();
  await page.getByRole("button", { name: "New chat" }).click();
  const second = await answered(page, QUESTION);
  assert.deepEqual(second.result.tokens, first.result.tokens);
  assert.deepEqual(
    page.asked.filter((path) => path.includes("/model/")),
    ["/model/manifest.json"],
  );
  // From the database as they were needed, or before that, since a small table is taken into memory after loading.
  assert.ok(second.info.engram.stored + second.info.engram.memory > 0);
  assert.equal(second.info.engram.bytesFetched + second.info.rows.bytesFetched, 0);
});

test("other compressed ids than the model's are refused", async (t) => {
  const page = await modelPage(t, {
    async spoil(model) {
      const file = join(model, "engram-ids.bin");
      const ids = await readFile(file);
      ids[0] ^= 1;
      await writeFile(file, ids);
    },
  });
  const alert = page.locator(".load").getByRole("alert");
  await alert.waitFor();
  assert.match(await alert.innerText(), /engram-ids\.bin/);
});
