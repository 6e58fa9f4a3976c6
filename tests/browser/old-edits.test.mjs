// Edits that early versions of the page kept come into the list, once; those of other models are not lost.

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { complaints } from "./checks.mjs";
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

test("what this model cannot make stays for another", async (t) => {
  const page = await enginePage(t, model, { settings: GREEDY });
  page.setDefaultTimeout(20_000);
  const old = [
    { subject: "tree", with: "", strength: 0.5, on: true },
    { subject: "tree", with: "in", strength: 1, on: false },
  ];
  await page.evaluate((edits) => localStorage.setItem("xylem.edits", JSON.stringify(edits)), old);
  await page.reload();
  await page.getByRole("tab", { name: "Edits" }).click();
  await page.getByRole("checkbox", { name: "tree as in", exact: true }).waitFor();
  assert.deepEqual(await page.evaluate(() => JSON.parse(localStorage.getItem("xylem.edits"))), [old[0]]);
});

/** The lists in the browser's database, by the hash of their model. */
const lists = (page) =>
  page.evaluate(async () => {
    const done = (request) => new Promise((resolve) => (request.onsuccess = () => resolve(request.result)));
    const db = await done(indexedDB.open("xylem-edits"));
    const store = db.transaction("lists").objectStore("lists");
    const [keys, values] = await Promise.all([done(store.getAllKeys()), done(store.getAll())]);
    db.close();
    return Object.fromEntries(keys.map((key, i) => [key, values[i].edits.length]));
  });

test("edits of another version of the model are counted, and can be exported or deleted", async (t) => {
  // The host has a new version from the second visit on.
  const other = join(await scratch(t), "model");
  await xylem("random", "--out", other, "--context", "4096", "--seed", "7");
  let served = model;
  const intercept = async (request, response) => {
    if (served === model || !request.url.startsWith("/model/")) return false;
    response.end(await readFile(join(served, "..", request.url.split("?")[0])));
    return true;
  };
  const page = await enginePage(t, model, { settings: GREEDY, intercept });
  page.setDefaultTimeout(20_000);
  const open = async () => {
    await page.getByRole("tab", { name: "Edits" }).click();
    await page.locator("button[type=submit]:enabled", { hasText: "Add the edit" }).waitFor();
  };
  const title = page.getByRole("heading", { name: "Edits for other models" });
  const entries = page.getByRole("list", { name: "Edits" }).getByRole("listitem");
  await open();
  await page.getByLabel("Where the text says").fill("tree");
  await page.getByLabel("the table answers with the rows of").fill("What");
  await page.keyboard.press("Enter");
  await entries.first().waitFor();
  assert.equal(await title.isVisible(), false);
  const before = await lists(page);
  const [[hash, count]] = Object.entries(before);

  served = other;
  await page.reload();
  await open();
  await title.click();
  assert.equal(await entries.count(), 0);
  await page.getByText(`${count} edits for 1 other model`, { exact: true }).waitFor();
  const item = page.locator(".other-models li");
  assert.match(await item.innerText(), new RegExp(`^${count} edits for the model ${hash.slice(0, 8)}: tree as What`));
  assert.deepEqual(await complaints(page), []);
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    item.getByRole("button", { name: "Export a file" }).click(),
  ]);
  const file = join(await scratch(t), "edits.json");
  await download.saveAs(file);
  const exported = JSON.parse(await readFile(file, "utf8"));
  assert.deepEqual([exported.format, exported.model, exported.edits.length], ["xylem-edits", hash, count]);

  const button = (name) => item.getByRole("button", { name });
  await button("Delete").press("Enter");
  await button("Undo").and(page.locator(":focus")).waitFor();
  assert.equal((await lists(page))[hash], undefined);
  await page.keyboard.press("Enter");
  await button("Export a file").and(page.locator(":focus")).waitFor();
  assert.equal((await lists(page))[hash], count);
  await button("Delete").click();
  await button("Undo").waitFor();
  await page.reload();
  await open();
  assert.equal(await title.isVisible(), false);

  // The file is good for the model that it was made for.
  served = model;
  await page.reload();
  await open();
  await page.locator("input[type=file][accept]").last().setInputFiles(file);
  await page.getByRole("checkbox", { name: "tree as What", exact: true }).waitFor();
  assert.deepEqual(page.problems, []);
});
