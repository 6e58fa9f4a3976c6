// What a visit leaves on the device, and what the next one makes of it: the real engine on a small random model.

import assert from "node:assert/strict";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { answered, ask, browser, copySite, pagesKept, root, scratch, serve, watchResults, xylem } from "./harness.mjs";

const QUESTION = "What rises in a tree?";
const SETTINGS = { temperature: 0, repetitionPenalty: 1.3, maxTokens: 24, backend: "cpu" };
const MODEL = ["--ffn", "2560", "--layers", "3", "--stem", "1,2", "--context", "4096"];

/** A site with a small model, after one answer. `page.asked` collects what the host was asked for; `host` may be told. */
async function visited(t, host = {}) {
  const site = await scratch(t);
  await copySite(site);
  await xylem("random", "--out", join(site, "model"), ...MODEL);
  const asked = [];
  const address = await serve(t, site, (request, response) => {
    asked.push(request.url);
    if (host.dead || (host.gone && request.url.includes("/model/"))) response.destroy();
    return host.answer?.(request, response) || response.destroyed;
  });
  const page = await browser(t);
  await watchResults(page, SETTINGS);
  await page.goto(address);
  const first = await answered(page, QUESTION);
  Object.assign(page, { asked, site });
  return { page, first };
}

const modelFiles = (asked) => asked.filter((path) => path.includes("/model/"));

/** The same question, as the first of a conversation. */
async function fresh(page) {
  await page.getByRole("button", { name: "New chat" }).click();
  return answered(page, QUESTION);
}

async function again(page) {
  page.asked.length = 0;
  await page.reload();
  return fresh(page);
}

test("a second visit asks the host for the manifest alone", async (t) => {
  const { page, first } = await visited(t);
  await pagesKept(page);
  const second = await again(page);
  assert.deepEqual(second.result.tokens, first.result.tokens);
  assert.deepEqual(modelFiles(page.asked), ["/model/manifest.json"]);
  assert.equal(second.info.rows.bytesFetched, 0);
  assert.ok(second.info.rows.stored > 0);
  assert.deepEqual(page.problems, []);
});

test("without the host the model of the last visit answers", async (t) => {
  const host = {};
  const { page, first } = await visited(t, host);
  await pagesKept(page);
  host.gone = true;
  const second = await again(page);
  assert.deepEqual(second.result.tokens, first.result.tokens);
});

test("the page itself opens without its host", async (t) => {
  const host = {};
  const { page, first } = await visited(t, host);
  await pagesKept(page);
  await page.evaluate(() => navigator.serviceWorker.ready);
  host.dead = true;
  const second = await again(page);
  assert.deepEqual(second.result.tokens, first.result.tokens);
  host.dead = false;
  await page.reload();
  assert.ok(page.asked.includes("/app.js"), "the host goes first where it answers");
});

test("a request that stalls is made again, and the chat says what it waits for", async (t) => {
  const host = {
    stalled: 0,
    answer(request) {
      if (!host.stalls || !/stem-\d+\.bin$/.test(request.url) || host.stalled > 0) return false;
      host.stalled += 1;
      // No head at all; half of a body would look the same from here on.
      request.socket.on("close", () => {
        host.ended = true;
      });
      return true;
    },
  };
  const { page } = await visited(t, host);
  host.stalls = true;
  await ask(page, "Quite another question: zebra, quorum, 7531?");
  await page.getByText("Waiting for rows of the table").waitFor();
  await page.waitForFunction(() => window.results.length === 2, null, { timeout: 40_000 });
  assert.equal(host.stalled, 1);
  assert.ok(host.ended, "the connection of the request that stalls is free again");
});

test("damaged copies are noticed and fetched again", async (t) => {
  const { page, first } = await visited(t);
  await pagesKept(page);
  const spoiled = await page.evaluate(async () => {
    const open = indexedDB.open("xylem");
    const db = await new Promise((resolve) => {
      open.onsuccess = () => resolve(open.result);
    });
    const change = db.transaction(["files", "pages"], "readwrite");
    let count = 0;
    for (const name of ["files", "pages"]) {
      const store = change.objectStore(name);
      store.openCursor().onsuccess = ({ target: { result: cursor } }) => {
        if (!cursor) return;
        const bytes = cursor.value;
        // Flipped, cut short, and of another kind, in turn.
        if (count % 3 === 0) bytes[bytes.length >> 1] ^= 1;
        cursor.update([bytes, bytes.slice(1), "text"][count % 3]);
        count += 1;
        cursor.continue();
      };
    }
    await new Promise((resolve) => {
      change.oncomplete = resolve;
    });
    db.close();
    return count;
  });
  assert.ok(spoiled > 10);
  const second = await again(page);
  assert.deepEqual(second.result.tokens, first.result.tokens);
  assert.ok(modelFiles(page.asked).length > 3);
  await pagesKept(page);
  const third = await again(page);
  assert.deepEqual(third.result.tokens, first.result.tokens);
  assert.deepEqual(modelFiles(page.asked), ["/model/manifest.json"]);
});

test("a new version of the model takes the place of the old one", async (t) => {
  const { page, first } = await visited(t);
  const old = await pagesKept(page);
  await rm(join(page.site, "model"), { recursive: true });
  await xylem("random", "--out", join(page.site, "model"), ...MODEL, "--seed", "7");
  const second = await again(page);
  assert.notDeepEqual(second.result.tokens, first.result.tokens);
  const now = new Set(await pagesKept(page));
  assert.equal(now.size, 1);
  assert.ok(!now.has(old[0]));
});

test("what is kept is shown, and deleted on demand", async (t) => {
  const { page } = await visited(t);
  await pagesKept(page);
  await page.reload();
  await answered(page, QUESTION);
  await page.getByRole("tab", { name: "Model" }).click();
  await page
    .getByText(/^Kept on this device for the next visit: the core, and [\d.]+ .B of [\d.]+ .B of its table\.$/)
    .waitFor();
  await page.getByRole("button", { name: "Delete from this device" }).click();
  await page.getByText("Nothing is kept on this device.").waitFor();
  await again(page);
  assert.ok(modelFiles(page.asked).length > 3);
});

test("the whole table is downloaded on demand, paused, resumed on the next visit, and then not asked for", async (t) => {
  const host = {
    // One request at a time gets through, slowly, so that there is something to pause.
    async answer(request) {
      if (host.slow && /stem-\d+\.bin$/.test(request.url)) await new Promise((resolve) => setTimeout(resolve, 400));
      return false;
    },
  };
  const { page, first } = await visited(t, host);
  const before = (await pagesKept(page)).length;
  host.slow = true;
  await page.getByRole("tab", { name: "Model" }).click();
  await page.getByRole("button", { name: "Download the whole table" }).click();
  await page.getByText(/^Downloading: /).waitFor();
  await page.getByRole("button", { name: "Pause the download" }).click();
  await page.getByText(/^Kept on this device/).waitFor();
  const paused = (await pagesKept(page)).length;
  await page.getByRole("button", { name: "Download the whole table" }).click();
  await page.getByText(/^Downloading: /).waitFor();
  host.slow = false;
  await page.reload();
  await page.getByRole("tab", { name: "Model" }).click();
  await page.getByText(/and ([\d.]+ .B) of \1 of its table\.$/).waitFor();
  const all = (await pagesKept(page)).length;
  assert.ok(before < paused && paused < all, `${before}, ${paused}, ${all} pages`);
  const second = await again(page);
  assert.deepEqual(second.result.tokens, first.result.tokens);
  assert.deepEqual(modelFiles(page.asked), ["/model/manifest.json"]);
  assert.deepEqual(page.problems, []);
});

test("a browser without room answers all the same, and says so", async (t) => {
  const worker = await readFile(join(root, "dist/worker.js"), "utf8");
  // Of what comes, the first few have room.
  const full = `const put = IDBObjectStore.prototype.put;
    let room = 4;
    IDBObjectStore.prototype.put = function (...values) {
      if (room-- > 0) return put.apply(this, values);
      throw new DOMException("full", "QuotaExceededError");
    };\n`;
  const host = {
    answer(request, response) {
      if (request.url !== "/worker.js") return false;
      response.writeHead(200, { "content-type": "text/javascript" }).end(full + worker);
      return true;
    },
  };
  const { page, first } = await visited(t, host);
  assert.ok(first.result.tokens.length > 4);
  await page.getByRole("tab", { name: "Model" }).click();
  await page.getByText("The browser cannot keep more of the model on this device (there is no room left)").waitFor();
  // What is there can be deleted.
  const forget = page.getByRole("button", { name: "Delete from this device" });
  assert.ok(await forget.isEnabled());
  await forget.click();
  await page.waitForFunction(
    () => [...document.querySelectorAll("button")].find((b) => b.textContent === "Delete from this device")?.disabled,
  );
  assert.deepEqual(page.problems, []);
});

test("two tabs share what is kept", async (t) => {
  const { page, first } = await visited(t);
  await pagesKept(page);
  const other = await browser(t);
  await watchResults(other, SETTINGS);
  page.asked.length = 0;
  await Promise.all([page.reload(), other.goto(page.url())]);
  const answers = await Promise.all([fresh(page), fresh(other)]);
  for (const { result } of answers) assert.deepEqual(result.tokens, first.result.tokens);
  assert.deepEqual(new Set(modelFiles(page.asked)), new Set(["/model/manifest.json"]));
});
