// The service worker: the page opens without its host, and never with files of two versions.

import assert from "node:assert/strict";
import { appendFile, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { writeOffline } from "../../www/offline.mjs";
import { browser, copySite, isolate, scratch, serve } from "./harness.mjs";

/** Makes a version of the site whose files say which one they are of. */
async function release(site, version) {
  await appendFile(join(site, "app.js"), `\nwindow.appVersion = ${version};`);
  await appendFile(join(site, "worker.js"), `\nself.workerVersion = ${version};`);
  await appendFile(join(site, "pkg/xylem.js"), `\nself.engineVersion = ${version};`);
  await writeOffline(`${site}/`);
}

/** A page of version 1 that the service worker has opened. `host.answer` may answer in the host's place. */
async function visited(t) {
  const site = await scratch(t);
  await copySite(site, { fake: true });
  await release(site, 1);
  const host = { answer: () => false };
  const address = await serve(t, site, (request, response) => host.answer(request, response));
  const page = await browser(t);
  page.setDefaultTimeout(15_000);
  await page.goto(`${address}?model=fake/echo`);
  await page.evaluate(() => navigator.serviceWorker.ready);
  await page.reload();
  await loaded(page);
  return { page, site, host, address };
}

const loaded = (page) => page.locator(".load").waitFor({ state: "hidden" });

async function versions(page) {
  const [worker] = page.workers();
  const [workerVersion, engineVersion] = await worker.evaluate(() => [self.workerVersion, self.engineVersion]);
  return [await page.evaluate(() => window.appVersion), workerVersion, engineVersion];
}

/** Waits until `holds` of the registration of the service worker. */
async function until(page, holds) {
  for (let tries = 0; tries < 150; tries += 1) {
    const isSo = `navigator.serviceWorker.getRegistration().then(${holds})`;
    if (await page.evaluate(isSo)) return;
    await page.waitForTimeout(100);
  }
  assert.fail(`not so in time: ${holds}`);
}

const dead = (_, response) => response.destroy();
const ill = (_, response) => response.writeHead(503, { "content-type": "text/html" }).end("<p>try later");

for (const [what, answer] of [
  ["does not answer", dead],
  ["answers 503", ill],
]) {
  test(`a host that ${what} leaves the page of the last visit, by each of its addresses`, async (t) => {
    const { page, host, address } = await visited(t);
    host.answer = answer;
    for (const name of ["", "index.html"]) {
      await page.goto(`${address}${name}?model=fake/echo`);
      await loaded(page);
      assert.deepEqual(await versions(page), [1, 1, 1]);
    }
  });
}

test("an open page gets the worker and the engine of its own version, whatever the host has by then", async (t) => {
  const { page, site } = await visited(t);
  await release(site, 2);
  await page.getByRole("tab", { name: "Model" }).click();
  for (let i = 0; i < 2; i += 1) {
    await page.getByRole("button", { name: "Restart" }).click();
    await loaded(page);
    assert.deepEqual(await versions(page), [1, 1, 1]);
  }
  // The host goes first: a visit has the new version, all of it.
  await page.reload();
  await loaded(page);
  assert.deepEqual(await versions(page), [2, 2, 2]);
});

test("a new page whose host breaks off gets nothing of the old version", async (t) => {
  const { page, site, host } = await visited(t);
  await release(site, 2);
  host.answer = (request, response) => !/\/(\?.*)?$/.test(request.url) && dead(request, response);
  await page.reload();
  await page.waitForTimeout(500);
  assert.equal(await page.evaluate(() => window.appVersion), undefined);
  host.answer = dead;
  await page.reload();
  await loaded(page);
  assert.deepEqual(await versions(page), [1, 1, 1]);
});

test("a new version takes the place of the old one once no page of that is open", async (t) => {
  const { page, site, host, address } = await visited(t);
  const other = await browser(t);
  await other.goto(`${address}?model=fake/echo`);
  await loaded(other);
  await release(site, 2);
  await page.reload();
  await loaded(page);
  await until(page, (registration) => registration.waiting !== null);
  // The page of version 2 is served its own files, now that they are kept, whatever the host does.
  await release(site, 3);
  await page.getByRole("tab", { name: "Model" }).click();
  await page.getByRole("button", { name: "Restart" }).click();
  await loaded(page);
  assert.deepEqual(await versions(page), [2, 2, 2]);
  await other.getByRole("tab", { name: "Model" }).click();
  await other.getByRole("button", { name: "Restart" }).click();
  await loaded(other);
  assert.deepEqual(await versions(other), [1, 1, 1]);

  for (const one of [page, other]) await one.goto("about:blank");
  host.answer = dead;
  await page.goto(`${address}?model=fake/echo`);
  await loaded(page);
  assert.deepEqual(await versions(page), [2, 2, 2]);
  const caches = await page.evaluate(() => caches.keys());
  assert.equal(caches.length, 2, caches.join());
});

test("a site of which the host has only a part is not kept", async (t) => {
  const site = await scratch(t);
  await copySite(site, { fake: true });
  await release(site, 1);
  await appendFile(join(site, "worker.js"), "\nself.workerVersion = 7;");
  const page = await browser(t);
  await page.goto(`${await serve(t, site)}?model=fake/echo`);
  await loaded(page);
  await until(page, (registration) => registration === undefined);
  assert.deepEqual(page.problems, []);
});

for (const [what, isolated] of [
  ["an isolated page keeps the engine for several threads", true],
  ["a page that is not isolated keeps no engine for several threads", false],
]) {
  test(what, async (t) => {
    const site = await scratch(t);
    await copySite(site, { fake: true });
    await mkdir(join(site, "pkg/threads"), { recursive: true });
    await appendFile(join(site, "pkg/threads/xylem.js"), "\n");
    await release(site, 1);
    const address = await serve(t, site, isolated ? isolate : undefined);
    const page = await browser(t);
    await page.goto(`${address}?model=fake/echo`);
    await page.evaluate(() => navigator.serviceWorker.ready);
    const kept = (path) => page.evaluate(async (url) => (await caches.match(url)) !== undefined, address + path);
    assert.equal(await kept("pkg/threads/xylem.js"), isolated);
    assert.equal(await kept("pkg/xylem.js"), true);
  });
}
