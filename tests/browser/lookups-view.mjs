// The view of lookups as its tests use it.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";

/** Shows the view, by default once the model is there: before that an example would be shown. */
export async function open(page, { ready = true } = {}) {
  if (ready) await page.locator('.chip[data-phase="ready"]').waitFor();
  const panel = page.getByRole("button", { name: "Panel: model and settings" });
  if (!(await page.locator("#panel").isVisible())) await panel.click();
  await page.getByRole("tab", { name: "Lookups" }).click();
}

/** What is said of the cell under the cursor. */
export const readout = (page) => page.locator("#lookup-readout").innerText();

/** Moves the cursor to a cell by keyboard and gives what is said of it. */
export async function read(page, position, column) {
  await page.locator(".grid-window").focus();
  await page.keyboard.press("Home");
  for (let i = 0; i < 8; i += 1) await page.keyboard.press("ArrowLeft");
  for (let i = 0; i < position; i += 1) await page.keyboard.press("ArrowDown");
  for (let i = 0; i < column; i += 1) await page.keyboard.press("ArrowRight");
  return readout(page);
}

/** The file that the view exports. */
export async function exported(page) {
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.getByRole("button", { name: "Export" }).click(),
  ]);
  return readFile(await download.path(), "utf8");
}

export const close = (a, b, what, tolerance = 2e-2) =>
  assert.ok(Math.abs(a - b) <= tolerance * Math.max(0.1, Math.abs(b)), `${what}: ${a} for ${b}`);
