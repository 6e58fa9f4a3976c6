// What one run of the engine leaves behind for the next: nothing. The engine is called as the page's worker does.

import assert from "node:assert/strict";
import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { browser, copySite, scratch, serve } from "./harness.mjs";
import { folder } from "./real.mjs";

/** Loads the model, and gives the page what a test asks of it; nothing is kept. */
const DIRECT = `
import init, { Engine } from "./pkg/xylem.js";
await init();
const nothing = () => undefined;
const archive = { keepFile: nothing, keepPage: nothing, forgetPage: nothing };
Object.assign(archive, { manifest: async () => null, begin: async () => {}, file: async () => null, pages: async () => [] });
const manifest = new URL("model/manifest.json", location.href).href;
const engine = await Engine.load(manifest, { backend: "cpu" }, nothing, archive);
const settings = { temperature: 0, topK: 0, topP: 1, repetitionPenalty: 1.3, maxTokens: 12, seed: 1 };
const options = { scope: "row", strength: 1, layers: null, method: null, atStart: false };
const edits = JSON.parse(engine.makeEdits("tree", ["bird"], options));
const file = JSON.stringify({ format: "xylem-edits", version: 1, model: engine.info().modelHash, edits });
window.engine = engine;
window.answer = (edits = null, knockOut = null, content = "What rises in a tree?") =>
  engine.chat([{ role: "user", content }], settings, edits, knockOut, nothing);
// That rows are waited for depends on the time they take; the page itself drops what says so.
const into = (heard) => (event) => void (event.type === "wait" || heard.push(event));
window.weigh = async () => {
  const heard = [];
  const strengths = Float32Array.of(0, 1.5);
  await engine.weighAnswers("In a tree there is", ["sap", "rain"], file, Uint32Array.of(0), strengths, into(heard));
  return heard;
};
window.reach = async () => {
  const heard = [];
  await engine.measureReach(file, into(heard));
  return heard;
};
window.teach = async () => {
  const { edits } = await engine.teachFact("tree", ["A tree is"], "sap", 1, nothing);
  return JSON.parse(edits);
};
window.traced = async () => {
  const tokens = [];
  await engine.trace((part) => tokens.push(...part.tokens));
  return tokens.map(({ id, edited, row_norm, next }) => ({ id, edited, row_norm, logit: next.logit }));
};
window.file = file;
window.ready = true;
`;

/** A page with the engine and no other part of the site. */
async function direct(t, intercept) {
  const site = await scratch(t);
  await copySite(site);
  await cp(join(folder, "model"), join(site, "model"), { recursive: true });
  await writeFile(join(site, "direct.js"), DIRECT);
  await writeFile(join(site, "direct.html"), `<!doctype html><script type="module" src="./direct.js"></script>`);
  const page = await browser(t);
  await page.goto(`${await serve(t, site, intercept)}direct.html`);
  await page.waitForFunction(() => window.ready);
  return page;
}

test("what was knocked out for one answer is there again for what is measured and taught", async (t) => {
  const page = await direct(t);
  const found = await page.evaluate(async () => {
    const all = async () => [await weigh(), await reach(), await teach()];
    const before = await all();
    const whole = await answer();
    const shuffled = await answer(null, { instead: "shuffle", layers: null });
    return { before, after: await all(), differ: whole.text !== shuffled.text };
  });
  assert.ok(found.differ, "the knock-out does something");
  assert.deepEqual(found.after, found.before);
});

test("a trace shows the last answer's rows, whatever was measured since", async (t) => {
  const page = await direct(t);
  const found = await page.evaluate(async () => {
    const runs = [];
    for (const edits of [null, file]) {
      await answer(edits);
      const at_once = await traced();
      await weigh();
      const after_weighing = await traced();
      await reach();
      runs.push({ at_once, after_weighing, after_reach: await traced() });
    }
    return runs;
  });
  for (const { at_once, after_weighing, after_reach } of found) {
    assert.deepEqual(after_weighing, at_once);
    assert.deepEqual(after_reach, at_once);
  }
  const edited = found.map(({ at_once }) => at_once.filter(({ edited }) => edited.length > 0).length);
  assert.equal(edited[0], 0);
  assert.ok(edited[1] > 0);
});

test("a question goes before a trace, and so does a measurement", async (t) => {
  const page = await direct(t);
  const found = await page.evaluate(async () => {
    await answer();
    const order = [];
    const done = (name) => (value) => {
      order.push(name);
      return value;
    };
    const text = "Leaves and bark and roots and sap. ".repeat(20);
    await answer(null, null, text);
    const trace = traced().then(done("trace"));
    const asked = answer().then(done("answer"));
    const [tokens] = await Promise.all([trace, asked]);
    const again = traced().then(done("trace"));
    await Promise.all([again, weigh().then(done("measurement"))]);
    return { order, tokens: tokens.length };
  });
  assert.deepEqual(found.order, ["trace", "answer", "trace", "measurement"]);
  assert.ok(found.tokens < 200, `the trace ended after ${found.tokens} tokens`);
});

test("a stop ends what was fetched ahead for the prompt", async (t) => {
  let asked = 0;
  const slow = async ({ url }) => {
    if (!/stem-\d+\.bin$/.test(url)) return false;
    asked += 1;
    await new Promise((resolve) => setTimeout(resolve, 150));
    return false;
  };
  const page = await direct(t, slow);
  // Rows of many tokens, none of them next to another in the table.
  const words = Array.from({ length: 400 }, (_, i) => `w${(i * 7919) % 9973}`).join(" ");
  const finish = await page.evaluate(async (words) => {
    const answering = answer(null, null, words);
    await new Promise((resolve) => setTimeout(resolve, 400));
    engine.stop();
    return (await answering).finish;
  }, words);
  assert.equal(finish, "stopped");
  const before = asked;
  await page.waitForTimeout(1500);
  // Those that were under way may still be counted.
  assert.ok(asked - before <= 6, `${asked - before} more requests, ${before} before`);
});
