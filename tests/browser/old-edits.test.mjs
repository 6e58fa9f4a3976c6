// Edits that early versions of the page kept come into the list, once.

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { answered, enginePage, scratch, xylem } from "./harness.mjs";

const GREEDY = { temperature: 0, repetitionPenalty: 1.3, maxTokens: 24, backend: "cpu" };
const QUESTION = "What rises in a tree?";

let folder;
let model;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "xylem-old-"));
  model = join(folder, "model");
  await xylem("random", "--out", model, "--context", "4096");
});
after(() => rm(folder, { recursive: true, force: true }));

test("edits of early versions are taken over as they were, and only once", async (t) => {
  const page = await enginePage(t, model, { settings: GREEDY });
  page.setDefaultTimeout(20_000);
  await page.evaluate(() =>
    localStorage.setItem(
      "xylem.edits",
      JSON.stringify([
        { subject: "tree", with: "What", strength: 0.5, on: true },
        { subject: "tree", with: "in", strength: 1, on: false },
        { subject: 7, with: "What", strength: 1, on: true },
      ]),
    ),
  );
  await page.reload();
  await page.getByRole("tab", { name: "Edits" }).click();
  const taken = (name) => page.getByRole("checkbox", { name, exact: true });
  const entries = page.getByRole("list", { name: "Edits" }).getByRole("listitem");
  // The model has to be there to make them.
  await answered(page, QUESTION);
  await taken("tree as What").waitFor();
  assert.deepEqual([await taken("tree as What").isChecked(), await taken("tree as in").isChecked()], [true, false]);
  assert.equal(await page.getByRole("slider", { name: "Strength of tree as What" }).inputValue(), "0.5");
  assert.equal(await entries.count(), 2);
  assert.equal(await page.evaluate(() => localStorage.getItem("xylem.edits")), null);

  // They apply, as those of the command do.
  await page.locator(".edits-bar").getByRole("button", { name: "Answer again" }).click();
  await page.waitForFunction(() => window.results.length === 2);
  const edited = await page.evaluate(() => window.results[1].result.tokens);
  const file = join(await scratch(t), "edits.json");
  const swap = ["--subject", "tree", "--with", "What", "--strength", "0.5", "--at-start", "--out", file];
  await xylem("edit", "swap", "--bundle", model, ...swap);
  const sampling = ["--temperature", "0", "--repetition-penalty", "1.3", "--max-tokens", "24", "--context", "4096"];
  const native = await xylem(
    "generate",
    "--bundle",
    model,
    "--prompt",
    QUESTION,
    "--chat",
    ...sampling,
    "--edits",
    file,
    "--json",
  );
  assert.deepEqual(edited, JSON.parse(native).tokens);

  await page.reload();
  await page.getByRole("tab", { name: "Edits" }).click();
  await answered(page, QUESTION);
  await taken("tree as What").waitFor();
  assert.equal(await entries.count(), 2);
  assert.deepEqual(page.problems, []);
});
