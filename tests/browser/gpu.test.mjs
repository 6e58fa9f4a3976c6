// WebGPU with and without f16, and kernels that compile while the core comes. The worker is given adapters that claim what
// the browser's software adapter is not.

import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { answered } from "./harness.mjs";
import { native, QUESTION, realPage } from "./real.mjs";

/** A page that computes on the GPU; `script` runs in its worker first, and `tell(word)` there calls `told(word)` here. */
function gpuPage(t, script, told, settings = {}) {
  const tell = 'const tell = (word) => fetch("/told/" + word);';
  return realPage(t, {
    settings: { backend: "gpu", ...settings },
    spoil: async (model) => {
      const worker = join(model, "../worker.js");
      await writeFile(worker, `{${tell}${script}}${await readFile(worker, "utf8")}`);
    },
    intercept: async ({ url }, response) => {
      const word = url.match(/\/told\/(.*)$/)?.[1];
      if (word === undefined) return false;
      await told(decodeURIComponent(word));
      response.writeHead(204).end();
      return true;
    },
  });
}

/** Tells what devices are asked for. */
const LISTEN = `
  const request = GPUAdapter.prototype.requestDevice;
  GPUAdapter.prototype.requestDevice = async function (descriptor) {
    const features = [...(descriptor.requiredFeatures ?? [])];
    await tell(features.join(" ") || "nothing");
    const requiredFeatures = features.filter((feature) => feature !== "shader-f16");
    return request.call(this, { ...descriptor, requiredFeatures });
  };`;

/** The adapter says that it has f16, and that it is a GPU, whose kernels are others. */
const CLAIM = `
  for (const { prototype } of [GPUAdapter, GPUDevice]) {
    const { get } = Object.getOwnPropertyDescriptor(prototype, "features");
    Object.defineProperty(prototype, "features", { get() { return new Set([...get.call(this), "shader-f16"]); } });
  }
  const info = { vendor: "claimed", architecture: "gpu", device: "", description: "", isFallbackAdapter: false,
    subgroupMinSize: 4, subgroupMaxSize: 4 };
  Object.defineProperty(GPUAdapter.prototype, "info", { get: () => info });
  Object.defineProperty(GPUDevice.prototype, "adapterInfo", { get: () => info });`;

test("without f16 it is not asked for, and the text is the native command's", async (t) => {
  const asked = [];
  const page = await gpuPage(t, LISTEN, (word) => asked.push(word));
  const { result, info } = await answered(page, QUESTION);
  assert.deepEqual(result.tokens, (await native()).tokens);
  assert.deepEqual([info.backend, info.adapter.endsWith(", f16")], ["gpu", false]);
  assert.equal(asked.length, 1);
  assert.ok(!asked[0].includes("shader-f16"), asked[0]);
  assert.deepEqual(page.problems, []);
});

test("f16 that is offered is asked for; where it computes wrongly, f32 does the work", async (t) => {
  const asked = [];
  const page = await gpuPage(t, LISTEN + CLAIM, (word) => asked.push(word), { maxTokens: 16 });
  const { result, info } = await answered(page, QUESTION);
  assert.match(asked[0], /\bshader-f16\b/);
  assert.match(info.adapter, /^claimed gpu/);
  assert.ok(!info.adapter.endsWith(", f16"), info.adapter);
  assert.deepEqual(result.tokens, (await native()).tokens.slice(0, 16));
});

test("the core comes while kernels are tested and compiled", async (t) => {
  // The first result of the known model comes only once the core is asked for, if it ever is.
  let page;
  let coming = false;
  const wait = async () => {
    for (let i = 0; i < 200 && !coming; i += 1) {
      coming = page?.requests?.some(({ path }) => /core-\d+\.bin$/.test(path)) ?? false;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  };
  const script = `
    const { mapAsync } = GPUBuffer.prototype;
    let first = true;
    GPUBuffer.prototype.mapAsync = async function (...options) {
      if (first) {
        first = false;
        await tell("tested");
      }
      return mapAsync.apply(this, options);
    };`;
  page = await gpuPage(t, script, wait, { maxTokens: 16 });
  await answered(page, QUESTION);
  assert.ok(coming, "the core was asked for after the kernels were tested");
});
