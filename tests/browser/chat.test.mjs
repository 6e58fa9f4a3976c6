// What a reader does in a conversation, on the stand-in engine, which answers with what it was asked.

import assert from "node:assert/strict";
import { test } from "node:test";
import { ask, fakePage, lastAnswer } from "./harness.mjs";

/** What the stand-in engine says that it was given. */
async function echoed(page) {
  const answer = await lastAnswer(page);
  return JSON.parse(await answer.locator("pre").innerText());
}

const button = (page, name) => page.getByRole("button", { name, exact: true });

test("a conversation grows turn by turn, with the default settings", async (t) => {
  const page = await fakePage(t, "echo");
  await ask(page, "first");
  const first = await echoed(page);
  assert.deepEqual(first.messages, [{ role: "user", content: "first" }]);
  assert.deepEqual(first.settings, {
    temperature: 0.3,
    topK: 40,
    topP: 0.9,
    repetitionPenalty: 1.1,
    maxTokens: 512,
    seed: null,
  });
  await ask(page, "second");
  const second = await echoed(page);
  assert.deepEqual(
    second.messages.map((message) => message.role),
    ["user", "assistant", "user"],
  );
  const stats = (await lastAnswer(page)).locator(".stats");
  assert.match(await stats.innerText(), /^45\.6 tokens\/s · first token 0\.12 s · \d+ tokens?$/);
  await stats.locator("summary").click();
  await stats.getByText("The prompt had 6 tokens; 3 of them were still known from before. Seed 7.").waitFor();
  assert.deepEqual(page.problems, []);
});

test("regenerate and edit replace the last turn", async (t) => {
  const page = await fakePage(t, "echo");
  await ask(page, "one");
  await lastAnswer(page);
  await button(page, "Answer again").click();
  await page.getByText(/^2: /).waitFor();
  assert.deepEqual((await echoed(page)).messages, [{ role: "user", content: "one" }]);

  await page.getByRole("textbox", { name: "Message", exact: true }).press("ArrowUp");
  await page.getByRole("textbox", { name: "Edit your message" }).fill("other");
  await page.keyboard.press("Enter");
  await page.getByText(/^3: /).waitFor();
  assert.deepEqual((await echoed(page)).messages, [{ role: "user", content: "other" }]);
  assert.equal(await page.getByRole("article").count(), 2);
});

test("Escape and the button stop a running answer", async (t) => {
  const page = await fakePage(t, "long");
  for (const stop of [() => page.keyboard.press("Escape"), () => button(page, "Stop (Esc)").click()]) {
    await ask(page, "go on");
    await page
      .getByRole("article", { name: "Answer" })
      .last()
      .getByText(/word word word/)
      .waitFor();
    await stop();
    const answer = await lastAnswer(page);
    await answer.getByText("You stopped this answer.").waitFor();
    assert.ok((await answer.locator(".markdown").innerText()).split(/\s+/).length < 512);
  }
});

test("a message that is being edited is left alone once another is sent", async (t) => {
  const page = await fakePage(t, "echo");
  await ask(page, "one");
  await lastAnswer(page);
  await button(page, "Edit this message").click();
  await page.getByRole("textbox", { name: "Edit your message" }).fill("other");
  await ask(page, "two");
  await lastAnswer(page);
  assert.equal(await page.getByRole("textbox", { name: "Edit your message" }).count(), 0);
  assert.deepEqual(
    (await echoed(page)).messages.map(({ role }) => role),
    ["user", "assistant", "user"],
  );
});

test("an engine that does not react can be stopped by force from a new chat too", async (t) => {
  const page = await fakePage(t, "deaf");
  await ask(page, "hello");
  await button(page, "New chat").click();
  await ask(page, "next");
  await page.getByText("Waiting for the last answer to end").waitFor();
  await page.getByRole("button", { name: /^Stop by force/ }).click({ timeout: 10_000 });
  await page.getByText("Reading", { exact: true }).waitFor({ timeout: 10_000 });
});

test("the model does not read a question that got no word for an answer", async (t) => {
  const page = await fakePage(t, "echo");
  await page.evaluate(() => {
    const answer = { role: "assistant", content: "", status: "failed", reason: "broken", stats: null };
    localStorage.setItem("xylem.chat", JSON.stringify([{ role: "user", content: "one" }, answer]));
  });
  await page.reload();
  await ask(page, "two");
  assert.deepEqual((await echoed(page)).messages, [{ role: "user", content: "two" }]);
});

test("a slow press of the mouse stops an answer too", async (t) => {
  const page = await fakePage(t, "long");
  await ask(page, "go on");
  await page.getByText(/word word word/).waitFor();
  // Pieces of the answer come while the button is held down.
  await button(page, "Stop (Esc)").click({ delay: 150 });
  await (await lastAnswer(page)).getByText("You stopped this answer.").waitFor();
});

test("an answer at its limit and dropped turns are said plainly", async (t) => {
  const page = await fakePage(t, "full");
  await button(page, "Panel: model and settings").click();
  await button(page, "Panel: model and settings").click();
  await page.getByRole("tab", { name: "Settings" }).click();
  await page.getByRole("spinbutton", { name: "Longest answer" }).fill("16");
  await page.keyboard.press("Tab");
  await ask(page, "a b c d e f g h i j k l m n o p q r s t");
  const answer = await lastAnswer(page);
  await answer.getByText("the oldest 2 turns were left out").waitFor();
  await answer.getByText("limit of 16 tokens").waitFor();
});

test("settings, system prompt and conversation survive a reload; a reset brings the defaults back", async (t) => {
  const page = await fakePage(t, "echo");
  await page.getByRole("tab", { name: "Settings" }).click();
  await page.getByLabel("System prompt").fill("Be brief.");
  await page.getByRole("spinbutton", { name: "Temperature" }).fill("9");
  await page.getByRole("spinbutton", { name: "Top-k" }).fill("20.5");
  await page.getByLabel("Seed").fill("42");
  await page.keyboard.press("Tab");
  await ask(page, "hello");
  const before = await echoed(page);
  assert.equal(before.messages[0].content, "Be brief.");
  assert.equal(before.settings.temperature, 2, "clamped");
  assert.equal(before.settings.topK, 21, "rounded");
  assert.equal(before.settings.seed, 42);

  await page.reload();
  assert.deepEqual(await echoed(page), before);
  await page.getByRole("tab", { name: "Settings" }).click();
  await button(page, "Reset to defaults").click();
  await ask(page, "again");
  await page.getByText(/^1: again/).waitFor();
  const after = await echoed(page);
  assert.equal(after.settings.temperature, 0.3);
  assert.equal(after.settings.seed, null);
  assert.equal(after.messages[0].role, "user");
});

test("an answer cut by a reload is kept and marked", async (t) => {
  const page = await fakePage(t, "long");
  await ask(page, "go on");
  await page.getByText(/word word word/).waitFor();
  await page.reload();
  await page.getByText("reloaded before the answer was complete").waitFor();
  await page.getByText(/word word word/).waitFor();
});

test("a new chat can be undone, also while an answer is being written", async (t) => {
  const page = await fakePage(t, "long");
  await ask(page, "go on");
  await page.getByText(/word word word/).waitFor();
  await button(page, "New chat").click();
  await page.getByRole("heading", { name: "Knowledge, drawn up from a table" }).waitFor();
  await ask(page, "next");
  await page.getByText(/word word word/).waitFor();
  await button(page, "Undo").click();
  await page.getByText("go on", { exact: true }).waitFor();
  assert.equal(await page.getByText("next", { exact: true }).count(), 0);
  await ask(page, "and on");
  await page
    .getByText(/word word word/)
    .last()
    .waitFor();
  await page.keyboard.press("Escape");
  await lastAnswer(page);
  await button(page, "New chat").click();
  await button(page, "Undo").click();
  await page.getByText("and on", { exact: true }).waitFor();
});

test("copy gives the source of an answer and of a code block", async (t) => {
  const page = await fakePage(t, "markdown");
  await ask(page, "how?");
  const answer = await lastAnswer(page);
  await answer.getByRole("button", { name: "Copy answer" }).click();
  const clipboard = () => page.evaluate(() => navigator.clipboard.readText());
  assert.match(await clipboard(), /^Plants drink through \*\*xylem\*\*[\s\S]*No pump is needed\.$/);
  await answer.getByRole("button", { name: "Copy code" }).click();
  assert.equal(await clipboard(), "fn rise(height: f32) -> f32 { height.sqrt() }\n");
});

test("nothing breaks where the browser keeps nothing, or kept nonsense", async (t) => {
  const page = await fakePage(t, "echo");
  await page.evaluate(() => {
    localStorage.setItem("xylem.chat", '[{"role":"assistant"},7]');
    localStorage.setItem("xylem.settings", '{"temperature":"hot","topK":1e99,"backend":"abacus","seed":-1}');
  });
  await page.reload();
  await ask(page, "hello");
  const { settings } = await echoed(page);
  assert.deepEqual([settings.temperature, settings.topK, settings.seed], [0.3, 200, null]);

  await page.addInitScript(() => {
    Storage.prototype.setItem = () => {
      throw new DOMException("full", "QuotaExceededError");
    };
  });
  await page.reload();
  await ask(page, "still here?");
  await echoed(page);
  await page.getByText("The browser does not keep this chat").waitFor();
  assert.deepEqual(page.problems, []);
});
