// Edits in the page, on the real engine with a small random model, against what the native command makes of the same.

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { answered, browser, enginePage, nextResult, root, scratch, xylem } from "./harness.mjs";

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

test("which token gets which row is seen before the edit is made", async (t) => {
  const page = await edits(t);
  const preview = page.locator(".edit-preview");
  await page.getByLabel("Where the text says").fill("tree");
  assert.equal(await preview.isVisible(), false);
  await page.getByLabel("the table answers with the rows of").fill("oak + ash");
  await preview.getByText("mean of").first().waitFor();
  const before = await preview.locator("tbody tr").allInnerTexts();
  await page.keyboard.press("Enter");
  await entries(page).first().waitFor();
  assert.equal(await preview.isVisible(), false);
  await entries(page).first().locator("summary").click();
  assert.deepEqual(await entries(page).first().locator("table").last().locator("tbody tr").allInnerTexts(), before);
  assert.deepEqual(page.problems, []);
});

test("a range of layers is chosen by drag, and the keyboard chooses each", async (t) => {
  const page = await edits(t);
  await add(page, "tree", "What");
  await page.locator("summary", { hasText: "One to one" }).click();
  const centre = async (layer) => {
    const cell = page.getByRole("button", { name: `Layer ${layer}` });
    await cell.scrollIntoViewIfNeeded();
    const box = await cell.boundingBox();
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

/** Opens a part of the page and gives it. */
async function part(page, title) {
  const section = page.locator(".edits-section", { hasText: title }).first();
  await section.locator("summary").first().click();
  return section;
}

test("a list goes out as a file that the command takes, and comes in again", async (t) => {
  const page = await edits(t);
  await answered(page, QUESTION);
  await add(page, "tree", "What");
  await page.getByRole("slider", { name: "Strength of tree as What" }).fill("0.5");
  const edited = await again(page, 1);
  const section = await part(page, "Export, import, share");
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    section.getByRole("button", { name: "Export a file" }).click(),
  ]);
  const file = join(await scratch(t), "edits.json");
  await download.saveAs(file);
  assert.deepEqual(await native("--edits", file), edited);

  await button(page, "Remove tree as What").click();
  await entries(page).first().waitFor({ state: "detached" });
  await section.locator("input[type=file]").setInputFiles(file);
  await section.getByText("2 edits added from edits.json.").waitFor();
  assert.deepEqual(await again(page, 2), edited);

  for (const [spoil, says] of [
    [(text) => text.replace(/"model": "..../, '"model": "0000'), /made for the model 0000/],
    [(text) => text.replace('"strength": 0.5', '"strength": 90'), /edit 1 \(tree as What.*strength 90/],
    [() => "hello", /not a file of edits/],
    [(text) => text.replace('"version": 1', '"version": 7'), /version 7/],
  ]) {
    const text = await readFile(file, "utf8");
    await writeFile(join(file, "../bad.json"), spoil(text));
    await section.locator("input[type=file]").setInputFiles(join(file, "../bad.json"));
    const alert = section.getByRole("alert");
    await alert.filter({ hasText: says }).waitFor();
    assert.match(await alert.innerText(), /^bad\.json: /);
  }
  assert.equal(await entries(page).count(), 1);
  assert.deepEqual(page.problems, []);
});

test("a link asks before its edits come into the list", async (t) => {
  const page = await edits(t);
  await add(page, "tree", "What");
  const section = await part(page, "Export, import, share");
  await section.getByRole("button", { name: "Copy a link" }).click();
  await section.getByText(/The link is copied/).waitFor();
  const link = await page.evaluate(() => navigator.clipboard.readText());
  await button(page, "Remove tree as What").click();
  await entries(page).first().waitFor({ state: "detached" });

  await page.goto(link);
  const dialog = page.getByRole("dialog", { name: "This link brings edits" });
  await dialog.getByText("tree as What", { exact: true }).waitFor();
  assert.equal(new URL(page.url()).hash, "");
  assert.equal(await entries(page).count(), 0);
  await dialog.getByRole("button", { name: "Leave them" }).click();
  await page.goto(link);
  await dialog.getByRole("button", { name: "Add to my edits" }).click();
  await page.getByRole("checkbox", { name: "tree as What" }).waitFor();
  const { result } = await answered(page, QUESTION);
  assert.deepEqual(result.tokens, await nativeSwap(t, "--with", "What"));

  await page.goto(`${link.slice(0, -30)}`);
  await page
    .getByRole("dialog", { name: "The edits of this link cannot be used" })
    .getByText(/not a file of edits/)
    .waitFor();
  assert.deepEqual(page.problems, []);
});

test("before and after differ by the edits alone", async (t) => {
  const page = await edits(t);
  const section = await part(page, "Before and after");
  await section.getByRole("button", { name: "Compare" }).click();
  await section.getByRole("alert").filter({ hasText: "no question yet" }).waitFor();
  await section.getByLabel("Question").fill(QUESTION);
  await section.getByRole("button", { name: "Compare" }).click();
  await section.getByRole("alert").filter({ hasText: "No edit is switched on" }).waitFor();
  await add(page, "tree", "What");
  await section.getByRole("button", { name: "Compare" }).click();
  await section.getByText(/^Seed \d+\. The answers differ\.$/).waitFor();
  const [plain, edited] = await page.evaluate(() => window.results.map(({ result }) => result));
  assert.deepEqual(plain.tokens, await native());
  assert.deepEqual(edited.tokens, await nativeSwap(t, "--with", "What"));
  assert.equal(plain.seed, edited.seed);
  assert.equal(
    await section.getByRole("region", { name: "With the edits" }).locator("p").innerText(),
    edited.text.trim(),
  );
  // The chat itself is as it was.
  assert.equal(await page.getByRole("article").count(), 0);
});

test("the answers are weighed at each strength, and unrelated texts are measured", async (t) => {
  const page = await edits(t);
  await add(page, "tree", "What");
  const section = await part(page, "How the answer tips");
  await section.getByLabel("Beginning of a sentence").fill("my tree");
  await section.getByRole("button", { name: "Weigh the answers" }).click();
  await section.getByText(/the likelier of the two/).waitFor();
  const ends = [section.getByLabel("One end"), section.getByLabel("Another end")];
  const found = await Promise.all(ends.map((end) => end.inputValue()));
  assert.notEqual(found[0], found[1]);
  await ends[0].fill("ab");
  await ends[1].fill("cd");
  await section.getByRole("button", { name: "Weigh the answers" }).click();
  await section.getByText(/^(ab|cd) .*the likelier of the two/).waitFor();
  await section.getByText("As a table").click();
  const rows = await section.locator(".chart tbody tr").allInnerTexts();
  const [strengths, old] = [0, 1].map((i) => rows.map((row) => Number(row.split(/\s+/)[i])));
  assert.deepEqual(
    strengths,
    Array.from({ length: 16 }, (_, i) => Math.round(i) / 10),
  );
  assert.ok(new Set(old).size > 5, `${old}`);

  await section.getByRole("button", { name: "Measure" }).click();
  await section.getByText(/The furthest moves by/).waitFor();
  assert.equal(await section.locator("table", { hasText: "Text that no edit" }).locator("tbody tr").count(), 6);
  assert.deepEqual(page.problems, []);
});

test("a measurement can be stopped, and gives way to an answer", async (t) => {
  const page = await edits(t);
  await add(page, "tree", "What");
  const section = await part(page, "How the answer tips");
  await section.getByLabel("Beginning of a sentence").fill("a tree ".repeat(36));
  await section.getByLabel("One end").fill("ab");
  await section.getByLabel("Another end").fill("cd");
  await page.getByRole("textbox", { name: "Message", exact: true }).fill(QUESTION);
  for (const selector of [".run button:not([hidden])", ".send"]) {
    // The page itself presses Stop, or sends the question, once a strength is weighed: the others don't wait for the test.
    await section.evaluate((element, selector) => {
      const observer = new MutationObserver(() => {
        if (!/^Strength 0\.\d$/m.test(element.innerText)) return;
        observer.disconnect();
        (element.querySelector(selector) ?? document.querySelector(selector)).click();
      });
      observer.observe(element, { subtree: true, childList: true, characterData: true });
    }, selector);
    await section.getByRole("button", { name: "Weigh the answers" }).click();
    await section.getByText("Stopped.", { exact: true }).waitFor();
  }
  assert.deepEqual((await nextResult(page, 0)).tokens, await nativeSwap(t, "--with", "What"));
  assert.deepEqual(page.problems, []);
});

test("a fact is taught on the CPU, and its rows go out as the command takes them", async (t) => {
  const page = await edits(t);
  const section = await part(page, "Teach a fact");
  await section.getByLabel("Subject").fill("Spain");
  await section.getByLabel(/^Beginning of a sentence/).fill("I think Spain is");
  await section.getByLabel("Wanted end").fill("ab");
  await section.getByLabel("Steps at most").fill("4");
  await section.getByRole("button", { name: "Teach" }).click();
  const said = await section.getByText(/^In 4 steps the answer went from/).innerText();
  const [before, after] = said.match(/[\d.]+%/g).map(Number.parseFloat);
  assert.ok(after > before, said);
  await entries(page).filter({ hasText: "Spain: ab" }).waitFor();
  await entries(page).locator("summary", { hasText: "Learned rows" }).click();
  await page.getByText("a row that was learned").first().waitFor();

  // The page's rows are those that the command finds, but for the rounding of another order of sums.
  const file = join(await scratch(t), "edits.json");
  const lesson = [
    "--subject",
    "Spain",
    "--prompt",
    "I think Spain is",
    "--answer",
    "ab",
    "--steps",
    "4",
    "--out",
    file,
  ];
  const printed = await xylem("edit", "teach", "--bundle", model, ...lesson);
  const [, one, other] = /from a probability of ([\d.]+) to ([\d.]+)/.exec(printed).map(Number);
  assert.ok(Math.abs(100 * one - before) < 0.2 && Math.abs(100 * other - after) < 0.2, `${said} ${printed}`);

  await section.getByLabel("Subject").fill("Peru");
  await section.getByRole("button", { name: "Teach" }).click();
  await section.getByRole("alert").filter({ hasText: 'does not name "Peru"' }).waitFor();
  const share = await part(page, "Export, import, share");
  await share.getByRole("button", { name: "Copy a link" }).click();
  await share.getByRole("alert").filter({ hasText: "no room for learned rows" }).waitFor();
  // What can go goes, and what can't is named.
  await add(page, "tree", "What");
  await share.getByRole("button", { name: "Copy a link" }).click();
  await share.getByText(/The link is copied.* does not contain what was taught.*: Spain: ab\.$/).waitFor();
  await button(page, "Export the edits as a file").waitFor();
  const link = await page.evaluate(() => navigator.clipboard.readText());
  const linked = JSON.parse(Buffer.from(new URL(link).hash.replace("#edits=", ""), "base64url"));
  assert.ok(linked.edits.length > 0 && linked.edits.every(({ label }) => label.startsWith("tree as What")));
});

test("teaching says that it needs the CPU", async (t) => {
  const page = await edits(t, { settings: { ...GREEDY, backend: "gpu" } });
  const section = await part(page, "Teach a fact");
  assert.ok(await section.getByRole("button", { name: "Teach" }).isDisabled());
  await section.getByRole("button", { name: "Use the CPU" }).click();
  await section.getByText(/needs the CPU backend/).waitFor({ state: "hidden" });
  await section.locator("button:enabled", { hasText: "Teach" }).waitFor();
});

test("an example is one click; a second one asks again without another edit", async (t) => {
  const [example] = JSON.parse(await readFile(join(root, "www/src/edits/gallery.json"), "utf8")).works;
  const page = await edits(t);
  const section = await part(page, "Edits that work");
  await section.getByText("measured with another version of the model").waitFor();
  await section.getByRole("button", { name: "Try Spain as Germany" }).click();
  await page.getByRole("checkbox", { name: "Spain as Germany" }).waitFor();
  const first = await nextResult(page, 0);
  await page.getByRole("article", { name: "You" }).getByText(example.question).waitFor();
  await page.getByRole("checkbox", { name: "Spain as Germany" }).uncheck();
  await section.getByRole("button", { name: "Try Spain as Germany" }).click();
  assert.deepEqual((await nextResult(page, 1)).tokens, first.tokens);
  assert.equal(await entries(page).count(), 1);
  // Its sentence and its two ends are known.
  const weigh = await part(page, "How the answer tips");
  assert.equal(await weigh.getByLabel("Beginning of a sentence").inputValue(), example.prompt);
  assert.equal(await weigh.getByLabel("Another end").inputValue(), example.new);
});

test("two edits that are switched off at once are both off", async (t) => {
  const page = await edits(t);
  await add(page, "rises", "What");
  await add(page, "tree", "What");
  const switches = page.locator(".edit-head .edit-switch input");
  // Before the list is drawn anew.
  await switches.evaluateAll((all) => {
    for (const one of all) one.click();
  });
  await page.waitForFunction(() =>
    [...document.querySelectorAll(".edit-head .edit-switch input")].every((one) => !one.checked),
  );
  await page.waitForTimeout(500);
  assert.equal(await switches.count(), 2);
  assert.ok(await switches.evaluateAll((all) => all.every((one) => !one.checked)));
});

test("an edit that is moved keeps the focus, and other tabs show the list too", async (t) => {
  const page = await edits(t);
  const other = await browser(t);
  await other.goto(page.url());
  await other.getByRole("tab", { name: "Edits" }).click();
  await other.locator("button[type=submit]:enabled", { hasText: "Add the edit" }).waitFor();
  await add(page, "rises", "What");
  await add(page, "tree", "What");
  const names = (where) => where.locator(".edit-head .edit-switch").allInnerTexts();
  const shown = await names(page);
  assert.equal(shown.length, 2);
  const last = page.getByRole("button", { name: /^Apply .* earlier$/ }).last();
  await last.focus();
  await page.keyboard.press("Enter");
  await page.waitForFunction((name) => document.querySelector(".edit-head .edit-switch")?.innerText === name, shown[1]);
  assert.deepEqual(await names(page), shown.toReversed());
  const focused = () => page.evaluate(() => document.activeElement?.getAttribute("aria-label"));
  assert.equal(await focused(), `Apply ${shown[1]} earlier`);
  // At the end of the list another press changes nothing.
  await page.keyboard.press("Enter");
  await page.waitForTimeout(300);
  assert.deepEqual(await names(page), shown.toReversed());
  await other.waitForFunction(
    (name) => document.querySelector(".edit-head .edit-switch")?.innerText === name,
    shown[1],
  );
  assert.deepEqual(await names(other), shown.toReversed());
});
