// Keyboard, phone and names of controls.

import assert from "node:assert/strict";
import { test } from "node:test";
import { complaints } from "./checks.mjs";
import { ask, fakePage, lastAnswer } from "./harness.mjs";

const PHONE = { viewport: { width: 390, height: 844 } };

/** The tab "Edits" with an edit in the list, and all that can be unfolded. */
async function openEdits(page) {
  await page.getByRole("tab", { name: "Edits" }).click();
  await page.getByLabel("Where the text says").fill("Spain");
  await page.getByLabel("the table answers with the rows of").fill("Germany");
  await page.keyboard.press("Enter");
  await page.getByRole("checkbox", { name: "Spain as Germany" }).waitFor();
  await page.locator(".edits-page details").evaluateAll((all) => {
    for (const details of all) details.open = true;
  });
}

/** The page itself, and every part that should scroll on its own axis only. */
function overflow(page) {
  return page.evaluate(() =>
    ["html", "body", "main", ".chat", ".dock", ".panel", ".panel .page:not([hidden])", "dialog[open]"].filter(
      (selector) => {
        const element = document.querySelector(selector);
        return element && element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0;
      },
    ),
  );
}

test("nothing scrolls sideways on a phone", async (t) => {
  const page = await fakePage(t, "markdown", PHONE);
  await page.getByRole("heading", { name: "Knowledge, drawn up from a table" }).waitFor();
  assert.deepEqual(await overflow(page), []);
  await ask(page, `${"long".repeat(60)} https://example.org/${"x".repeat(200)}`);
  await lastAnswer(page);
  assert.deepEqual(await overflow(page), []);
  await page.getByRole("button", { name: "How it works" }).click();
  assert.deepEqual(await overflow(page), []);
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "Panel: model and settings" }).click();
  assert.deepEqual(await overflow(page), []);
  for (const tab of ["Model", "Settings"]) {
    await page.getByRole("tab", { name: tab }).click();
    assert.deepEqual(await overflow(page), []);
  }
  await openEdits(page);
  assert.deepEqual(await overflow(page), []);
});

test("a failure fits a phone", async (t) => {
  const page = await fakePage(t, "no-gpu", PHONE);
  await page.getByRole("button", { name: "Use the CPU" }).waitFor();
  assert.deepEqual(await overflow(page), []);
  const box = await page.getByText("GPU: the browser offers no adapter").boundingBox();
  assert.ok(box.width > 200, `the message is ${box.width} px wide`);
});

test("the keyboard reaches everything", async (t) => {
  const page = await fakePage(t, "echo");
  const field = page.getByRole("textbox", { name: "Message", exact: true });
  await page.locator("body").click({ position: { x: 5, y: 300 } });
  await page.keyboard.press("/");
  await field.and(page.locator(":focus")).waitFor();
  await page.keyboard.type("two");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("lines?");
  assert.equal(await field.inputValue(), "two\nlines?");
  await page.keyboard.press("Enter");
  await lastAnswer(page);

  await page.locator("body").click({ position: { x: 5, y: 300 } });
  await page.keyboard.press("?");
  await page.getByRole("dialog", { name: "How it works" }).waitFor();
  await page.keyboard.press("Escape");
  assert.equal(await page.getByRole("dialog").count(), 0);

  await page.getByRole("tab", { name: "Lookups" }).focus();
  await page.getByLabel("Colours show").waitFor();
  await page.keyboard.press("ArrowRight");
  await page.getByRole("tab", { name: "Edits", selected: true }).and(page.locator(":focus")).waitFor();
  await page.getByLabel("Where the text says").waitFor();
  await page.keyboard.press("ArrowRight");
  await page.getByRole("tab", { name: "Model", selected: true }).and(page.locator(":focus")).waitFor();
  await page.getByText("Compute on").waitFor();
  await page.keyboard.press("ArrowRight");
  await page.getByRole("tab", { name: "Settings", selected: true }).and(page.locator(":focus")).waitFor();
  await page.getByLabel("System prompt").waitFor();
});

test("on a phone the panel covers the chat, holds the focus and closes with Escape", async (t) => {
  const page = await fakePage(t, "echo", PHONE);
  await page.getByRole("button", { name: "Panel: model and settings" }).click();
  assert.equal(await page.locator("main").getAttribute("inert"), "");
  await page.getByRole("tab", { name: "Lookups" }).and(page.locator(":focus")).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "Panel: model and settings" }).and(page.locator(":focus")).waitFor();
  assert.equal(await page.locator("main").getAttribute("inert"), null);
});

test("every control has a name", async (t) => {
  const page = await fakePage(t, "markdown");
  await ask(page, "how?");
  await lastAnswer(page);
  for (const tab of ["Model", "Edits", "Lookups", "Settings"]) {
    if (tab === "Edits") await openEdits(page);
    else await page.getByRole("tab", { name: tab }).click();
    const nameless = await page.evaluate(() =>
      [...document.querySelectorAll("button, input, select, textarea, a")]
        .filter((control) => control.checkVisibility())
        .filter(
          (control) =>
            !(control.matches("select") ? "" : control.textContent.trim()) &&
            !control.getAttribute("aria-label") &&
            !control.labels?.length,
        )
        .map((control) => control.outerHTML),
    );
    assert.deepEqual(nameless, []);
  }
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds nothing wrong with any view (${colorScheme})`, async (t) => {
    const page = await fakePage(t, "markdown", { colorScheme, reducedMotion: "reduce" });
    await page.getByRole("button", { name: "Why is the sky blue?" }).waitFor();
    const check = async (view) => assert.deepEqual(await complaints(page), [], view);
    await check("welcome");
    await ask(page, "how?");
    await lastAnswer(page);
    await check("chat");
    await page.getByRole("tab", { name: "Lookups" }).click();
    await check("lookups");
    await page.getByRole("tab", { name: "Settings" }).click();
    await check("settings");
    await openEdits(page);
    await check("edits");
    await page.getByRole("tab", { name: "Model" }).click();
    await page.getByRole("button", { name: "Unload" }).click();
    await check("unloaded");
    await page.getByRole("button", { name: "How it works" }).click();
    await check("about");
  });
}
