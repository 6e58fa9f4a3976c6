// What a link brings, and what it leaves alone.

import assert from "node:assert/strict";
import { test } from "node:test";
import { complaints } from "./checks.mjs";
import { fakePage, lastAnswer } from "./harness.mjs";

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
