// What the page says of the reach of edits is what was measured.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { enginePage, root, scratch, xylem } from "./harness.mjs";

const percent = (value) => `${Math.round(100 * value)}%`;

test("the limits of edits are shown with the figures of the files", async (t) => {
  const read = async (name) => JSON.parse(await readFile(join(root, "www/src/edits", name), "utf8"));
  const [figures, reach] = await Promise.all(["figures.json", "reach.json"].map(read));
  const model = join(await scratch(t), "model");
  await xylem("random", "--out", model);
  const page = await enginePage(t, model, { settings: { backend: "cpu" } });
  page.setDefaultTimeout(20_000);
  await page.getByRole("tab", { name: "Edits" }).click();
  await page.locator("button[type=submit]:enabled", { hasText: "Add the edit" }).waitFor();
  await page.locator("summary", { hasText: "What an edit does not reach" }).click();
  await page.getByText(/^Measured with another version of the model/).waitFor();
  await page.getByText(`Of ${figures.swap.n} swaps ${percent(figures.swap.exact)} made the other answer`).waitFor();

  const rows = page.locator("table", { hasText: "How often the new answer is the likelier one" }).locator("tbody tr");
  assert.equal(await rows.count(), reach.swap.length);
  for (const [i, { es, n, touched }] of reach.swap.entries()) {
    const text = await rows.nth(i).locator("td").first().innerText();
    if (n === 0) assert.equal(text, "–");
    else assert.ok(text.endsWith(touched === 0 ? `(${percent(es)}) of ${n}` : `→ ${percent(es)} of ${n}`), text);
  }
  const narrow = page.viewportSize();
  await page.setViewportSize({ ...narrow, width: 390 });
  const wide = await rows.first().evaluate((row) => row.getBoundingClientRect().right > window.innerWidth);
  assert.equal(wide, false);
  assert.deepEqual(page.problems, []);
});
