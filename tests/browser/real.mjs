// The real engine in a page on a small random model, and what the native command says of the same model.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before } from "node:test";
import { enginePage, like, xylem } from "./harness.mjs";

export const QUESTION = "What rises in a tree?";
/** Greedy, but for the penalty, without which a random model repeats itself at once. */
export const GREEDY = { temperature: 0, repetitionPenalty: 1.3, maxTokens: 48, backend: "cpu" };

/** Holds the model. */
export let folder;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "xylem-model-"));
  // Records of one page each, so that tokens of a text need several pages, and the table is far larger than these.
  await xylem(
    "random",
    "--out",
    join(folder, "model"),
    "--ffn",
    "2560",
    "--layers",
    "3",
    "--stem",
    "1,2",
    "--context",
    "4096",
  );
});
after(() => rm(folder, { recursive: true, force: true }));

/** What the native command answers. */
export async function native(model = join(folder, "model"), more = []) {
  const sampling = ["--temperature", "0", "--repetition-penalty", "1.3", "--max-tokens", "48"];
  const prompt = ["--prompt", QUESTION, "--chat", "--context", "4096"];
  return JSON.parse(await xylem("generate", "--bundle", model, ...prompt, ...sampling, ...more, "--json"));
}

/** The same as a GPU computes it. */
export const nativeAsGpu = () => native(undefined, like("gpu"));

/** A page on the site with the real engine and the small model. */
export function realPage(t, { settings = {}, ...options } = {}) {
  return enginePage(t, join(folder, "model"), { settings: { ...GREEDY, ...settings }, ...options });
}

/** Those that ask for a part of the table. */
export const table = (requests) => requests.filter(({ path }) => /stem-\d+\.bin$/.test(path));
