// Shared by the browser tests: a copy of the built site to spoil at will, a server, and Chromium.

import { execFile } from "node:child_process";
import { cp, mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const require = createRequire(new URL("../../www/package.json", import.meta.url));
const { chromium } = require("playwright-core");
const sirv = require("sirv");

export const root = fileURLToPath(new URL("../../", import.meta.url));
const here = fileURLToPath(new URL("./", import.meta.url));

/** Runs the native command; gives what it prints. */
export async function xylem(...options) {
  const { stdout } = await promisify(execFile)(process.env.XYLEM ?? join(root, "target/release/xylem"), options);
  return stdout;
}

/** What the native command needs to say what a backend does: a GPU keeps keys and values in half precision. */
export const like = (backend) => (backend === "gpu" ? ["--kv-type", "f16"] : []);

const endings = new WeakMap();

/** Does `end` after the test, what was begun last first: a page goes before its host, and the host before its files. */
function afterwards(t, end) {
  if (!endings.has(t)) {
    const mine = [];
    endings.set(t, mine);
    t.after(async () => {
      while (mine.length > 0) await mine.pop()();
    });
  }
  endings.get(t).push(end);
}

/** A folder that is removed after the test. */
export async function scratch(t) {
  const folder = await mkdtemp(join(tmpdir(), "xylem-page-"));
  afterwards(t, () => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** Copies the built page to `folder`, without a model; `fake` puts the stand-in in the engine's place. */
export async function copySite(folder, { fake = false } = {}) {
  const model = join(root, "dist/model");
  await cp(join(root, "dist"), folder, { recursive: true, filter: (path) => !path.startsWith(model) });
  if (fake) await cp(join(here, "fake-engine.js"), join(folder, "pkg/xylem.js"));
}
/** For `serve`: the headers that isolate a page, so that it may share memory between threads. */
export function isolate(_request, response) {
  response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
  response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
  return false;
}

/** A page on the site with the stand-in engine, in the mode `kind`, its model loaded. */
export async function fakePage(t, kind, options) {
  const folder = await scratch(t);
  await copySite(folder, { fake: true });
  const page = await browser(t, options);
  await page.goto(`${await serve(t, folder)}?model=fake/${kind}`);
  return page;
}

/**
 * Serves `folder`; gives its address, with a slash at the end. `intercept` sees each request first, may change it, and
 * answers it by itself if it gives true.
 */
export async function serve(t, folder, intercept = () => false) {
  const files = sirv(folder, { dev: true });
  const server = createServer(async (request, response) => {
    if (await intercept(request, response)) return;
    files(request, response, () => response.writeHead(404).end("not found"));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  afterwards(t, () => {
    server.close();
    server.closeAllConnections();
  });
  return `http://127.0.0.1:${server.address().port}/`;
}

/**
 * A page on the site with the real engine and a copy of the folder `model`, which `spoil` may damage first.
 * `page.requests` collects what the host was asked for.
 */
export async function enginePage(
  t,
  model,
  { settings = {}, spoil, intercept = () => false, path = "", fragment = "", media = {} } = {},
) {
  const site = await scratch(t);
  const root = join(site, path);
  await copySite(root);
  await cp(model, join(root, "model"), { recursive: true });
  await spoil?.(join(root, "model"));
  const requests = [];
  const address = await serve(t, site, (request, response) => {
    const handled = intercept(request, response);
    const { range } = request.headers;
    response.on("finish", () => requests.push({ path: request.url, range, status: response.statusCode }));
    return handled;
  });
  const page = await browser(t, media);
  await watchResults(page, settings);
  await page.goto(address + encodeURI(path) + fragment);
  page.requests = requests;
  return page;
}

let running;

/** One Chromium for a test file. The context is persistent: an incognito one stores files many times slower. */
async function chromiumContext() {
  const profile = await mkdtemp(join(tmpdir(), "xylem-profile-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    permissions: ["clipboard-read", "clipboard-write"],
    args: [
      "--enable-unsafe-webgpu",
      "--no-sandbox",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
  return { profile, context };
}

after(async () => {
  if (!running) return;
  const { profile, context } = await running;
  await context.close();
  await rm(profile, { recursive: true, force: true });
});

/**
 * A new tab. Each test has a server, and so an origin and a storage, of its own.
 * `page.hosts` collects the hosts of all requests, `page.problems` what the page complained of.
 */
export async function browser(t, { viewport = { width: 1280, height: 800 }, ...media } = {}) {
  running ??= chromiumContext();
  const { context } = await running;
  const page = await context.newPage();
  await page.setViewportSize(viewport);
  await page.emulateMedia(media);
  page.setDefaultTimeout(60_000);
  page.hosts = new Set();
  page.problems = [];
  const note = (request) => page.hosts.add(new URL(request.url()).host);
  context.on("request", note);
  page.on("pageerror", (error) => page.problems.push(error.message));
  page.on("console", (message) => {
    if (message.type() === "error") page.problems.push(message.text());
  });
  afterwards(t, async () => {
    context.off("request", note);
    await page.close();
  });
  return page;
}

const answers = (page) => page.getByRole("article", { name: "Answer" });

/** Writes `text` into the message field, sends it by keyboard, and waits until its answer has begun. */
export async function ask(page, text) {
  // Turns come and go at the next frame: until then the last answer is one before, which may be about to go.
  await answers(page).evaluateAll((all) => {
    for (const one of all) one.setAttribute("data-before", "");
  });
  await page.getByRole("textbox", { name: "Message", exact: true }).fill(text);
  await page.keyboard.press("Enter");
  await answers(page).and(page.locator(":not([data-before])")).last().waitFor();
}

/** Waits until the last answer is complete and gives its element. */
export async function lastAnswer(page) {
  const answer = answers(page).last();
  await answer.and(page.locator('[aria-busy="false"]')).waitFor();
  return answer;
}

/** To be called before the page is opened: sets its settings, and lets `answered` see what the engine gives. */
export async function watchResults(page, settings) {
  await page.addInitScript((stored) => {
    localStorage.setItem("xylem.settings", stored);
    window.results = [];
    const { addEventListener } = Worker.prototype;
    Worker.prototype.addEventListener = function (type, listener) {
      const listen = (event) => {
        if (event.data?.type === "result") window.results.push(event.data);
        listener(event);
      };
      addEventListener.call(this, type, type === "message" ? listen : listener);
    };
  }, JSON.stringify(settings));
}

/** Does what makes the engine answer, and gives its result and what it says of itself. */
export async function resultOf(page, act) {
  const before = await page.evaluate(() => window.results.length);
  await act();
  // The last answer may still be the one before.
  await page.waitForFunction((count) => window.results.length > count, before);
  await lastAnswer(page);
  return page.evaluate(() => window.results.at(-1));
}

/** Asks, and gives the engine's result and what it says of itself. */
export const answered = (page, question) => resultOf(page, () => ask(page, question));

/** Waits until pages of the table are in the database, and gives how many of each table. */
export async function pagesKept(page) {
  const count = () =>
    page.evaluate(async () => {
      const db = await new Promise((resolve, reject) => {
        const open = indexedDB.open("xylem");
        open.onsuccess = () => resolve(open.result);
        open.onerror = () => reject(open.error);
      });
      const keys = await new Promise((resolve) => {
        const all = db.transaction("pages").objectStore("pages").getAllKeys();
        all.onsuccess = () => resolve(all.result);
      });
      db.close();
      return keys.map(([table]) => table);
    });
  let last = -1;
  for (;;) {
    const tables = await count();
    if (tables.length === last && last > 0) return tables;
    last = tables.length;
    await page.waitForTimeout(400);
  }
}

/** What the engine gave for answer number `n`, from 0, once it is there. */
export async function nextResult(page, n) {
  await page.waitForFunction((count) => window.results.length > count, n);
  return page.evaluate((at) => window.results[at].result, n);
}
