// Edits of n-grams in the page, on a small random model with Engram layers, against the native command.

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { complaints, tooWide } from "./checks.mjs";
import { answered, enginePage, like, nextResult, scratch, xylem } from "./harness.mjs";

const QUESTION = "What rises in a tree, in a tall tree?";
const GREEDY = { temperature: 0, repetitionPenalty: 1.3, maxTokens: 24, backend: "cpu" };

let folder;
let model;
let plain;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "xylem-engram-edits-"));
  [model, plain] = [join(folder, "model"), join(folder, "plain")];
  const shape = ["--layers", "3", "--stem", "1,2", "--context", "4096"];
  await xylem("random", "--out", model, ...shape, "--engram-layers", "0,1");
  await xylem("random", "--out", plain, ...shape);
});
after(() => rm(folder, { recursive: true, force: true }));

async function native(...more) {
  const sampling = ["--temperature", "0", "--repetition-penalty", "1.3", "--max-tokens", "24"];
  const prompt = ["--prompt", QUESTION, "--chat", "--context", "4096"];
  return JSON.parse(await xylem("generate", "--bundle", model, ...prompt, ...sampling, ...more, "--json")).tokens;
}

/** The tokens of the native command with the edit of n-grams that these options make. */
async function nativeNgram(t, options, more = []) {
  const edits = join(await scratch(t), "edits.json");
  await xylem("edit", "ngram", "--bundle", model, "--out", edits, ...options);
  return native("--edits", edits, ...more);
}

async function editsPage(t, { from = model, settings = {}, media = {} } = {}) {
  const page = await enginePage(t, from, { settings: { ...GREEDY, ...settings }, media });
  page.setDefaultTimeout(20_000);
  await page.getByRole("tab", { name: "Edits" }).click();
  await page.locator("button[type=submit]:enabled", { hasText: "Add the edit" }).waitFor();
  return page;
}

const entries = (page) => page.getByRole("list", { name: "Edits" }).getByRole("listitem");

async function add(page, subject, answer) {
  const before = await entries(page).count();
  if (!(await page.getByLabel("Text whose n-grams are answered for").isVisible())) {
    await page.getByText("Edit n-grams", { exact: true }).click();
  }
  await page.getByLabel("Text whose n-grams are answered for").fill(subject);
  const scaled = typeof answer === "number";
  await page.getByLabel("Engram layers answer with").selectOption(scaled ? "factor" : "with");
  if (scaled) await page.getByLabel("Factor").fill(String(answer));
  else await page.getByLabel("Text whose n-grams answer", { exact: true }).fill(answer);
  await page.keyboard.press("Enter");
  await entries(page).nth(before).waitFor();
}

async function again(page, n) {
  await page.locator(".edits-bar").getByRole("button", { name: "Answer again" }).click();
  return (await nextResult(page, n)).tokens;
}

for (const backend of ["cpu", "gpu"]) {
  test(`n-grams are answered by others as natively, and without the edit by their own (${backend})`, async (t) => {
    const page = await editsPage(t, { settings: { backend } });
    const before = (await answered(page, QUESTION)).result.tokens;
    assert.deepEqual(before, await native(...like(backend)));
    await add(page, "tree", "wood");
    const edited = await again(page, 1);
    assert.deepEqual(edited, await nativeNgram(t, ["--subject", "tree", "--with", "wood"], like(backend)));
    assert.notDeepEqual(edited, before);
    await page.getByRole("checkbox", { name: "Edits apply" }).uncheck();
    assert.deepEqual(await again(page, 2), before);
    await page.getByRole("checkbox", { name: "Edits apply" }).check();
    await page.getByRole("button", { name: "Undo the last change of the edits" }).click();
    await page.getByRole("button", { name: "Undo the last change of the edits" }).click();
    await page.getByRole("button", { name: "Undo the last change of the edits" }).click();
    await entries(page).first().waitFor({ state: "detached" });
    assert.deepEqual(await again(page, 3), before);
    assert.deepEqual(page.problems, []);
  });
}

test("the entry says which n-gram gets what, and its layers can be chosen", async (t) => {
  const page = await editsPage(t);
  await answered(page, QUESTION);
  await add(page, "tre", "oak");
  const entry = entries(page).first();
  await entry.getByText("N-grams, all layers").click();
  const rows = await entry.locator("tbody tr").allInnerTexts();
  assert.deepEqual(
    rows.map((row) => row.replace("\t", ": ")),
    ["␣t: rows of ␣o", "tr: rows of oa", "␣tr: rows of ␣oa", "re: rows of ak", "tre: rows of oak"],
  );
  await entry.getByRole("button", { name: "Layer 0" }).press("Enter");
  await entry.getByText("N-grams, layers 1, this name").waitFor();
  assert.deepEqual(await again(page, 1), await nativeNgram(t, ["--subject", "tre", "--with", "oak", "--layers", "1"]));

  // The grid marks the n-grams of the chosen layer alone.
  await page.getByRole("tab", { name: "Lookups" }).click();
  await page.getByRole("button", { name: "Show the last answer" }).click();
  await page.locator(".strip span").first().waitFor();
  await page.getByLabel("Colours show").selectOption("edited");
  const spans = await page.locator(".strip span").allTextContents();
  const at = spans.findIndex((text, i) => text === "t" && spans[i - 1] === " " && spans[i + 1] === "r");
  const cell = async (column) => {
    await page.locator(".grid-window").focus();
    await page.keyboard.press("Home");
    for (let i = 0; i < 8; i += 1) await page.keyboard.press("ArrowLeft");
    for (let i = 0; i < at; i += 1) await page.keyboard.press("ArrowDown");
    for (let i = 0; i < column; i += 1) await page.keyboard.press("ArrowRight");
    return page.locator("#lookup-readout").innerText();
  };
  assert.match(await cell(2), /layer 1, Engram · edited/);
  assert.match(await cell(0), /layer 0, Engram · not edited/);
  assert.match(await cell(3), /layer 1, STEM · not edited/);
  assert.deepEqual(page.problems, []);
});

test("rows are scaled; the list goes out as a file of the command, and as a link", async (t) => {
  const page = await editsPage(t);
  await answered(page, QUESTION);
  await add(page, "tall", 0);
  assert.deepEqual(await again(page, 1), await nativeNgram(t, ["--subject", "tall", "--factor", "0"]));
  await page.getByText("Export, import, share").click();
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.getByRole("button", { name: "Export a file" }).click(),
  ]);
  const file = await readFile(await download.path(), "utf8");
  assert.deepEqual([JSON.parse(file).version, JSON.parse(file).edits[0].target], [2, { ngrams: { factor: 0 } }]);
  await writeFile(join(folder, "edits.json"), file);
  const listed = await xylem("edit", "list", "--bundle", model, "--edits", join(folder, "edits.json"));
  assert.match(listed, /get 0 times their own rows/);
  await page.getByRole("button", { name: "Copy a link" }).click();
  await page.getByText(/^The link is copied/).waitFor();
  const link = await page.evaluate(() => navigator.clipboard.readText());
  await page.goto("about:blank");
  await page.goto(link);
  await page.getByRole("button", { name: "Add to my edits" }).click();
  await page.getByRole("tab", { name: "Edits" }).click();
  await entries(page).nth(1).waitFor();
});

test("what is no n-gram is refused, and a model without Engram layers offers nothing", async (t) => {
  const page = await editsPage(t);
  await page.getByText("Edit n-grams", { exact: true }).click();
  const refuse = async (subject, answer, reason) => {
    await page.getByLabel("Text whose n-grams are answered for").fill(subject);
    const scaled = typeof answer === "number";
    await page.getByLabel("Engram layers answer with").selectOption(scaled ? "factor" : "with");
    if (scaled) await page.getByLabel("Factor").fill(String(answer));
    else await page.getByLabel("Text whose n-grams answer", { exact: true }).fill(answer);
    await page.keyboard.press("Enter");
    await page.getByRole("alert").filter({ hasText: reason }).waitFor();
  };
  await refuse("", "wood", "is one token or none");
  await refuse("tree", "", "is one token or none");
  await refuse("tree", 9, "The factor is a number from 0 to 4");
  assert.equal(await entries(page).count(), 0);
  const none = await editsPage(t, { from: plain });
  assert.equal(await none.getByText("Edit n-grams", { exact: true }).isVisible(), false);
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds nothing wrong with edits of n-grams, and they fit a phone (${colorScheme})`, async (t) => {
    const page = await editsPage(t, { media: { colorScheme, reducedMotion: "reduce" } });
    await add(page, "tree", "wood");
    await add(page, "tall", 0.5);
    for (const name of ["N-grams, all layers", "N-grams, all layers"]) {
      await page.locator(".edit details:not([open])").getByText(name).first().click();
    }
    assert.deepEqual(await complaints(page), []);
    await page.setViewportSize({ width: 390, height: 844 });
    const panel = page.getByRole("button", { name: "Panel: model and settings" });
    if (!(await page.locator("#panel").isVisible())) await panel.click();
    await page.getByRole("tab", { name: "Edits" }).click();
    assert.deepEqual(await tooWide(page, ".panel, .edits-page, .edits-page *"), []);
  });
}
