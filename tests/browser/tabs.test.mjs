// Several tabs of the page: each goes on with its own chat, none is lost, and all have the same settings.

import assert from "node:assert/strict";
import { test } from "node:test";
import { complaints } from "./checks.mjs";
import { ask, browser, fakePage, lastAnswer } from "./harness.mjs";

const button = (page, name) => page.getByRole("button", { name, exact: true });
const question = (page, text) => page.getByRole("article", { name: "You" }).getByText(text, { exact: true });

async function tab(t, page) {
  const other = await browser(t);
  await other.goto(page.url());
  return other;
}

async function chat(page, ...texts) {
  for (const text of texts) {
    await ask(page, text);
    await lastAnswer(page);
  }
}

const kept = (page) =>
  page.evaluate(() => {
    const read = (key) => JSON.parse(localStorage.getItem(`xylem.${key}`)) ?? [];
    const first = (turns) => turns.filter(({ role }) => role === "user").map(({ content }) => content);
    return { last: first(read("chat")), left: read("chats").map(first) };
  });

test("each tab goes on with its own chat, also after a reload", async (t) => {
  const page = await fakePage(t, "echo");
  await chat(page, "one");
  const other = await tab(t, page);
  await question(other, "one").waitFor();
  await chat(other, "two");
  await chat(page, "three");
  await other.reload();
  await question(other, "two").waitFor();
  assert.equal(await question(other, "three").count(), 0);
  await page.reload();
  await question(page, "three").waitFor();
  assert.equal(await question(page, "two").count(), 0);
  // Not every version of each: what a tab wrote itself is written over.
  await chat(other, "four");
  await chat(page, "five");
  assert.deepEqual(await kept(page), { last: ["one", "three", "five"], left: [["one", "two", "four"]] });
  assert.deepEqual([...page.problems, ...other.problems], []);
});

test("a chat that another tab saved over can be had back at the next visit, and so can that one", async (t) => {
  const page = await fakePage(t, "echo");
  await chat(page, "one");
  const other = await tab(t, page);
  await button(other, "New chat").click();
  await chat(other, "two");
  await page.close();
  const next = await tab(t, other);
  await other.close();
  await next.reload();
  await question(next, "two").waitFor();
  await next.getByText("Another tab left a chat.").waitFor();
  await button(next, "Open it").click();
  await question(next, "one").waitFor();
  assert.equal(await question(next, "two").count(), 0);
  assert.deepEqual(await kept(next), { last: ["one"], left: [["two"]] });
  await button(next, "Back to it").click();
  await question(next, "two").waitFor();
  assert.deepEqual(await kept(next), { last: ["two"], left: [["one"]] });

  // An empty chat lists them.
  await button(next, "New chat").click();
  await next.getByRole("heading", { name: "From other tabs" }).waitFor();
  assert.deepEqual(await complaints(next), []);
  await button(next, "Delete the chat “one”").click();
  await next.getByRole("heading", { name: "From other tabs" }).waitFor({ state: "hidden" });
  await next.getByRole("textbox", { name: "Message", exact: true }).and(next.locator(":focus")).waitFor();
  await button(next, "Undo").click();
  await button(next, "one").click();
  await question(next, "one").waitFor();
  assert.deepEqual(await kept(next), { last: ["one"], left: [] });
  assert.deepEqual(next.problems, []);
});

test("where there is no room for the chat of another tab, it is not written over", async (t) => {
  const page = await fakePage(t, "echo");
  await chat(page, "one");
  const other = await tab(t, page);
  await chat(other, "two");
  await page.evaluate(() => {
    const { setItem } = Storage.prototype;
    Storage.prototype.setItem = function (key, value) {
      if (key === "xylem.chats") throw new DOMException("full", "QuotaExceededError");
      setItem.call(this, key, value);
    };
  });
  await chat(page, "three");
  await page.getByText("The browser does not keep this chat").waitFor();
  assert.deepEqual(await kept(page), { last: ["one", "two"], left: [] });
});

test("a change of the settings reaches the other tabs, and none undoes that of another", async (t) => {
  const page = await fakePage(t, "echo");
  const other = await tab(t, page);
  for (const one of [page, other]) await one.getByRole("tab", { name: "Settings" }).click();
  const field = (one, name) => one.getByRole("spinbutton", { name });
  await field(page, "Top-k").fill("20");
  await page.keyboard.press("Tab");
  await page.getByRole("radio", { name: "Dark" }).check();
  await other.waitForFunction(() => document.documentElement.dataset.theme === "dark");
  assert.equal(await field(other, "Top-k").inputValue(), "20");
  await field(other, "Longest answer").fill("32");
  await other.keyboard.press("Tab");
  await page.waitForFunction(() => document.querySelector("#set-maxTokens").value === "32");
  const stored = await page.evaluate(() => JSON.parse(localStorage.getItem("xylem.settings")));
  assert.deepEqual([stored.topK, stored.maxTokens, stored.theme], [20, 32, "dark"]);
});
