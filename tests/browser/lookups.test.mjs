// The view of lookups on a small random model, against what the native command says of the same text.

import assert from "node:assert/strict";
import { cp, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { complaints, tooWide } from "./checks.mjs";
import { answered, browser, copySite, lastAnswer, scratch, serve, watchResults, xylem } from "./harness.mjs";
import { close, exported, open, read, readout } from "./lookups-view.mjs";

const QUESTION = "What rises in a tree?";
const SETTINGS = { temperature: 0, repetitionPenalty: 1.3, maxTokens: 24, backend: "cpu" };

let folder;
let model;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "xylem-lookups-"));
  model = join(folder, "model");
  await xylem("random", "--out", model, "--context", "2048");
});
after(() => rm(folder, { recursive: true, force: true }));

/** What the command says of the text that the page writes. */
async function native(...more) {
  const sampling = ["--temperature", "0", "--repetition-penalty", "1.3", "--max-tokens", "24", "--context", "2048"];
  return JSON.parse(await xylem("trace", "--bundle", model, "--prompt", QUESTION, "--chat", ...sampling, ...more));
}

async function lookupsPage(t, { settings = {}, hash = "", media, spoil } = {}) {
  const site = await scratch(t);
  await copySite(site);
  await cp(model, join(site, "model"), { recursive: true });
  await spoil?.(site);
  const page = await browser(t, media);
  await watchResults(page, { ...SETTINGS, ...settings });
  // What the worker tells, by type.
  await page.addInitScript(() => {
    window.told = {};
    const { addEventListener } = Worker.prototype;
    Worker.prototype.addEventListener = function (type, listener) {
      const listen = (event) => {
        const name = event.data?.event?.type ?? event.data?.type;
        window.told[name] = (window.told[name] ?? 0) + 1;
        listener(event);
      };
      addEventListener.call(this, type, type === "message" ? listen : listener);
    };
  });
  page.address = (await serve(t, site)) + hash;
  await page.goto(page.address);
  return page;
}

/** Gives one name the rows of another. */
async function addEdit(page, subject, other) {
  await page.getByRole("tab", { name: "Edits" }).click();
  await page.locator("button[type=submit]:enabled", { hasText: "Add the edit" }).waitFor();
  await page.getByLabel("Where the text says").fill(subject);
  await page.getByLabel("the table answers with the rows of").fill(other);
  await page.keyboard.press("Enter");
  await page.getByRole("list", { name: "Edits" }).getByRole("listitem").first().waitFor();
}

test("rows are seen while an answer is written, by keyboard, with the numbers of the command", async (t) => {
  const page = await lookupsPage(t);
  await open(page);
  const { result } = await answered(page, QUESTION);
  const trace = await native("--json");
  assert.deepEqual(
    result.tokens,
    trace.tokens.slice(trace.prompt_tokens).map(({ id }) => id),
  );
  // Two dense layers around two with rows.
  assert.match(await read(page, 20, 0), /layer 0, dense · no row/);
  assert.match(await read(page, 20, 1), /layer 1, STEM · from (memory|network)/);
  await page.getByLabel("Colours show").selectOption("time");
  assert.match(await read(page, 20, 2), /waited [\d.]+ ms/);
  await page.getByLabel("Colours show").selectOption("edited");
  assert.match(await readout(page), /not edited/);
  for (const [position, layer] of [
    [3, 0],
    [20, 2],
    [trace.prompt_tokens + 4, 3],
  ]) {
    await page.getByLabel("Colours show").selectOption("contribution");
    const token = trace.tokens[position];
    const contribution = Number((await read(page, position, layer)).match(/adds ([\d.]+)%/)[1]);
    close(contribution / 100, token.contribution[layer], `contribution at ${position}, ${layer}`);
    await page.getByLabel("Colours show").selectOption("gate");
    const gate = Number((await readout(page)).match(/gate ([\d.]+)% open/)[1]);
    close(gate / 100, token.gate_open[layer], `gate at ${position}, ${layer}`);
  }
  // The text is the same, and linked.
  const spans = page.locator(".strip span");
  assert.deepEqual(
    await spans.allTextContents(),
    trace.tokens.slice(0, await spans.count()).map(({ text }) => text.replaceAll("\n", "⏎\n")),
  );
  await spans.nth(6).hover();
  assert.match(await readout(page), /layer 1/);
  assert.equal(await page.locator(".strip .hovered").count(), 1);
  assert.deepEqual(page.problems, []);
});

test("an export is the command's trace, and opens again", async (t) => {
  const page = await lookupsPage(t);
  await open(page);
  await answered(page, QUESTION);
  const json = await exported(page);
  const [ours, theirs] = [JSON.parse(json), await native("--json")];
  assert.deepEqual(Object.keys(ours).sort(), Object.keys(theirs).sort());
  assert.deepEqual(ours.model, theirs.model);
  assert.equal(ours.prompt_tokens, theirs.prompt_tokens);
  assert.equal(ours.tokens.length, theirs.tokens.length);
  for (const [i, token] of ours.tokens.entries()) {
    const other = theirs.tokens[i];
    assert.deepEqual(Object.keys(token).sort(), Object.keys(other).sort());
    for (const key of ["id", "text", "record", "edited"]) assert.deepEqual(token[key], other[key]);
    assert.deepEqual([token.next.id, token.next.text], [other.next.id, other.next.text]);
    for (const key of ["row_norm", "contribution", "gate_open"]) {
      for (const [k, value] of token[key].entries()) close(value, other[key][k], `${key} of token ${i}`);
    }
    const sum = [token.next.embedding, ...token.next.attention, ...token.next.ffn].reduce((a, b) => a + b);
    close(sum, token.next.logit - token.next.mean_logit, `attributions of token ${i}`, 5e-2);
    for (const key of ["attention", "ffn"]) {
      for (const [k, value] of token.next[key].entries())
        close(value, other.next[key][k], `${key} of token ${i}`, 5e-2);
    }
    close(token.next.probability, other.next.probability, `probability of token ${i}`);
  }

  // It opens again, in another page that never ran the text, by drag and drop.
  const other = await lookupsPage(t);
  await open(other);
  const transfer = await other.evaluateHandle((text) => {
    const data = new DataTransfer();
    data.items.add(new File([text], "kept.json", { type: "application/json" }));
    return data;
  }, json);
  await other.dispatchEvent(".lookups", "drop", { dataTransfer: transfer });
  await other.getByText(`kept.json: ${ours.tokens.length} tokens of Random, seed 0`).waitFor();
  await other.getByLabel("Colours show").selectOption("contribution");
  const adds = Number((await read(other, 11, 1)).match(/adds ([\d.]+)%/)[1]);
  close(adds / 100, ours.tokens[11].contribution[1], "the opened contribution");
  await other.keyboard.press("Enter");
  await other.getByText(`After “${ours.tokens[11].text}” came “${ours.tokens[12].text}”`).waitFor();
  assert.deepEqual(JSON.parse(await exported(other)), ours);
  await other.getByRole("button", { name: "Back to the chat" }).click();
  await other.locator(".strip span").first().waitFor({ state: "detached" });
});

test("a file that is no trace is refused with a reason", async (t) => {
  const page = await lookupsPage(t);
  await open(page);
  const good = JSON.stringify(await native("--json"));
  // The example, if this page came with one, stays in view.
  const spans = page.locator(".strip span");
  const before = await spans.count();
  const spoil = (change) => {
    const trace = JSON.parse(good);
    change(trace);
    return JSON.stringify(trace);
  };
  const refuse = async (text, reason) => {
    await writeFile(join(folder, "bad.json"), text);
    await page.getByLabel("Trace file").setInputFiles(join(folder, "bad.json"));
    await page.locator(".lookups .note").filter({ hasText: reason }).waitFor();
  };
  await refuse("PK not json", "not JSON");
  await refuse('{"format":"xylem-edits"}', "no trace");
  await refuse(
    spoil((trace) => (trace.version = 2)),
    "version 2",
  );
  await refuse(
    spoil((trace) => (trace.model.n_layers = 1e9)),
    "n_layers is out of range",
  );
  await refuse(
    spoil((trace) => (trace.model.stem_layers = [2, 1])),
    "does not ascend",
  );
  await refuse(
    spoil((trace) => trace.tokens[3].contribution.pop()),
    "token 3: contribution has 3 numbers",
  );
  await refuse(
    spoil((trace) => (trace.tokens[0].lookup.tier = "<b>")),
    "token 0: tier",
  );
  await refuse(
    spoil((trace) => (trace.tokens[1].next.top = "x")),
    "token 1: next: top",
  );
  await refuse(
    spoil((trace) => (trace.tokens[1].edited = [4])),
    "token 1: edited is out of range",
  );
  assert.equal(await spans.count(), before);
  await writeFile(join(folder, "bad.json"), good);
  await page.getByLabel("Trace file").setInputFiles(join(folder, "bad.json"));
  await page.getByText("bad.json:").waitFor();
  assert.equal(await spans.count(), JSON.parse(good).tokens.length);
});

test("a pinned cell has the card of the command", async (t) => {
  const page = await lookupsPage(t);
  await open(page);
  await answered(page, QUESTION);
  const trace = await native("--json");
  const [position, layer] = [trace.prompt_tokens - 20, 2];
  await read(page, position, layer);
  await page.keyboard.press("Enter");
  const theirs = await native("--card", `${position},${layer}`);
  const box = page.locator(".box").filter({ hasText: "Row card" });
  await box.getByText("What else is known as this").waitFor();
  const text = await box.innerText();
  const { file, offset, bytes } = theirs.record;
  const number = (n) => n.toLocaleString("en");
  assert.ok(text.includes(`${number(offset)} to ${number(offset + bytes - 1)} of ${file}`), text);
  const raised = await box.getByRole("list", { name: "raised" }).getByRole("listitem").allInnerTexts();
  close(Number(raised[0].match(/\+([\d.]+)/)[1]), theirs.inside.up[0].logit, "what it raises most", 5e-2);
  await box.getByText("The strongest units").click();
  const unit = await box.locator("table").first().locator("tbody tr").first().locator("td").allInnerTexts();
  assert.equal(unit[0], String(theirs.inside.units[0].unit));
  close(Number(unit[1]), theirs.inside.units[0].gate, "its gate", 5e-2);
  // The whole table of this model fits into one page, so that all its rows are in memory.
  const [nearest] = theirs.nearest.rows;
  assert.ok(text.includes(nearest.cosine.toFixed(2)), text);
  // The same row in the other layer.
  await box.getByText("Its rows in all STEM layers").click();
  await box.getByRole("button", { name: "1", exact: true }).click();
  await box.getByText("1, STEM").waitFor();
  assert.match(await readout(page), /layer 1, STEM/);

  // The next token, once it is traced.
  await page.getByRole("button", { name: "Trace the text" }).click();
  await page.getByText("Where it was decided").waitFor();
  const shares = await page.locator(".candidates .value").allInnerTexts();
  const top = trace.tokens[position].next.top.map(({ probability }) => probability);
  assert.equal(shares.length, top.length);
  for (const [i, share] of shares.entries()) close(Number.parseFloat(share) / 100, top[i], `candidate ${i}`);
  assert.equal((await page.locator(".chart canvas").count()) > 0, true);
  assert.deepEqual(page.problems, []);
});

test("nobody is told anything while nobody watches", async (t) => {
  const page = await lookupsPage(t);
  await open(page);
  await page.getByLabel("Watch answers").uncheck();
  await answered(page, QUESTION);
  assert.equal(await page.evaluate(() => window.told.step), undefined);
  assert.equal(await page.locator(".strip span").count(), 0);
  // Watched from now on: what is still in the cache was not heard.
  await page.getByLabel("Watch answers").check();
  await answered(page, "And then?");
  assert.ok((await page.evaluate(() => window.told.step)) > 1);
  assert.match(await read(page, 2, 1), /a token from before/);
  await page.getByRole("button", { name: "Trace the text" }).click();
  await page.waitForFunction(() => !document.querySelector(".strip").textContent.includes("…"));
  assert.doesNotMatch(await read(page, 2, 1), /a token from before/);
});

test("nobody is told anything while the view is out of sight, and the answer can be shown later", async (t) => {
  const page = await lookupsPage(t);
  await page.getByRole("tab", { name: "Model" }).click();
  const { result } = await answered(page, QUESTION);
  assert.equal(await page.evaluate(() => window.told.step), undefined);
  await page.getByRole("tab", { name: "Lookups" }).click();
  await page.getByText("The last answer was written while nobody watched.").waitFor();
  await page.getByRole("button", { name: "Show the last answer" }).click();
  await page.waitForFunction(
    (count) => document.querySelectorAll(".strip span").length === count,
    result.promptTokens + result.tokens.length,
  );
  await page.getByLabel("Colours show").selectOption("contribution");
  assert.match(await read(page, 6, 2), /adds [\d.]+% of the state/);
  // In sight again, it is watched again.
  await answered(page, "And then?");
  assert.ok((await page.evaluate(() => window.told.step)) > 1);
  await page.getByRole("button", { name: "Close the panel" }).click();
  const before = await page.evaluate(() => window.told.step);
  await answered(page, "And now?");
  assert.equal(await page.evaluate(() => window.told.step), before);
  assert.deepEqual(page.problems, []);
});

test("an example is there before the model, and gives way to an answer", async (t) => {
  const example = await native("--json");
  const another = { ...example, tokens: example.tokens.slice(0, -3) };
  const page = await lookupsPage(t, {
    spoil: async (site) => {
      for (const [name, trace] of [
        ["example", example],
        ["example-2", another],
      ])
        await writeFile(join(site, `${name}.js`), `export default ${JSON.stringify(trace)}`);
    },
  });
  // A reader who saves data has no model yet.
  await page.addInitScript(() => Object.defineProperty(navigator, "connection", { value: { saveData: true } }));
  await page.reload();
  await open(page, { ready: false });
  await page.getByText("An example, made beforehand").waitFor();
  assert.equal(await page.locator(".strip span").count(), example.tokens.length);
  await read(page, 8, 2);
  await page.keyboard.press("Enter");
  await page.getByText("Where it was decided").waitFor();
  await page.getByRole("button", { name: "Another example" }).click();
  await page.waitForFunction(
    (count) => document.querySelectorAll(".strip span").length === count,
    another.tokens.length,
  );
  await answered(page, "Short?");
  await page.waitForFunction(() => document.querySelector(".strip").textContent.includes("Short?"));
  assert.equal(await page.getByText("An example, made beforehand").count(), 0);
  assert.deepEqual(page.problems, []);
});

test("on a GPU rows are seen, and layers once the CPU has run the text too", async (t) => {
  const page = await lookupsPage(t, { settings: { backend: "gpu", maxTokens: 4 } });
  await open(page);
  await answered(page, QUESTION);
  assert.match(await read(page, 20, 1), /layer 1, STEM · from (memory|network)/);
  await page.getByText("The GPU doesn't show its layers.").waitFor();
  await page.keyboard.press("Enter");
  await page.getByText("The GPU doesn't show what the layer computed.").waitFor();
  // What the tables alone tell is there all the same.
  const box = page.locator(".box").filter({ hasText: "Row card" });
  assert.match(await box.innerText(), /Norm of the row/);
  await page.getByLabel("Colours show").selectOption("contribution");
  assert.match(await readout(page), /not measured/);

  const before = await page.evaluate(() => window.results.at(-1).result);
  await page.getByRole("button", { name: "Trace the text" }).click();
  await page.getByText("Where it was decided").waitFor();
  const trace = await native("--json");
  const added = Number((await readout(page)).match(/adds ([\d.]+)%/)[1]);
  close(added / 100, trace.tokens[20].contribution[1], "the contribution, by the CPU");
  // The cell that was pinned is looked at anew.
  await box.getByText("What this contribution says").waitFor();
  assert.equal(await page.getByText("The GPU doesn't show").count(), 1, "only a hidden hint is left");
  assert.equal(await page.getByText("The GPU doesn't show").isVisible(), false);
  assert.match(JSON.parse(await exported(page)).backend, /^cpu/);
  // The GPU goes on where it was: the text so far is still in its cache.
  const more = await answered(page, "And why?");
  assert.equal(more.info.backend, "gpu");
  assert.ok(more.result.reusedTokens >= before.promptTokens, `${more.result.reusedTokens} tokens reused`);
  await page.getByRole("button", { name: "New chat" }).click();
  assert.deepEqual((await answered(page, QUESTION)).result.tokens, before.tokens);
  assert.deepEqual(page.problems, []);
});

test("an answer goes before a trace", async (t) => {
  const page = await lookupsPage(t, { settings: { maxTokens: 16 } });
  await open(page);
  await answered(page, `${QUESTION} `.repeat(80));
  await page.getByRole("button", { name: "Trace the text" }).click();
  await page.getByText(/Tracing/).waitFor();
  const { result } = await answered(page, "Now?");
  assert.ok(result.tokens.length > 0);
  assert.equal(await page.getByText("The trace gave way to an answer.").count(), 1);
  assert.deepEqual(page.problems, []);
});

test("edits show in their layers", async (t) => {
  const page = await lookupsPage(t);
  await addEdit(page, "rises", "falls");
  await open(page);
  await answered(page, QUESTION);
  await page.getByLabel("Colours show").selectOption("edited");
  const text = await page.locator(".strip").innerText();
  const at = [...text].findIndex((_, i) => text.startsWith("rises", i));
  const said = [];
  for (let i = 0; i < 3; i += 1)
    said.push(
      await read(
        page,
        (await native("--json")).tokens.findIndex(
          (_, p, all) =>
            all
              .slice(p, p + 5)
              .map((token) => token.text)
              .join("") === "rises",
        ) + i,
        1,
      ),
    );
  assert.ok(at > 0);
  assert.ok(
    said.every((words) => / · edited/.test(words)),
    said.join("; "),
  );
});

test("a link brings the question, the settings, the edits and the cell", async (t) => {
  const page = await lookupsPage(t, { settings: { maxTokens: 17 } });
  await addEdit(page, "rises", "falls");
  await open(page);
  const { result } = await answered(page, QUESTION);
  await page.getByLabel("Colours show").selectOption("gate");
  await read(page, 6, 2);
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: "Copy link" }).click();
  await page.getByText("The link is copied.").waitFor();
  const link = await page.evaluate(() => navigator.clipboard.readText());
  const { hash } = new URL(link);
  const other = await lookupsPage(t, { hash });
  const field = other.getByRole("textbox", { name: "Message", exact: true });
  assert.equal(await field.inputValue(), QUESTION);
  await other.getByRole("button", { name: "Add to my edits" }).click();
  assert.ok(await other.getByRole("button", { name: "Keep my settings" }).isVisible());
  // Nothing is sent by itself, and the address is clean again.
  assert.equal(await other.locator(".turn").count(), 0);
  assert.equal(new URL(other.url()).hash, "");
  await open(other);
  await field.press("Enter");
  await lastAnswer(other);
  await other.waitForFunction(() => window.results.length > 0);
  assert.deepEqual(await other.evaluate(() => window.results[0].result.tokens), result.tokens);
  assert.equal(await other.locator("#set-maxTokens").inputValue(), "17");
  assert.equal(await other.evaluate(() => JSON.parse(localStorage.getItem("xylem.settings")).maxTokens), 24);
  await other.locator(".strip .pinned").waitFor();
  assert.match(await readout(other), /layer 2, STEM · gate/);

  const hostile = await lookupsPage(t, {
    hash: `#${new URLSearchParams({ ask: "<img src=x onerror=alert(1)>", settings: '{"maxTokens":1e9,"backend":"gpu"}', cell: "1e99.-3", show: "x", edits: '[{"subject":7},null]' })}`,
  });
  const message = hostile.getByRole("textbox", { name: "Message", exact: true });
  assert.equal(await message.inputValue(), "<img src=x onerror=alert(1)>");
  assert.equal(await hostile.locator("#set-maxTokens").inputValue(), "4096");
  assert.ok(await hostile.locator("input[name=backend][value=cpu]").isChecked());
  const stored = await hostile.evaluate(() => JSON.parse(localStorage.getItem("xylem.settings")));
  assert.deepEqual(stored, SETTINGS);
  assert.deepEqual(hostile.problems, []);
});

test("the tour has five steps and can be left", async (t) => {
  const page = await lookupsPage(t);
  await open(page);
  await page.getByRole("button", { name: "Tour" }).click();
  const tour = page.locator(".tour");
  for (let step = 1; step <= 5; step += 1) {
    await tour.getByText(`${step} of 5`).waitFor();
    assert.equal(await page.locator(".pointed").count(), 1, `step ${step} points at something`);
    await page.keyboard.press("Enter");
  }
  await tour.waitFor({ state: "hidden" });
  assert.equal(await page.locator(".pointed").count(), 0);
  await lastAnswer(page);
  // Its last step has traced the text, and shows where a token was decided.
  await page.getByRole("heading", { name: "Where it was decided", exact: true }).waitFor();
  await page.getByRole("button", { name: "Tour" }).click();
  await page.keyboard.press("Escape");
  await tour.waitFor({ state: "hidden" });
  await page.getByRole("button", { name: "Tour" }).and(page.locator(":focus")).waitFor();
  await page.getByRole("button", { name: "Tour" }).click();
  for (let step = 1; step < 5; step += 1) await page.keyboard.press("Enter");
  await tour.getByRole("button", { name: "To the edits" }).click();
  await page.getByRole("tab", { name: "Edits", selected: true }).waitFor();
  await tour.waitFor({ state: "hidden" });
});

test("the tour begins on the first page too", async (t) => {
  const page = await lookupsPage(t, { media: { viewport: { width: 390, height: 844 }, reducedMotion: "reduce" } });
  await page.getByRole("button", { name: "See how, in five steps" }).click();
  await page.locator(".tour").getByText("1 of 5").waitFor();
  await page.getByRole("tab", { name: "Lookups", selected: true }).waitFor();
  // Its own question is watched from the beginning.
  await page.waitForFunction(() => window.results.length > 0);
  assert.ok((await page.evaluate(() => window.told.step)) > 1);
  await page.getByLabel("Colours show").selectOption("contribution");
  assert.match(await read(page, 6, 2), /adds [\d.]+% of the state/);
  await page.locator(".tour").getByRole("button", { name: "Next" }).focus();
  // What a step points at is not under the tour.
  for (let step = 1; step <= 5; step += 1) {
    const [pointed, tour] = await Promise.all([".pointed", ".tour"].map((part) => page.locator(part).boundingBox()));
    assert.ok(pointed.y >= 0 && pointed.y < tour.y - 20, `step ${step}: ${pointed.y} and ${tour.y}`);
    await page.keyboard.press("Enter");
  }
});

test("thousands of tokens do not lag", async (t) => {
  const page = await lookupsPage(t);
  await open(page);
  const trace = await native("--json");
  const [token] = trace.tokens;
  trace.tokens = Array.from({ length: 6000 }, (_, i) => ({ ...token, id: i % 300 }));
  await writeFile(join(folder, "long.json"), JSON.stringify(trace));
  await page.getByLabel("Trace file").setInputFiles(join(folder, "long.json"));
  await page.getByText("6,000 tokens").waitFor();
  await page.getByLabel("Colours show").selectOption("contribution");
  // The canvas is no larger than its window, and each frame draws what is in sight.
  const frames = await page.evaluate(async () => {
    const grid = document.querySelector(".grid-window");
    const canvas = grid.querySelector("canvas");
    if (canvas.height > grid.clientHeight * devicePixelRatio + 1) throw new Error(`a canvas ${canvas.height} high`);
    const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
    const times = [];
    for (let i = 0; i < 40; i += 1) {
      grid.scrollTop = (i * grid.scrollHeight) / 40;
      await frame();
      const began = performance.now();
      // The drawing was asked for by the scroll and comes with this frame.
      await frame();
      times.push(performance.now() - began);
    }
    return times.sort((a, b) => a - b);
  });
  const median = frames[frames.length / 2];
  t.diagnostic(`a frame takes ${median.toFixed(1)} ms`);
  assert.ok(median < 60, `a frame takes ${median} ms`);
  await page.locator(".grid-window").focus();
  await page.keyboard.press("End");
  assert.ok(await page.evaluate(() => document.querySelector(".grid-window").scrollTop > 100_000));
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds nothing wrong with the view, and it fits a phone (${colorScheme})`, async (t) => {
    const page = await lookupsPage(t, { media: { colorScheme, reducedMotion: "reduce" } });
    await open(page);
    await answered(page, QUESTION);
    await page.getByRole("button", { name: "Trace the text" }).click();
    await read(page, 9, 1);
    await page.keyboard.press("Enter");
    await page.getByText("Where it was decided").waitFor();
    await page.getByText("What else is known as this").waitFor();
    await page.getByText("Meters").click();
    await page.getByText("Beside the dense model").waitFor();
    assert.deepEqual(await complaints(page), []);
    await page.setViewportSize({ width: 390, height: 844 });
    await open(page);
    assert.deepEqual(await tooWide(page, ".panel, .page, .lookups, .lookups *"), []);
  });
}

test("the parts of a step are timed, and the chat stays as it is", async (t) => {
  const page = await lookupsPage(t);
  await open(page);
  const { result } = await answered(page, QUESTION);
  await page.getByText("Meters", { exact: true }).click();
  const box = page.locator(".box").filter({ hasText: "Where the time of a step goes" });
  await box.getByRole("button", { name: "Time each part" }).click();
  const rows = box.locator("section").filter({ hasText: "Where the time of a step goes" }).locator("tbody tr");
  await rows.filter({ hasText: "FFN of STEM layers" }).waitFor();
  const parts = await rows.locator("td:nth-child(2)").allInnerTexts();
  const times = parts.map((text) => Number.parseFloat(text));
  const all = times.pop();
  const sum = times.reduce((a, b) => a + b, 0);
  assert.ok(Math.abs(sum - all) <= 0.1 * all + 0.1, `${sum} of ${all}`);
  assert.deepEqual((await answered(page, QUESTION)).info.model, "Random, seed 0");
  await page.getByRole("button", { name: "New chat" }).click();
  assert.deepEqual((await answered(page, QUESTION)).result.tokens, result.tokens);
  assert.deepEqual(page.problems, []);
});

test("a pinned cell brings its card into sight", async (t) => {
  const page = await lookupsPage(t, { media: { reducedMotion: "reduce", viewport: { width: 1280, height: 720 } } });
  await open(page);
  await answered(page, QUESTION);
  const canvas = page.locator(".grid-canvas");
  await canvas.click({ position: { x: 200, y: 100 } });
  await page.getByText("What else is known as this").waitFor();
  const [card, grid, view] = await Promise.all(
    [".lookups .box", ".grid", "#page-lookups"].map((part) => page.locator(part).first().boundingBox()),
  );
  assert.ok(card.y + 60 < view.y + view.height, `the card is at ${card.y}`);
  assert.ok(grid.y >= view.y - 1, `the grid is at ${grid.y}`);
});

test("rows are knocked out for one answer, as the command does it", async (t) => {
  const page = await lookupsPage(t);
  await open(page);
  const before = await answered(page, QUESTION);
  const tab = page.getByRole("tabpanel", { name: "Lookups" });
  await tab.getByText("Knock-outs", { exact: true }).click();
  const [plain, other] = ["As it is", "Knocked out"].map((name) => tab.getByRole("region", { name }).locator("p"));
  for (const [instead, layers] of [
    ["zero", "all"],
    ["mean", "all"],
    ["shuffle", "1"],
  ]) {
    await tab.getByLabel("In place of the rows").selectOption(instead);
    await tab.getByLabel("In which layers").selectOption(layers);
    await tab.getByRole("button", { name: "Knock out" }).click();
    await tab.getByText("The answers differ.").waitFor();
    assert.equal(await plain.innerText(), before.result.text.trim());
    const options = ["--knock-out", instead, ...(layers === "all" ? [] : ["--knock-out-layers", layers])];
    const sampling = ["--temperature", "0", "--repetition-penalty", "1.3", "--max-tokens", String(SETTINGS.maxTokens)];
    const text = ["--prompt", QUESTION, "--chat", "--context", "4096", "--json"];
    const native = JSON.parse(await xylem("generate", "--bundle", model, ...text, ...sampling, ...options));
    assert.equal(await other.innerText(), native.text.trim(), instead);
    await tab.getByText("The text in view is the last one of a comparison").waitFor();
    await page.reload();
    await open(page);
    await tab.getByText("Knock-outs", { exact: true }).click();
  }
  await page.getByRole("button", { name: "New chat" }).click();
  assert.deepEqual((await answered(page, QUESTION)).result.tokens, before.result.tokens);
});
