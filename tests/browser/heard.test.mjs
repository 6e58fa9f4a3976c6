// What a screen reader is told: ends, errors and coarse steps, but not each token and each figure. And what the key for Enter says.

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { answered, ask, enginePage, fakePage, lastAnswer, xylem } from "./harness.mjs";
import { open, read } from "./lookups-view.mjs";

let folder;
let model;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "xylem-heard-"));
  model = join(folder, "model");
  await xylem("random", "--out", model, "--context", "2048");
});
after(() => rm(folder, { recursive: true, force: true }));

/** Collects in `window.heard` what every live region says from now on. */
async function listen(page) {
  await page.evaluate(() => {
    const LIVE = "[aria-live], [role=status], [role=alert], [role=log], output";
    window.heard = [];
    const hear = (region) => {
      if (!region || region.getAttribute("aria-live") === "off" || !region.checkVisibility()) return;
      const said = region.textContent.trim();
      if (said) window.heard.push(said);
    };
    new MutationObserver((mutations) => {
      const regions = new Set();
      for (const { target, type, addedNodes } of mutations) {
        const element = target instanceof Element ? target : target.parentElement;
        if (type !== "attributes" || element.matches(LIVE)) regions.add(element?.closest(LIVE));
        for (const node of addedNodes) {
          if (node instanceof Element)
            for (const part of [node, ...node.querySelectorAll("[role=alert]")]) {
              if (part.matches("[role=alert]")) regions.add(part);
            }
        }
      }
      for (const region of regions) hear(region);
    }).observe(document.body, { subtree: true, childList: true, characterData: true, attributeFilter: ["hidden"] });
  });
}

const heard = (page) => page.evaluate(() => window.heard);
const button = (page, name) => page.getByRole("button", { name, exact: true });

test("of an answer the end is heard, and of a failure the reason, once", async (t) => {
  const page = await fakePage(t, "long");
  await page.locator(".load").waitFor({ state: "hidden" });
  await listen(page);
  await ask(page, "go on");
  await page.getByText(/word word word word word word/).waitFor();
  assert.deepEqual(await heard(page), []);
  await page.keyboard.press("Escape");
  await lastAnswer(page);
  assert.deepEqual(await heard(page), ["Stopped."]);

  const failing = await fakePage(t, "flaky");
  await failing.locator(".load").waitFor({ state: "hidden" });
  await listen(failing);
  await ask(failing, "hello");
  await lastAnswer(failing);
  const reason = "the row store did not answer; try again";
  assert.deepEqual(await heard(failing), [`${reason}Try again`]);
  // It is no news at the next visit.
  await failing.reload();
  await failing.getByText(reason).waitFor();
  assert.equal(await failing.getByRole("alert").count(), 0);
});

test("of a load the end is heard", async (t) => {
  const page = await fakePage(t, "slow");
  await button(page, "Cancel").click();
  await listen(page);
  await ask(page, "hello");
  await page.getByText(/\d+ MB of 100 MB/).waitFor();
  await lastAnswer(page);
  const [loaded, answer, ...more] = await heard(page);
  assert.equal(loaded, "The model is loaded.");
  assert.match(answer, /^Answer complete: 1: hello/);
  assert.deepEqual(more, []);
  await page.getByRole("tab", { name: "Model" }).click();
  await button(page, "Restart").click();
  await ask(page, "again");
  await button(page, "Unload").click();
  await lastAnswer(page);
  assert.equal((await heard(page)).at(-1), "Loading was cancelled.");
});

test("of a comparison and a trace the end is heard, and a cell once", async (t) => {
  const settings = { temperature: 0, repetitionPenalty: 1.3, maxTokens: 48, backend: "cpu" };
  const page = await enginePage(t, model, { settings });
  await open(page);
  await answered(page, "What rises in a tree?");
  await listen(page);
  await read(page, 6, 2);
  assert.equal((await heard(page)).filter((said) => /layer 2/.test(said)).length, 1);
  await page.evaluate(() => {
    window.heard.length = 0;
  });
  // The view keeps up with the answer all the time.
  await answered(page, "And then? ".repeat(40));
  await page.waitForTimeout(500);
  const said = await heard(page);
  assert.equal(said.filter((words) => /^Answer complete/.test(words)).length, 1);
  assert.ok(said.length <= 2, said.join("\n"));

  await page.evaluate(() => {
    window.heard.length = 0;
  });
  await button(page, "Trace the text").press("Enter");
  await page.getByText(/^Tracing: \d+ of/).waitFor();
  await page.getByText(/^Tracing: \d+ of/).waitFor({ state: "hidden" });
  const traced = (await heard(page)).filter((words) => /^Tracing/.test(words));
  assert.deepEqual(traced, ["Tracing…"]);
  // The button has done what it can.
  await page.locator(".grid-window:focus").waitFor();

  const tab = page.getByRole("tabpanel", { name: "Lookups" });
  await tab.getByText("Knock-outs", { exact: true }).click();
  await page.evaluate(() => {
    window.heard.length = 0;
  });
  await tab.getByRole("button", { name: "Knock out" }).click();
  await tab.getByText(/^Seed \d+\./).waitFor();
  assert.deepEqual(
    (await heard(page)).filter((words) => !/layer 2/.test(words)),
    [await tab.getByText(/^Seed \d+\./).innerText()],
  );
  assert.deepEqual(page.problems, []);
});

test("the key for Enter says what it does", async (t) => {
  const page = await fakePage(t, "echo");
  const hints = async () => {
    const fields = page.getByRole("textbox", { name: /^(Message|Edit your message)$/ });
    return fields.evaluateAll((all) => all.map((field) => field.enterKeyHint));
  };
  await ask(page, "one");
  await lastAnswer(page);
  await button(page, "Edit this message").click();
  assert.deepEqual(await hints(), ["send", "send"]);

  await page.addInitScript(() => {
    const { matchMedia } = window;
    window.matchMedia = (query) => (/pointer: coarse/.test(query) ? { matches: true } : matchMedia.call(window, query));
  });
  await page.reload();
  await button(page, "Edit this message").click();
  assert.deepEqual(await hints(), ["enter", "enter"]);
  const edit = page.getByRole("textbox", { name: "Edit your message" });
  await edit.press("End");
  await edit.press("Enter");
  assert.equal(await edit.inputValue(), "one\n");
});
