// The token that is looked at under Lookups is marked in the chat, whatever Markdown made of it.

import assert from "node:assert/strict";
import { test } from "node:test";
import { ask, fakePage, lastAnswer } from "./harness.mjs";

/** What is marked while the token at `position` is pointed at, and in which turn. */
const marked = (page, position) =>
  page.evaluate((at) => {
    const span = document.querySelectorAll(".strip span")[at];
    span.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    const ranges = [...(CSS.highlights.get("lookup-token") ?? [])];
    const articles = [...document.querySelectorAll(".turns > article")];
    const turns = ranges.map(({ startContainer: node }) => articles.findIndex((article) => article.contains(node)));
    return { text: ranges.join(""), turns: [...new Set(turns)], token: span.textContent.replaceAll("⏎\n", "\n") };
  }, position);

test("a token is marked where it stands in questions and answers, and markup is no text", async (t) => {
  const page = await fakePage(t, "markdown");
  await page.locator('.chip[data-phase="ready"]').waitFor();
  for (const question of ["What is xylem?", "And what is xylem, once more?"]) {
    await ask(page, question);
    await lastAnswer(page);
  }
  await page.getByRole("tab", { name: "Lookups" }).click();
  // Both questions, the first answer, and the one in view, to its end.
  await page.waitForFunction(() => document.querySelector(".strip").textContent.split("is needed.").length === 3);
  const count = await page.locator(".strip span").count();
  const all = [];
  for (let i = 0; i < count; i += 1) all.push(await marked(page, i));
  const turnOf = (word, n = 0) => all.filter(({ token }) => token.trim() === word)[n]?.turns;
  assert.deepEqual([turnOf("What"), turnOf("And"), turnOf("once")], [[0], [2], [2]]);
  assert.deepEqual([turnOf("drink", 0), turnOf("drink", 1)], [[1], [3]]);
  const texts = new Map(all.map(({ token, text }) => [token.trim(), text.trim()]));
  for (const [token, text] of [
    ["**xylem**:", "xylem:"],
    ["*pulled*", "pulled"],
    ["page](https://example.org/xylem).", "page."],
    ["rise(height:", "rise(height:"],
    ["phloem", "phloem"],
    ["needed.", "needed."],
    // No text of the answer.
    ["```rust", ""],
    ["|---|---:|", ""],
    ["1.", ""],
    ["<|user|>", ""],
  ]) {
    assert.equal(texts.get(token), text, token);
  }
  // Every plain word is found, and nothing else is marked in its place.
  const plain = all.filter(({ token }) => /^[A-Za-z]+[.,;?]?\s*$/.test(token));
  assert.ok(plain.length > 60, `${plain.length} words`);
  for (const { token, text } of plain) assert.equal(text.trim(), token.trim());

  // In another tab nothing is marked.
  await page.getByRole("tab", { name: "Model" }).click();
  await page.waitForFunction(() => !CSS.highlights.has("lookup-token"));
  assert.deepEqual(page.problems, []);
});
