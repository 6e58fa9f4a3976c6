// Visits to our page and to one with wllama: the first with nothing on the device, the second with what the first one left there,
// in a browser that was started anew. All times are from the beginning of the visit.

import { mkdtemp, rm } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { basename, join } from "node:path";
import { spread } from "./arms.mjs";
import { foldersOf, ISOLATED, open, serve } from "./browser.mjs";

const QUESTION = "Which river flows through the town, and who built the bridge?";
const NEW_TOKENS = 8;
const PATIENCE_MS = 170_000;
const SETTLE_MS = 3000;

/** `rounds` of a first and a second visit to each engine, in turns; gives `{ threads, engines }`. */
export async function visits({ models, base, wllama, isolated, rounds, bytesPerSecond }) {
  const closing = [];
  const host = await serve(foldersOf({ models, base, wllama }), isolated ? ISOLATED : {}, closing, bytesPerSecond);
  const threads = isolated ? cpus().length : 1;
  const engines = Object.keys(models).map((name) => ({
    name: `xylem ${name}`,
    visit: (page) => visitOurs(page, `${host}?model=${encodeURIComponent(`${host}bundle-${name}/`)}`),
  }));
  const options = { model: `${host}base/${basename(base)}`, threads, useCache: true };
  engines.push({ name: wllama, visit: (page) => visitWllama(page, `${host}peer/wllama.html`, options) });
  const runs = new Map(engines.map(({ name }) => [name, []]));
  try {
    for (let round = 0; round < rounds; round += 1) {
      for (const { name, visit } of round % 2 ? engines.toReversed() : engines) {
        const told = (which, times) => {
          process.stderr.write(`${round + 1}/${rounds} ${name}, ${which} visit: ${JSON.stringify(times)}\n`);
        };
        runs.get(name).push(await twoVisits(visit, told));
      }
    }
  } finally {
    for (const close of closing) close();
  }
  return { threads, engines: engines.map(({ name }) => ({ name, visits: runs.get(name) })) };
}

/** A first and a second `visit`; `told` hears of each. */
async function twoVisits(visit, told) {
  const profile = await mkdtemp(join(tmpdir(), "xylem-visits-"));
  const pair = [];
  try {
    for (const which of ["first", "second"]) {
      const context = await open(profile);
      try {
        const page = await context.newPage();
        page.setDefaultTimeout(PATIENCE_MS);
        const times = { browser: context.browser()?.version() ?? "unknown", ...(await visit(page)) };
        pair.push(times);
        told(which, times);
        // Nobody leaves at once, and what is kept may be written after the answer.
        await page.waitForTimeout(SETTLE_MS);
      } finally {
        await context.close();
      }
    }
  } finally {
    await rm(profile, { recursive: true, force: true });
  }
  return pair;
}

/** The page itself: the question is sent as soon as the model is there. */
async function visitOurs(page, address) {
  await page.addInitScript(
    ({ question, newTokens }) => {
      // The second visit is to ask the same, not to go on.
      localStorage.removeItem("xylem.chat");
      localStorage.setItem("xylem.settings", JSON.stringify({ temperature: 0, maxTokens: newTokens, backend: "cpu" }));
      const visit = { interactive_ms: null, ready_ms: null, first_token_ms: null };
      const field = () => document.querySelector("form.composer textarea");
      const observer = new MutationObserver(() => {
        if (!field()) return;
        visit.interactive_ms = performance.now();
        observer.disconnect();
      });
      observer.observe(document, { childList: true, subtree: true });
      const ask = () => {
        field().value = question;
        field().dispatchEvent(new Event("input"));
        field().form.requestSubmit();
      };
      const hear = ({ type, event, result }) => {
        if (type === "loaded") {
          visit.ready_ms = performance.now();
          setTimeout(ask);
        } else if (type === "event" && event.type === "token") visit.first_token_ms ??= performance.now();
        else if (type === "result") window.visit = { ...visit, prompt_tokens: result.promptTokens, text: result.text };
      };
      const { addEventListener } = Worker.prototype;
      Worker.prototype.addEventListener = function (type, listener) {
        const both = (event) => {
          listener(event);
          hear(event.data);
        };
        addEventListener.call(this, type, type === "message" ? both : listener);
      };
    },
    { question: QUESTION, newTokens: NEW_TOKENS },
  );
  await page.goto(address);
  await page.waitForFunction(() => window.visit);
  return page.evaluate(() => window.visit);
}

async function visitWllama(page, address, options) {
  await page.goto(address);
  await page.waitForFunction(() => window.peer, null, { polling: 10 });
  const ready_ms = await page.evaluate(async (load) => {
    await window.peer.load(load);
    return performance.now();
  }, options);
  const asked = await page.evaluate(([question, n]) => window.peer.ask(question, n), [QUESTION, NEW_TOKENS]);
  return { ready_ms, ...asked };
}

/** A table of medians, and the ratios of wllama's first token to ours, round by round. */
export function showVisits({ engines, threads }) {
  const text = (values) => {
    if (values.some((value) => value === undefined)) return "";
    const { median, min, max } = spread(values);
    return `${median.toFixed(0)} (${min.toFixed(0)}-${max.toFixed(0)})`;
  };
  console.log(
    `Chromium ${engines[0].visits[0][0].browser}, ${threads} ${threads === 1 ? "thread" : "threads"}, ${engines[0].visits.length} rounds`,
  );
  console.table(
    engines.flatMap(({ name, visits: pairs }) =>
      ["first", "second"].map((visit, i) => {
        const of = (field) => text(pairs.map((pair) => pair[i][field]));
        return {
          engine: name,
          visit,
          "interactive, ms": of("interactive_ms"),
          "ready, ms": of("ready_ms"),
          "first token, ms": of("first_token_ms"),
          read: pairs[0][i].prompt_tokens,
        };
      }),
    ),
  );
  const [theirs, ours] = [engines.at(-1), engines.slice(0, -1)];
  for (const { name, visits: pairs } of ours) {
    for (const [i, visit] of ["first", "second"].entries()) {
      const ratios = pairs.map((pair, round) => theirs.visits[round][i].first_token_ms / pair[i].first_token_ms);
      const { median, min, max } = spread(ratios);
      const share = `${median.toFixed(1)} (${min.toFixed(1)}-${max.toFixed(1)})`;
      console.log(`first token, ${visit} visit: ${theirs.name} takes ${share} times as long as ${name}`);
    }
  }
}
