// Our page and wllama in one Chromium, each in a tab of its own; a tab computes only while its turn lasts.

import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { cpus, tmpdir } from "node:os";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import sirv from "sirv";
import { NEW_TOKENS } from "./arms.mjs";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

/** What makes a page cross-origin isolated, so that it may have threads. */
export const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

/** How far away the host of a slow link is. */
const LATENCY_MS = 40;

/** Serves `folders` by their paths; gives the address. All answers together pass at most `bytesPerSecond`, if given. */
export async function serve(folders, headers, closing, bytesPerSecond = Number.POSITIVE_INFINITY) {
  const hosts = Object.entries(folders).map(([path, folder]) => [path, sirv(folder, { dev: true })]);
  const link = { bytesPerSecond, free: 0 };
  const server = createServer(async (request, response) => {
    if (Number.isFinite(bytesPerSecond)) {
      // What is written to the answer of a HEAD never goes out.
      if (request.method !== "HEAD") throttle(response, link);
      await new Promise((resolve) => setTimeout(resolve, LATENCY_MS));
    }
    for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
    const [path, host] = hosts.find(([prefix]) => request.url.startsWith(prefix));
    request.url = `/${request.url.slice(path.length)}`;
    host(request, response, () => response.writeHead(404).end());
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  closing.push(() => server.close());
  return `http://127.0.0.1:${server.address().port}/`;
}

/** Lets each piece of `response` wait until the link is free for it; the stream behind waits for it in turn. */
function throttle(response, link) {
  const [write, end] = [response.write.bind(response), response.end.bind(response)];
  let last = Promise.resolve();
  response.write = (bytes) => {
    link.free = Math.max(link.free, performance.now()) + (bytes.length / link.bytesPerSecond) * 1000;
    const wait = link.free - performance.now();
    last = last.then(() => new Promise((resolve) => setTimeout(resolve, wait)));
    last = last.then(() => void (write(bytes) && response.emit("drain")));
    return false;
  };
  response.end = (...rest) => void last.then(() => end(...rest));
}

/** What a host of all engines serves, by path. */
export function foldersOf({ models, base, wllama }) {
  const bundles = Object.entries(models).map(([name, folder]) => [`/bundle-${name}/`, folder]);
  return {
    "/peer/": here("."),
    "/wllama/": here(`../node_modules/${wllama}/esm`),
    "/base/": join(base, ".."),
    ...Object.fromEntries(bundles),
    "/": here("../../dist"),
  };
}

const QUIET = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"];

/** A browser without a window, with what is in the folder `profile`. */
export const open = (profile, ...more) =>
  chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    args: [...QUIET, ...more],
  });

/**
 * The arms: ours on the bundles in `models` (by name), and wllama on the file `base`; each with one thread, and with as many
 * as there are cores where `threads` says so. `close` ends everything.
 */
export async function browserArms({ models, base, wllama, threads }) {
  const closing = [];
  const folders = foldersOf({ models, base, wllama });
  const profile = await mkdtemp(join(tmpdir(), "xylem-peers-"));
  const context = await open(profile);
  closing.push(async () => {
    await context.close();
    await rm(profile, { recursive: true, force: true });
  });
  const tab = async (address) => {
    const page = await context.newPage();
    page.setDefaultTimeout(170_000);
    await page.goto(address);
    return page;
  };
  const arms = [];
  for (const isolated of threads === "one" ? [false] : threads === "many" ? [true] : [false, true]) {
    const host = await serve(folders, isolated ? ISOLATED : {}, closing);
    const cores = isolated ? "many" : "one";
    for (const name of Object.keys(models)) {
      const page = await tab(`${host}bench.html`);
      const load = await page.evaluate(ours.load, `bundle-${name}/manifest.json`);
      arms.push({
        name: `xylem ${name}, ${cores}`,
        load,
        run: (prompt) => page.evaluate(ours.run, { prompt, newTokens: NEW_TOKENS }),
      });
    }
    const page = await tab(`${host}peer/wllama.html`);
    await page.waitForFunction(() => window.peer);
    const load = await page.evaluate((options) => window.peer.load(options), {
      model: `${host}base/${basename(base)}`,
      threads: isolated ? cpus().length : 1,
    });
    arms.push({
      name: `${wllama.replace("@wllama/", "")}, ${cores}`,
      load,
      run: (prompt) => page.evaluate((options) => window.peer.run(options), { prompt, newTokens: NEW_TOKENS }),
    });
  }
  const browser = context.browser()?.version() ?? "unknown";
  return { arms, browser, close: () => Promise.all(closing.map((close) => close())) };
}

/** Run in our page: its own worker, spoken to as the page does. */
const ours = {
  load: (manifest) =>
    new Promise((resolve, reject) => {
      const began = performance.now();
      const worker = new Worker(new URL("./worker.js", location.href), { type: "module" });
      window.worker = worker;
      worker.addEventListener("message", ({ data }) => {
        if (data.type === "failed") reject(new Error(data.message));
        if (data.type !== "loaded") return;
        const { backend, adapter, wasmBytes } = data.info;
        resolve({ ms: performance.now() - began, backend, adapter, wasm_bytes: wasmBytes });
      });
      worker.postMessage({ type: "load", manifestUrl: new URL(manifest, location.href).href, backend: "cpu" });
    }),
  run: ({ prompt, newTokens }) =>
    new Promise((resolve, reject) => {
      const { worker } = window;
      const hear = ({ data }) => {
        if (data.type === "failed" || data.type === "refused") reject(new Error(data.message));
        if (data.type !== "called") return;
        worker.removeEventListener("message", hear);
        const { value } = data;
        resolve({
          prompt_tokens: value.prompt_tokens,
          new_tokens: value.new_tokens,
          first_token_ms: value.first_token_ms.median,
          tokens_per_second: value.decode_tokens_per_second.median,
          tokens: value.tokens,
        });
      };
      worker.addEventListener("message", hear);
      const options = { prompt, promptTokens: null, newTokens, runs: 1, timedRuns: 0 };
      worker.postMessage({ type: "call", id: 1, method: "bench", args: [options] });
    }),
};
