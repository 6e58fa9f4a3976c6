// The default model, as `./x build` makes it, in the page.

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { answered, ask, browser, lastAnswer, root, serve, watchResults, xylem } from "./harness.mjs";

const QUESTION = "What is the capital of France?";

test("the figures that page and docs show were measured with this very model", async () => {
  const { hash } = JSON.parse(await xylem("inspect", "--bundle", join(root, "dist/model"), "--json"));
  const figures = (file) => JSON.parse(readFileSync(join(root, file), "utf8"));
  const shown = ["gallery", "figures", "reach"].map((name) => `www/src/edits/${name}.json`);
  const told = ["needle", "rows", "teach", "ways"].map((name) => `docs/figures/${name}.json`);
  for (const file of [...shown, ...told]) assert.equal(figures(file).model, hash, file);
  for (const one of Object.values(figures("docs/figures/loss.json"))) assert.equal(one.model, hash);
});

test("the CPU gives the tokens of the native command", async (t) => {
  const model = join(root, "dist/model");
  assert.ok(existsSync(join(model, "manifest.json")), "dist/model is missing; `./x build` makes it");
  const page = await browser(t);
  await watchResults(page, { temperature: 0, repetitionPenalty: 1, maxTokens: 48, backend: "cpu" });
  await page.goto(await serve(t, join(root, "dist")));
  const { result, info } = await answered(page, QUESTION);
  const options = ["--prompt", QUESTION, "--chat", "--temperature", "0", "--max-tokens", "48", "--json"];
  const expected = JSON.parse(await xylem("generate", "--bundle", model, ...options));
  assert.deepEqual(result.tokens, expected.tokens);
  assert.equal(result.text, expected.text);
  assert.equal(info.backend, "cpu");
  assert.ok(info.coreBytes <= 110e6, `the core has ${info.coreBytes} bytes`);

  await ask(page, "And of Spain?");
  await lastAnswer(page);
  assert.equal(page.hosts.size, 1);
  assert.deepEqual(page.problems, []);
});
