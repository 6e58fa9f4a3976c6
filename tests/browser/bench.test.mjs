// The page that measures: that it runs, can be stopped, and gives figures that fit together. How large they are is no
// matter of tests.

import assert from "node:assert/strict";
import { readFile, symlink } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { complaints } from "./checks.mjs";
import { browser, copySite, scratch, serve } from "./harness.mjs";
import { folder } from "./real.mjs";

async function benchPage(t, options) {
  const site = await scratch(t);
  await copySite(site);
  await symlink(join(folder, "model"), join(site, "model"));
  const page = await browser(t, options);
  await page.goto(`${await serve(t, site)}bench.html`);
  return page;
}

async function fill(page, backend, tokens, answer, runs) {
  await page.getByLabel("Computes on").selectOption(backend);
  await page.getByLabel("Tokens to read").fill(tokens);
  await page.getByLabel("Tokens to write").fill(answer);
  await page.getByLabel("Runs").fill(runs);
}

/** Measures, and gives what is saved. */
async function measured(page) {
  await page.getByRole("button", { name: "Measure" }).click();
  await page.getByRole("status").filter({ hasText: "Done." }).waitFor();
  const download = page.waitForEvent("download");
  await page.getByRole("link", { name: "Save JSON" }).click();
  return JSON.parse(await readFile(await (await download).path(), "utf8"));
}

for (const backend of ["cpu", "gpu"]) {
  test(`the figures of the ${backend} fit together`, async (t) => {
    const page = await benchPage(t);
    // Too many runs and too few new tokens are brought into bounds.
    await fill(page, backend, "70", "1", "2");
    const m = await measured(page);
    assert.deepEqual([m.backend, m.prompt_tokens, m.new_tokens, m.runs, m.tokens.length], [backend, 70, 2, 2, 2]);
    for (const name of ["decode_tokens_per_second", "prefill_tokens_per_second", "first_token_ms"]) {
      const { min, median, max } = m[name];
      assert.ok(min > 0 && min <= median && median <= max, name);
    }
    assert.ok(m.load_ms > 0);
    assert.ok(m.memory.wasm_bytes > 1e6 && m.memory.rows_bytes > 0 && m.memory.js_heap_bytes > 0);
    assert.equal(m.memory.gpu_bytes > m.download.core_bytes, backend === "gpu");
    // The core came, and rows after it.
    assert.ok(m.download.load.bytes > m.download.core_bytes);
    assert.ok(m.download.all.bytes > m.download.load.bytes && m.download.all.requests > m.download.load.requests);
    assert.equal(m.weight_bytes_per_second, m.weight_bytes * m.decode_tokens_per_second.median);
    assert.equal(m.gpu !== null, backend === "gpu");
    if (m.gpu) assert.deepEqual([m.gpu.dispatches, m.gpu.dispatches_per_layer], [1 + 3 * 5 + 2, 5]);
    if (backend === "cpu") {
      assert.deepEqual(
        m.decode.layers.map(({ stem }) => stem),
        [false, true, true],
      );
    }
    // Where the adapter has timestamps.
    for (const times of [m.prefill, m.decode].filter(Boolean)) {
      const names = Object.keys(times).filter((name) => name.endsWith("_ms") && !/^(all|a_)/.test(name));
      const sum = names.reduce((total, name) => total + times[name], 0);
      assert.ok(Math.abs(sum / times.all_ms - 1) < 1e-6, JSON.stringify(times));
    }
    await page.getByRole("rowheader", { name: "Writing, tokens a second" }).waitFor();
    assert.deepEqual(page.problems, []);

    // The second visit finds the core on the device.
    const again = await measured(page);
    assert.ok(again.download.load.bytes <= m.download.load.bytes - m.download.core_bytes);
    assert.deepEqual(again.tokens, m.tokens);
  });
}

test("it can be stopped, and started again", async (t) => {
  const page = await benchPage(t);
  await fill(page, "cpu", "200", "512", "50");
  await page.getByRole("button", { name: "Measure" }).click();
  await page.getByText(/^Run \d+ of 53$/).waitFor();
  // Read aloud is how it ends, not each run.
  assert.equal(await page.getByRole("status").innerText(), "");
  await page.getByRole("button", { name: "Stop" }).click();
  await page.getByRole("status").filter({ hasText: "Stopped." }).waitFor();
  assert.equal(await page.getByRole("table").count(), 0);
  assert.ok(
    await page.getByRole("button", { name: "Measure" }).evaluate((button) => button === document.activeElement),
  );
  await fill(page, "cpu", "9", "2", "1");
  assert.equal((await measured(page)).prompt_tokens, 9);
});

test("a model that can't be loaded is told of", async (t) => {
  const page = await benchPage(t);
  await page.goto(`${page.url()}?model=nowhere`);
  await page.getByRole("button", { name: "Measure" }).click();
  await page.getByRole("alert").filter({ hasText: "manifest.json" }).waitFor();
});

test("names, contrast and a phone", async (t) => {
  for (const colorScheme of ["light", "dark"]) {
    const page = await benchPage(t, { colorScheme, viewport: { width: 390, height: 844 } });
    await fill(page, "cpu", "20", "2", "1");
    await measured(page);
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 390);
    assert.deepEqual(await complaints(page), []);
  }
});
