// The view of lookups on a small random model with Engram layers, against what the native command says.

import assert from "node:assert/strict";
import { cp, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { complaints, tooWide } from "./checks.mjs";
import { answered, browser, copySite, scratch, serve, watchResults, xylem } from "./harness.mjs";
import { close, exported, open, read, readout } from "./lookups-view.mjs";

const QUESTION = "What rises in a tree, in a tall tree?";
const SETTINGS = { temperature: 0, repetitionPenalty: 1.3, maxTokens: 24, backend: "cpu" };
const SAMPLING = ["--temperature", "0", "--repetition-penalty", "1.3", "--max-tokens", "24", "--context", "2048"];
/** In the order of the computation; layer 1 has both. */
const COLUMNS = ["layer 0, Engram", "layer 0, dense", "layer 1, Engram", "layer 1, STEM", "layer 2, STEM"];

let folder;
let model;
let plain;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "xylem-engram-lookups-"));
  [model, plain] = [join(folder, "model"), join(folder, "plain")];
  const shape = ["--layers", "3", "--stem", "1,2", "--context", "2048"];
  // So small that rows are hit by several n-grams of a text.
  await xylem("random", "--out", model, ...shape, "--engram-layers", "0,1", "--engram-tables", "20,30");
  await xylem("random", "--out", plain, ...shape);
});
after(() => rm(folder, { recursive: true, force: true }));

async function native(command, ...more) {
  const text = ["--prompt", QUESTION, "--chat", ...SAMPLING, ...more];
  return JSON.parse(await xylem(command, "--bundle", model, ...text));
}

async function lookupsPage(t, { settings = {}, hash = "", from = model, media } = {}) {
  const site = await scratch(t);
  await copySite(site);
  await cp(from, join(site, "model"), { recursive: true });
  const page = await browser(t, media);
  await watchResults(page, { ...SETTINGS, ...settings });
  await page.goto((await serve(t, site)) + hash);
  await open(page);
  return page;
}

const colours = (page, value) => page.getByLabel("Colours show").selectOption(value);

test("cells of n-grams stand before their layers, with the numbers of the command", async (t) => {
  const page = await lookupsPage(t);
  await answered(page, QUESTION);
  const trace = await native("trace", "--json");
  for (const [column, name] of COLUMNS.entries()) {
    const said = await read(page, 20, column);
    assert.ok(said.includes(name), said);
    assert.match(said, column === 1 ? /no row/ : /from (memory|network)/);
  }
  await colours(page, "time");
  assert.match(await read(page, 20, 2), /Engram · waited [\d.]+ ms/);
  await colours(page, "gate");
  assert.match(await readout(page), /no feed-forward block/);
  await colours(page, "memory");
  assert.match(await read(page, 20, 3), /no memory of n-grams/);
  for (const [position, column, layer] of [
    [3, 0, 0],
    [trace.prompt_tokens + 4, 2, 1],
  ]) {
    const memory = trace.tokens[position].engram[layer];
    await colours(page, "memory");
    const gate = Number((await read(page, position, column)).match(/gate ([\d.]+)/)[1]);
    close(gate, memory.gate, `gate at ${position}`);
    await colours(page, "contribution");
    const added = Number((await readout(page)).match(/adds ([\d.]+)%/)[1]);
    close(added / 100, memory.contribution, `contribution at ${position}`);
  }
  const legend = page.locator(".legend");
  for (const key of ["STEM layer", "dense layer", "Engram layer"]) await legend.getByText(key).waitFor();
  assert.deepEqual(page.problems, []);
});

test("where the GPU computes, origins are seen, and gates once the CPU has run the text too", async (t) => {
  const page = await lookupsPage(t, { settings: { backend: "gpu", maxTokens: 6 } });
  await answered(page, QUESTION);
  assert.match(await read(page, 8, 0), /layer 0, Engram · from (memory|network)/);
  await colours(page, "memory");
  assert.match(await readout(page), /not measured/);
  await page.keyboard.press("Enter");
  const box = page.locator(".box").filter({ hasText: "Row card" });
  await box.getByText("The last two tokens").waitFor();
  await box.getByText("The GPU doesn't show what the layer computed.").waitFor();
  await page.getByRole("button", { name: "Trace the text" }).click();
  await box.getByText("What this memory says").waitFor();
  assert.match(await readout(page), /gate 0\.\d+/);
});

test("the card of n-grams is that of the command", async (t) => {
  const page = await lookupsPage(t);
  await answered(page, QUESTION);
  const position = 30;
  const { engram } = await native("trace", "--card", `${position},1`);
  await read(page, position, 2);
  await page.keyboard.press("Enter");
  const box = page.locator(".box").filter({ hasText: "Row card" });
  await box.getByText("What this memory says").waitFor();
  const text = await box.innerText();
  close(Number(text.match(/Gate\s+([\d.]+)/)[1]), engram.inside.gate, "gate");
  close(Number(text.match(/Norm of the rows\s+([\d.]+)/)[1]), engram.norm, "norm");
  const raised = await box.getByRole("list", { name: "raised" }).getByRole("listitem").allInnerTexts();
  close(Number(raised[0].match(/\+([\d.]+)/)[1]), engram.inside.up[0].logit, "what it raises most", 5e-2);
  const number = (n) => n.toLocaleString("en");
  for (const [i, ngram] of engram.ngrams.entries()) {
    const part = box.locator(".card-part").filter({ hasText: `The last ${["two", "three"][i]} tokens` });
    const rows = await part.locator("tbody tr").allInnerTexts();
    assert.deepEqual(
      rows.map((row) => row.split("\t")),
      ngram.heads.map(({ hash, rows, norm, others }, head) => [
        String(head + 1),
        `${hash} of ${rows}`,
        norm.toFixed(2),
        others === 0 ? "none" : String(others),
      ]),
    );
    const members = await part.getByRole("list").first().locator("li").allInnerTexts();
    for (const [k, { compressed, form }] of ngram.tokens.entries()) {
      assert.ok(members[k].includes(`id ${number(compressed)}`) && members[k].includes(form.trim()), members[k]);
    }
  }
  await box.getByText("Where the rows lie").click();
  const { record } = engram.ngrams[1].heads[1];
  await box
    .getByText(`${number(record.offset)} to ${number(record.offset + record.bytes - 1)} of ${record.file}`)
    .waitFor();
  // A collision leads to the other n-gram.
  const hit = engram.ngrams.flatMap(({ heads }) => heads).flatMap(({ collisions }) => collisions)[0];
  assert.ok(hit, "tables so small have collisions");
  await box
    .getByText(/^Collisions in this text/)
    .first()
    .click();
  await box
    .getByRole("button", { name: `token ${hit.position}`, exact: true })
    .first()
    .click();
  await box.getByText(`position ${hit.position})`).waitFor();
  // From the memory to the FFN of its layer, and back.
  await box.getByRole("button", { name: "The layer's FFN for this token" }).click();
  await box.getByText("1, STEM").waitFor();
  assert.match(await readout(page), /layer 1, STEM/);
  await box.getByRole("button", { name: "The layer's memory of n-grams for this token" }).click();
  await box.getByText("1, Engram").waitFor();
  // Its place goes into a link.
  await page.getByRole("button", { name: "Copy link" }).click();
  await page.getByText("The link is copied.").waitFor();
  const link = await page.evaluate(() => navigator.clipboard.readText());
  assert.match(decodeURIComponent(link), new RegExp(`cell=${hit.position}\\.1\\.engram`));
  const other = await lookupsPage(t, { hash: new URL(link).hash });
  await other.getByRole("button", { name: "Send" }).click();
  await other.locator(".box").getByText("What this memory says").waitFor();
  assert.match(await readout(other), /layer 1, Engram/);
  assert.deepEqual(page.problems, []);
});

test("a trace with n-grams goes out as the command's and comes back in", async (t) => {
  const page = await lookupsPage(t);
  await answered(page, QUESTION);
  const json = await exported(page);
  const [ours, theirs] = [JSON.parse(json), await native("trace", "--json")];
  assert.deepEqual(ours.model, theirs.model);
  for (const [i, token] of ours.tokens.entries()) {
    const other = theirs.tokens[i];
    assert.deepEqual(Object.keys(token).sort(), Object.keys(other).sort());
    assert.equal(token.compressed, other.compressed);
    for (const [layer, memory] of token.engram.entries()) {
      const expected = other.engram[layer];
      assert.deepEqual(Object.keys(memory).sort(), Object.keys(expected).sort());
      assert.deepEqual([memory.hashes, memory.edited], [expected.hashes, expected.edited]);
      assert.ok(["memory", "fetched"].includes(memory.lookup.tier));
      for (const key of ["gate", "contribution", "row_norm"]) close(memory[key], expected[key], `${key} of ${i}`);
    }
  }
  // Opened where the text never ran, the hashes tell of collisions too.
  const other = await lookupsPage(t, { from: plain });
  const file = join(folder, "kept.json");
  const put = async (trace) => {
    await writeFile(file, JSON.stringify(trace));
    await other.getByLabel("Trace file").setInputFiles(file);
  };
  await put(ours);
  await other.getByText(/^kept\.json: /).waitFor();
  const { engram } = await native("trace", "--card", "30,1");
  await read(other, 30, 2);
  await other.keyboard.press("Enter");
  const part = other.locator(".box .card-part").filter({ hasText: "The last three tokens" });
  const rows = await part.locator("tbody tr").allInnerTexts();
  assert.deepEqual(
    rows.map((row) => row.split("\t").slice(1)),
    engram.ngrams[1].heads.map(({ hash, others }) => [String(hash), others === 0 ? "none" : String(others)]),
  );
  // Without these values, as an older program wrote it, it opens too; with some of them it doesn't.
  const old = structuredClone(ours);
  delete old.model.engram_order;
  for (const token of old.tokens) {
    delete token.engram;
    delete token.compressed;
  }
  await put(old);
  await other
    .getByText("The file holds no more of this cell.")
    .or(other.getByText(/^Click a cell/))
    .first()
    .waitFor();
  await read(other, 30, 2);
  await other.keyboard.press("Enter");
  await other.getByText("The file holds no more of this cell.").waitFor();
  const refused = async (change, reason) => {
    const bad = structuredClone(ours);
    change(bad.tokens[2].engram);
    await put(bad);
    await other.locator(".lookups .note").filter({ hasText: reason }).waitFor();
  };
  await refused((engram) => engram.pop(), "token 2: engram has 1 layers, expected 2");
  await refused((engram) => (engram[1].hashes[0] = -1), "token 2: engram: hashes is out of range");
  await refused((engram) => (engram[0].edited = "<b>"), "token 2: engram: edited");
  assert.deepEqual(other.problems, []);
});

test("the memory is switched off for one answer, where there is one", async (t) => {
  const page = await lookupsPage(t);
  const whole = await answered(page, QUESTION);
  const tab = page.getByRole("tabpanel", { name: "Lookups" });
  await tab.getByText("Knock-outs", { exact: true }).click();
  const [as, off] = ["As it is", "Knocked out"].map((name) => tab.getByRole("region", { name }).locator("p"));
  await tab.getByLabel("In place of the rows").selectOption("engram_off");
  for (const layers of ["1", "all"]) {
    await tab.getByLabel("In which layers").selectOption(layers);
    await tab.getByRole("button", { name: "Knock out" }).click();
    const options = ["--knock-out", "engram-off", ...(layers === "all" ? [] : ["--knock-out-layers", layers])];
    const expected = (await native("generate", "--json", ...options)).text.trim();
    await off.filter({ hasText: expected }).waitFor();
    assert.equal(await off.innerText(), expected);
    assert.equal(await as.innerText(), whole.result.text.trim());
  }
  const none = await lookupsPage(t, { from: plain });
  await none.getByText("Knock-outs", { exact: true }).click();
  await none.locator("#knock-out-instead option[value=shuffle]").waitFor({ state: "attached" });
  assert.equal(await none.locator("#knock-out-instead option[value=engram_off]").count(), 0);
  await answered(none, QUESTION);
  await none.locator(".legend").getByText("dense layer").waitFor();
  assert.equal(await none.locator(".legend").getByText("Engram").count(), 0);
  assert.equal(await none.locator("#quantity option[value=memory]").isDisabled(), true);
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds nothing wrong with the card of n-grams, and it fits a phone (${colorScheme})`, async (t) => {
    const page = await lookupsPage(t, { media: { colorScheme, reducedMotion: "reduce" } });
    await answered(page, QUESTION);
    await page.getByRole("button", { name: "Trace the text" }).click();
    await read(page, 30, 2);
    await page.keyboard.press("Enter");
    await page.getByText("What this memory says").waitFor();
    await page.getByText("Where it was decided").waitFor();
    // What the memory adds stands beside the other parts of a decision.
    await page.locator(".next").getByText("memory of n-grams (dot)").waitFor();
    for (const summary of await page.locator(".box details summary").all()) await summary.click();
    await page.getByText("Meters", { exact: true }).click();
    for (const origins of ["Where records came from", "Where rows of n-grams came from"]) {
      const used = page.locator(".meters section").filter({ hasText: origins }).locator("td:last-child");
      await used.first().waitFor();
      assert.ok(
        (await used.allInnerTexts()).some((text) => Number.parseFloat(text) > 0),
        origins,
      );
    }
    assert.deepEqual(await complaints(page), []);
    await page.setViewportSize({ width: 390, height: 844 });
    await open(page);
    assert.deepEqual(await tooWide(page, ".panel, .page, .lookups, .lookups *"), []);
  });
}
