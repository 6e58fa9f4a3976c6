// Model output is untrusted, and the page asks no other host for anything, from whatever path it is served.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { ask, browser, copySite, fakePage, lastAnswer, scratch, serve } from "./harness.mjs";

test("markup in an answer is inert", async (t) => {
  const page = await fakePage(t, "hostile");
  await ask(page, "attack");
  const answer = await lastAnswer(page);
  await page.waitForTimeout(300);
  assert.equal(await page.evaluate(() => window.hit), undefined);
  assert.equal(await answer.locator("img, script, iframe, [onerror], [onclick], [srcdoc]").count(), 0);
  const links = await answer.locator("a").evaluateAll((all) => all.map((a) => [a.getAttribute("href"), a.rel]));
  assert.deepEqual(links, [["https://tracker.invalid/p.png", "noopener noreferrer nofollow"]]);
  assert.match(await answer.innerText(), /<img src=x onerror="window\.hit=1">/);
  assert.equal(page.hosts.size, 1, [...page.hosts].join());
  assert.deepEqual(page.problems, []);
});

test("markup in a question is inert", async (t) => {
  const page = await fakePage(t, "echo");
  await ask(page, '<img src=x onerror="window.hit=1">');
  await lastAnswer(page);
  assert.equal(await page.locator(".question img").count(), 0);
  assert.equal(await page.evaluate(() => window.hit), undefined);
});

test("the page works from a sub-path and asks one host only", async (t) => {
  const folder = await scratch(t);
  await copySite(join(folder, "some/sub path"), { fake: true });
  const address = await serve(t, folder);
  const page = await browser(t);
  const missing = [];
  page.on("response", (response) => response.status() >= 400 && missing.push(response.url()));
  await page.goto(`${address}some/sub%20path/`);
  await ask(page, "hello");
  await lastAnswer(page);
  assert.deepEqual([...page.hosts], [new URL(address).host]);
  assert.deepEqual(missing, []);
  assert.deepEqual(page.problems, []);
});

test("a model from elsewhere is named; an address that is none is ignored", async (t) => {
  const page = await fakePage(t, "echo");
  await page.goto(`${page.url().split("?")[0]}?model=https://models.invalid/a/`);
  await page.getByRole("tab", { name: "Model" }).click();
  await page.getByText("https://models.invalid/a/manifest.json").waitFor();
  await page.goto(`${page.url().split("?")[0]}?model=javascript:alert(1)`);
  await ask(page, "hello");
  await lastAnswer(page);
  assert.equal(await page.getByText("javascript:").count(), 0);
});
