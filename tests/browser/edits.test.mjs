// Edits in the page, on the real engine with a small random model, against what the native command makes of the same.

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { answered, enginePage, nextResult, scratch, xylem } from "./harness.mjs";

const QUESTION = "What rises in a tree?";
const GREEDY = { temperature: 0, repetitionPenalty: 1.3, maxTokens: 48, backend: "cpu" };

let folder;
let model;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "xylem-edits-"));
  model = join(folder, "model");
  await xylem("random", "--out", model, "--layers", "5", "--stem", "1,2,4", "--context", "4096");
});
after(() => rm(folder, { recursive: true, force: true }));

/** The tokens that the native command answers with. */
async function native(...more) {
  const sampling = ["--temperature", "0", "--repetition-penalty", "1.3", "--max-tokens", "48"];
  const prompt = ["--prompt", QUESTION, "--chat", "--context", "4096"];
  return JSON.parse(await xylem("generate", "--bundle", model, ...prompt, ...sampling, ...more, "--json")).tokens;
}

/** The tokens of the native command with the swap that these options make. */
async function nativeSwap(t, ...options) {
  const edits = join(await scratch(t), "edits.json");
  await xylem("edit", "swap", "--bundle", model, "--subject", "tree", "--at-start", "--out", edits, ...options);
  return native("--edits", edits);
}

async function edits(t, options = {}) {
  const page = await enginePage(t, model, { settings: GREEDY, ...options });
  page.setDefaultTimeout(20_000);
  await page.getByRole("tab", { name: "Edits" }).click();
  await page.locator("button[type=submit]:enabled", { hasText: "Add the edit" }).waitFor();
  return page;
}

const button = (page, name) => page.getByRole("button", { name, exact: true });
const entries = (page) => page.getByRole("list", { name: "Edits" }).getByRole("listitem");

async function add(page, subject, other) {
  const before = await entries(page).count();
  await page.getByLabel("Where the text says").fill(subject);
  await page.getByLabel("the table answers with the rows of").fill(other);
  await page.keyboard.press("Enter");
  await entries(page).nth(before).waitFor();
}

/** Asks for another answer with the edits as they are; `n` answers were given before. */
async function again(page, n) {
  await page.locator(".edits-bar").getByRole("button", { name: "Answer again" }).click();
  return (await nextResult(page, n)).tokens;
}

test("an edit changes the answer as it does natively; with all off every token is what it was", async (t) => {
  const page = await edits(t);
  const plain = (await answered(page, QUESTION)).result.tokens;
  assert.deepEqual(plain, await native());
  await add(page, "tree", "What");
  const edited = await again(page, 1);
  assert.deepEqual(edited, await nativeSwap(t, "--with", "What"));
  assert.notDeepEqual(edited, plain);

  await page.getByRole("checkbox", { name: "Edits apply" }).uncheck();
  assert.deepEqual(await again(page, 2), plain);
  await page.getByRole("checkbox", { name: "Edits apply" }).check();
  await page.getByRole("checkbox", { name: "tree as What" }).uncheck();
  assert.deepEqual(await again(page, 3), plain);

  await page.reload();
  await page.getByRole("tab", { name: "Edits" }).click();
  assert.equal(await page.getByRole("checkbox", { name: "tree as What" }).isChecked(), false);
  await page.getByRole("checkbox", { name: "tree as What" }).check();
  assert.deepEqual(await again(page, 0), edited, "the first answer after a reload has the edits");
  await button(page, "Remove tree as What").click();
  await entries(page).waitFor({ state: "detached" });
  assert.deepEqual(page.problems, []);
});

test("an answer that begins with the model has the edits of the last visit", async (t) => {
  const page = await edits(t);
  await add(page, "tree", "What");
  await page.reload();
  const { result } = await answered(page, QUESTION);
  assert.deepEqual(result.tokens, await nativeSwap(t, "--with", "What"));
});

test("strength, method and layers are those of the command", async (t) => {
  const page = await edits(t);
  await answered(page, QUESTION);
  await add(page, "tree", "What");
  await page.getByRole("slider", { name: "Strength of tree as What" }).fill("0.5");
  await page.getByText(/^One to one, all layers/).click();
  assert.deepEqual(await again(page, 1), await nativeSwap(t, "--with", "What", "--strength", "0.5"));

  await page.getByLabel("Which token gets which row").selectOption("average");
  await page.getByRole("button", { name: "Layer 2" }).click();
  await page.getByText(/^Average, layers 1, 4/).waitFor();
  const options = ["--with", "What", "--strength", "0.5", "--method", "average", "--layers", "1,4"];
  assert.deepEqual(await again(page, 2), await nativeSwap(t, ...options));

  // Where the numbers of tokens differ, only what fits can be chosen.
  await add(page, "tree", "trunk");
  const second = entries(page).nth(1);
  await second.locator("summary").click();
  assert.deepEqual(await second.locator("option[value=one_to_one]").evaluate((option) => option.disabled), true);
});

test("a range of layers is chosen by drag, and the keyboard chooses each", async (t) => {
  const page = await edits(t);
  await add(page, "tree", "What");
  await page.locator("summary", { hasText: "One to one" }).click();
  const centre = async (layer) => {
    const box = await page.getByRole("button", { name: `Layer ${layer}` }).boundingBox();
    return [box.x + box.width / 2, box.y + box.height / 2];
  };
  await page.mouse.move(...(await centre(2)));
  await page.mouse.down();
  await page.mouse.move(...(await centre(4)), { steps: 4 });
  await page.mouse.up();
  await page.getByText(/^One to one, layers 2, 4/).waitFor();
  await page.getByRole("columnheader", { name: "Layers 1" }).first().waitFor();
  await page.getByRole("button", { name: "Layer 4" }).press("Space");
  await page.getByText(/^One to one, layers 2,/).waitFor();
  await page.getByRole("button", { name: "Layer 4" }).and(page.locator(":focus")).waitFor();
  // The last one stays.
  await page.getByRole("button", { name: "Layer 2" }).press("Space");
  assert.equal(await page.getByRole("button", { name: "Layer 2" }).getAttribute("aria-pressed"), "true");
});

test("the preview says which token gets which row", async (t) => {
  const page = await edits(t);
  await add(page, "tree", "at");
  await page.locator("summary", { hasText: "Pad" }).click();
  const within = page.getByRole("table", { name: "Within a text" });
  const rows = await within.locator("tbody tr").allInnerTexts();
  assert.deepEqual(
    rows.map((row) => row.replace(/\s+/g, " ")),
    ["␣ its own", "t its own", "r row of ␣", "e row of a", "e row of t"],
  );
  await add(page, "tree", "at + by");
  await page.locator("summary", { hasText: "Average" }).click();
  await page
    .getByRole("row", { name: /r mean of ␣ a t ␣ b y/ })
    .first()
    .waitFor();
});

test("one place of a chat can be edited alone", async (t) => {
  const page = await edits(t);
  await answered(page, QUESTION);
  await add(page, "tree", "What");
  await page.locator("summary", { hasText: "One to one" }).click();
  await page.getByLabel("Where it applies").selectOption("position");
  await page.getByRole("radio", { name: /What rises in a tree/ }).check();
  const summary = page.getByText(/only at token \d+/);
  const position = /token (\d+)/.exec(await summary.innerText())[1];
  assert.deepEqual(await again(page, 1), await nativeSwap(t, "--with", "What", "--at", position));
});

test("edits have an order, and each change can be undone and done again", async (t) => {
  const page = await edits(t);
  await add(page, "tree", "What");
  await add(page, "rises", "falls");
  const names = () => entries(page).locator(".edit-head label").allInnerTexts();
  assert.deepEqual(await names(), ["tree as What", "rises as falls"]);
  await button(page, "Apply rises as falls earlier").click();
  await page.waitForFunction(() => document.querySelector(".edit-head label")?.textContent === "rises as falls");
  await button(page, "Undo the last change of the edits").click();
  await page.waitForFunction(() => document.querySelector(".edit-head label")?.textContent === "tree as What");
  await page.keyboard.press("Control+z");
  await entries(page).nth(1).waitFor({ state: "detached" });
  assert.deepEqual(await names(), ["tree as What"]);
  await page.keyboard.press("Control+Shift+z");
  await entries(page).nth(1).waitFor();
  await button(page, "Redo the change of the edits").click();
  await page.waitForFunction(() => document.querySelector(".edit-head label")?.textContent === "rises as falls");
});

test("words selected in the chat become the subject", async (t) => {
  const page = await edits(t);
  await answered(page, QUESTION);
  await page.getByRole("tab", { name: "Model" }).click();
  await page
    .getByText(QUESTION)
    .first()
    .dblclick({ position: { x: 60, y: 20 } });
  const offer = page.getByRole("button", { name: /^Edit “\w+”/ });
  const [, word] = /“(\w+)”/.exec(await offer.innerText());
  await offer.click();
  assert.equal(await page.getByLabel("Where the text says").inputValue(), word);
  await page.getByLabel("the table answers with the rows of").and(page.locator(":focus")).waitFor();
});
