// What a link brings, and what it leaves alone.

import assert from "node:assert/strict";
import { test } from "node:test";
import { complaints } from "./checks.mjs";
import { ask, fakePage, lastAnswer } from "./harness.mjs";

const button = (page, name) => page.getByRole("button", { name, exact: true });
const message = (page) => page.getByRole("textbox", { name: "Message", exact: true });
const setting = (page, name) => page.getByRole("spinbutton", { name });
const stored = (page) => page.evaluate(() => JSON.parse(localStorage.getItem("xylem.settings")));

const linkOf = (page, question, settings) =>
  `${page.url().split("#")[0]}#${new URLSearchParams({ ask: question, settings: JSON.stringify(settings) })}`;

/** Opens the page by a link, as from elsewhere. */
async function openLink(page, question, settings) {
  const link = linkOf(page, question, settings);
  await page.goto("about:blank");
  await page.goto(link);
}

/** A page whose reader has made a setting, with its settings in sight. */
async function pageWithSetting(t) {
  const page = await fakePage(t, "echo");
  await page.getByRole("tab", { name: "Settings" }).click();
  await setting(page, "Top-k").fill("20");
  await page.keyboard.press("Tab");
  return page;
}

test("settings of a link hold for the visit, and are kept only as the reader says", async (t) => {
  const page = await pageWithSetting(t);
  await openLink(page, "How?", { temperature: 0, maxTokens: 32 });
  await page.keyboard.press("Enter");
  const { settings } = JSON.parse(await (await lastAnswer(page)).locator("pre").innerText());
  assert.deepEqual([settings.temperature, settings.topK, settings.maxTokens], [0, 40, 32]);
  await page.getByRole("tab", { name: "Settings" }).click();
  await page.getByText("A link brought these, for this visit: Temperature, Top-k, Longest answer.").waitFor();
  assert.deepEqual(await complaints(page), []);

  // One that is changed is the reader's own from then on, and only that one.
  await setting(page, "Temperature").fill("1");
  await page.keyboard.press("Tab");
  await page.getByText(/for this visit: (Top-k, Longest answer|Longest answer, Top-k)\./).waitFor();
  const mine = await stored(page);
  assert.deepEqual([mine.temperature, mine.topK, mine.maxTokens], [1, 20, 512]);
  await page.reload();
  await page.getByRole("tab", { name: "Settings" }).click();
  assert.equal(await setting(page, "Longest answer").inputValue(), "512");

  await openLink(page, "How?", { maxTokens: 32 });
  await page.getByRole("tab", { name: "Settings" }).click();
  await button(page, "Keep them").click();
  await page.getByLabel("System prompt").and(page.locator(":focus")).waitFor();
  const kept = await stored(page);
  assert.deepEqual([kept.temperature, kept.topK, kept.maxTokens], [0.3, 40, 32]);
  assert.deepEqual(page.problems, []);
});

test("the reader's own settings are one click away", async (t) => {
  const page = await pageWithSetting(t);
  for (const name of ["Keep my settings", "Back to mine"]) {
    await openLink(page, "How?", { maxTokens: 32, system: "Be brief." });
    await page.getByRole("tab", { name: "Settings" }).click();
    await page.getByText("for this visit: Top-k, Longest answer, System prompt.").waitFor();
    await button(page, name).click();
    await page.getByText("for this visit:").waitFor({ state: "hidden" });
    assert.equal(await setting(page, "Longest answer").inputValue(), "512");
    assert.equal(await setting(page, "Top-k").inputValue(), "20");
    assert.equal(await page.getByLabel("System prompt").inputValue(), "");
  }
});

test("a reset brings the defaults back whatever a link brought", async (t) => {
  const page = await pageWithSetting(t);
  await openLink(page, "How?", { maxTokens: 32 });
  await page.getByRole("tab", { name: "Settings" }).click();
  await button(page, "Reset to defaults").click();
  await page.reload();
  await page.getByRole("tab", { name: "Settings" }).click();
  assert.deepEqual(await Promise.all(["Top-k", "Longest answer"].map((name) => setting(page, name).inputValue())), [
    "40",
    "512",
  ]);
  assert.equal(await message(page).inputValue(), "");
});

/** Opens a link in the page as it is. */
async function followLink(page, question, settings = {}) {
  await page.evaluate((link) => location.assign(link), linkOf(page, question, settings));
  await page.waitForFunction(() => location.hash === "");
}

test("a link that is opened in the page acts as on load", async (t) => {
  const page = await fakePage(t, "echo");
  await ask(page, "before");
  await lastAnswer(page);
  for (const question of ["How?", "Why?"]) {
    await followLink(page, question, { maxTokens: 32 });
    assert.equal(await message(page).inputValue(), question);
    await page.getByText("A link brought this question and its settings.").waitFor();
    await button(page, "Keep my settings").waitFor();
  }
  await message(page).press("Enter");
  await page.getByText(/^2: Why/).waitFor();
  const { settings } = JSON.parse(await (await lastAnswer(page)).locator("pre").innerText());
  assert.equal(settings.maxTokens, 32);
  assert.equal(await message(page).inputValue(), "");
  assert.deepEqual(page.problems, []);
});

test("what is written when a link is opened comes back", async (t) => {
  const page = await fakePage(t, "echo");
  await message(page).fill("half a thought");
  await followLink(page, "How?", { maxTokens: 32 });
  assert.equal(await message(page).inputValue(), "How?");
  await button(page, "Undo").click();
  assert.equal(await message(page).inputValue(), "half a thought");
  await page.getByRole("tab", { name: "Settings" }).click();
  assert.equal(await setting(page, "Longest answer").inputValue(), "512");

  // Without the undo, after the question has been sent.
  await followLink(page, "How?");
  await followLink(page, "Why?");
  await message(page).press("Enter");
  await page.getByText(/^1: Why/).waitFor();
  assert.equal(await message(page).inputValue(), "half a thought");
});

test("an answer under way goes on when a link is opened", async (t) => {
  const page = await fakePage(t, "long");
  await ask(page, "go on");
  await page.getByText(/word word word/).waitFor();
  await followLink(page, "How?");
  const words = async () => (await page.locator(".answer .markdown").innerText()).length;
  const so_far = await words();
  await page.waitForFunction((n) => document.querySelector(".answer .markdown").innerText.length > n, so_far);
  assert.equal(await page.locator(".answer").getAttribute("aria-busy"), "true");
  assert.equal(await message(page).inputValue(), "How?");
});

test("a link that is too long is not made, and a file of the edits is offered", async (t) => {
  const page = await fakePage(t, "echo");
  await ask(page, "x".repeat(8000));
  await lastAnswer(page);
  await button(page, "Copy link").click();
  const lookups = page.getByRole("tabpanel", { name: "Lookups" });
  await lookups.getByText(/^The link would have 8,\d+ characters\./).waitFor();
  assert.equal(await button(page, "Export the edits as a file").count(), 0);

  await page.getByRole("tab", { name: "Edits" }).click();
  await page.getByLabel("Where the text says").fill("Spain");
  await page.getByLabel("the table answers with the rows of").fill("Germany");
  await page.keyboard.press("Enter");
  await page.getByRole("checkbox", { name: "Spain as Germany" }).waitFor();
  await page.getByRole("tab", { name: "Lookups" }).click();
  await button(page, "Copy link").click();
  await lookups.getByText(/A file has room for the edits\.$/).waitFor();
  assert.deepEqual(await complaints(page), []);
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    button(page, "Export the edits as a file").click(),
  ]);
  assert.equal(download.suggestedFilename(), "edits.json");
});

test("without a clipboard the link stands in a field, selected", async (t) => {
  const page = await fakePage(t, "echo");
  await page.addInitScript(() => Object.defineProperty(Navigator.prototype, "clipboard", { value: undefined }));
  await page.reload();
  await ask(page, "How?");
  await lastAnswer(page);
  await button(page, "Copy link").click();
  const field = page.getByRole("textbox", { name: "The link" });
  await field.and(page.locator(":focus")).waitFor();
  const link = await field.inputValue();
  assert.match(new URL(link).hash, /^#ask=How/);
  assert.equal(await page.evaluate(() => getSelection().toString()), link);
  assert.deepEqual(await complaints(page), []);
  // The buttons that copy say so.
  await button(page, "Copy answer").click();
  await button(page, "The browser did not allow copying").waitFor();
  assert.deepEqual(page.problems, []);
});
