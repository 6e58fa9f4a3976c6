// When the engine fails: one clear sentence, and a way on. The stand-in engine fails on purpose.

import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { ask, browser, copySite, fakePage, lastAnswer, scratch, serve } from "./harness.mjs";

const button = (page, name) => page.getByRole("button", { name, exact: true });

test("a question asked while the model loads is answered once it is there", async (t) => {
  const page = await fakePage(t, "slow");
  await ask(page, "hello");
  await page.getByText("answered as soon as the model is loaded").waitFor();
  await page.getByText(/\d+ MB of 100 MB · [\d.]+ MB\/s · [\d.]+ s left/).waitFor();
  assert.ok(Number(await page.getByRole("progressbar").getAttribute("aria-valuenow")) > 0);
  await lastAnswer(page);
  await page.getByText(/^1: /).waitFor();
});

test("loading can be cancelled and begun again", async (t) => {
  const page = await fakePage(t, "slow");
  await button(page, "Cancel").click();
  await button(page, "Load the model").click();
  await page.getByRole("progressbar").waitFor();
  assert.deepEqual(page.problems, []);
});

test("where there is no GPU the CPU is one click away, and the question is still answered", async (t) => {
  const page = await fakePage(t, "no-gpu");
  await ask(page, "hello");
  await page.getByText("GPU: the browser offers no adapter").waitFor();
  await button(page, "Use the CPU").click();
  await lastAnswer(page);
  await page.getByText(/^1: /).waitFor();
});

for (const [kind, message] of [
  ["crash", "The engine broke off"],
  ["lost", "GPU: the device was lost"],
]) {
  test(`after a ${kind} the engine can be started again`, async (t) => {
    const page = await fakePage(t, kind);
    await ask(page, "hello");
    const answer = await lastAnswer(page);
    await answer.getByText(message).waitFor();
    await page.locator(".load").getByText(message).waitFor();
    await page.locator(".load").getByRole("button", { name: "Try again" }).click();
    await page.locator(".load").waitFor({ state: "hidden" });
    await answer.getByRole("button", { name: "Try again" }).click();
    await page.locator(".load").getByText(message).waitFor();
    assert.deepEqual(page.problems, []);
  });
}

test("an error of one answer leaves the engine alone", async (t) => {
  const page = await fakePage(t, "flaky");
  await ask(page, "hello");
  const answer = await lastAnswer(page);
  await answer.getByText("the row store did not answer").waitFor();
  await answer.getByRole("button", { name: "Try again" }).click();
  await page.getByText(/^2: /).waitFor();
});

test("an engine that does not react can be stopped by force", async (t) => {
  const page = await fakePage(t, "deaf");
  await ask(page, "hello");
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: /^Stop by force/ }).click({ timeout: 10_000 });
  await lastAnswer(page);
  await page.locator(".load").waitFor({ state: "hidden" });
});

test("the model can be unloaded and comes back with the next question", async (t) => {
  const page = await fakePage(t, "echo");
  await page.getByRole("tab", { name: "Model" }).click();
  await button(page, "Unload").click();
  await page.getByText("The model is not loaded").waitFor();
  await ask(page, "hello");
  await lastAnswer(page);
  await page.getByText(/^1: /).waitFor();
});

test("a missing engine is named", async (t) => {
  const folder = await scratch(t);
  await copySite(folder, { fake: true });
  await rm(join(folder, "pkg"), { recursive: true });
  const page = await browser(t);
  await page.goto(await serve(t, folder));
  await page.getByText(/The engine \(.*pkg\/xylem\.js\) could not be started/).waitFor();
  await button(page, "Try again").waitFor();
});
