// Where the focus goes when what was pressed goes: never to the page as a whole, from where a keyboard begins anew.

import assert from "node:assert/strict";
import { test } from "node:test";
import { ask, fakePage, lastAnswer } from "./harness.mjs";

const button = (page, name) => page.getByRole("button", { name, exact: true });
const answer = (page) => page.getByRole("article", { name: "Answer" }).last();
const message = (page) => page.getByRole("textbox", { name: "Message", exact: true });
const focused = (locator) => locator.and(locator.page().locator(":focus")).waitFor();

async function press(control) {
  await control.focus();
  await control.page().keyboard.press("Enter");
}

test("who asks by a button of the chat stays at its answer", async (t) => {
  const page = await fakePage(t, "echo");
  await press(button(page, "Why is the sky blue?"));
  await lastAnswer(page);
  await focused(answer(page));

  await press(button(page, "Answer again"));
  await page.getByText(/^2: /).waitFor();
  await lastAnswer(page);
  await focused(answer(page));
  // What comes next is what can be done with it.
  await page.keyboard.press("Tab");
  await answer(page).locator("button:focus").waitFor();

  await press(button(page, "Edit this message"));
  await focused(page.getByRole("textbox", { name: "Edit your message" }));
  await page.keyboard.press("Escape");
  await focused(button(page, "Edit this message"));
  await page.keyboard.press("Enter");
  await page.keyboard.press("End");
  await page.keyboard.type("!");
  await press(page.locator(".question").getByRole("button", { name: "Send" }));
  await page.getByText(/^3: /).waitFor();
  await lastAnswer(page);
  await focused(answer(page));
  assert.deepEqual(page.problems, []);
});

test("a question that is tried again keeps the focus in the chat", async (t) => {
  const page = await fakePage(t, "flaky");
  await ask(page, "hello");
  await press((await lastAnswer(page)).getByRole("button", { name: "Try again" }));
  await page.getByText(/^2: /).waitFor();
  await focused(answer(page));
});

test("an undo, and a notice that goes, give the focus back", async (t) => {
  const page = await fakePage(t, "echo");
  await page.clock.install();
  await ask(page, "one");
  await lastAnswer(page);
  await button(page, "New chat").click();
  await focused(message(page));
  await page.keyboard.press("Shift+Tab");
  await focused(button(page, "Undo"));
  // As long as somebody is there, it stays.
  await page.clock.runFor(30_000);
  await page.keyboard.press("Enter");
  await page.getByText("one", { exact: true }).waitFor();
  await focused(message(page));
  await button(page, "New chat").click();
  await button(page, "Undo").waitFor();
  await page.clock.runFor(11_000);
  await button(page, "Undo").waitFor({ state: "hidden" });
});

test("the button that sends and stops hands over to the message", async (t) => {
  const page = await fakePage(t, "long");
  await message(page).fill("go on");
  await press(button(page, "Send (Enter)"));
  await page.getByText(/word word word/).waitFor();
  await focused(button(page, "Stop (Esc)"));
  await page.keyboard.press("Enter");
  await lastAnswer(page);
  await focused(message(page));
});

test("loading that is cancelled and begun again keeps the focus", async (t) => {
  const page = await fakePage(t, "slow");
  await press(button(page, "Cancel"));
  await focused(button(page, "Load the model"));
  await page.keyboard.press("Enter");
  await focused(button(page, "Cancel"));
  await page.locator(".load").waitFor({ state: "hidden", timeout: 30_000 });
  await focused(message(page));
});

test("an edit that is removed leaves the focus to the next, and the last one to the undo", async (t) => {
  const page = await fakePage(t, "echo");
  await page.getByRole("tab", { name: "Edits" }).click();
  for (const [i, subject] of ["Spain", "France", "Italy"].entries()) {
    await page.getByLabel("Where the text says").fill(subject);
    await page.getByLabel("the table answers with the rows of").fill("Germany");
    await page.keyboard.press("Enter");
    await page.getByRole("checkbox", { name: `${subject} as Germany` }).waitFor();
    assert.equal(await page.locator(".edit").count(), i + 1);
  }
  const remove = (subject) => button(page, `Remove ${subject} as Germany`);
  await press(remove("France"));
  await focused(remove("Italy"));
  await page.keyboard.press("Enter");
  await focused(remove("Spain"));
  await page.keyboard.press("Enter");
  await focused(button(page, "Undo the last change of the edits"));
  for (let i = 0; i < 6; i += 1) await page.keyboard.press("Enter");
  // Nothing is left to be undone.
  await focused(button(page, "Redo the change of the edits"));
  await page.keyboard.press("Enter");
  await page.getByRole("checkbox", { name: "Spain as Germany" }).waitFor();
  await focused(button(page, "Redo the change of the edits"));
});

test("an unloaded model leaves the focus in its panel", async (t) => {
  const page = await fakePage(t, "echo");
  await page.getByRole("tab", { name: "Model" }).click();
  await page.getByText("Fake 1M").waitFor();
  await press(button(page, "Unload"));
  await focused(button(page, "Restart"));
});

test("the tour of a first page ends in the panel that it has opened", async (t) => {
  const page = await fakePage(t, "echo");
  await press(button(page, "See how, in five steps"));
  await page.locator(".tour").getByText("1 of 5").waitFor();
  await lastAnswer(page);
  await page.keyboard.press("Escape");
  await focused(page.getByRole("tab", { name: "Lookups" }));
});
