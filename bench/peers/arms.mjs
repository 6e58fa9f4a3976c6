// The prompts, and what is done with the figures of paired runs.

import { readFileSync } from "node:fs";

/** New tokens of a run; all engines take the likeliest each time. */
export const NEW_TOKENS = 64;

const long = readFileSync(new URL("../../src/bench/prompt.txt", import.meta.url), "utf8").trimEnd();

/** Of 19 and of some 200 tokens. */
export const PROMPTS = {
  short: "A river town grows from its crossing. Long before there were walls, people came to the shallow",
  long,
};

/**
 * Runs all `arms` in turns: one round to warm up, then `rounds` more, every second one backwards. An arm is a name and
 * `run(prompt)`, which gives `{ prompt_tokens, new_tokens, first_token_ms, tokens_per_second }` and perhaps `tokens`.
 */
export async function inTurns(arms, prompts, rounds) {
  const results = [];
  for (const name of prompts) {
    const runs = new Map(arms.map((arm) => [arm.name, []]));
    for (let round = 0; round <= rounds; round += 1) {
      for (const arm of round % 2 ? arms : arms.toReversed()) {
        const run = await arm.run(PROMPTS[name]);
        if (round > 0) runs.get(arm.name).push(run);
        process.stderr.write(
          `${name} ${round}/${rounds} ${arm.name}: ${run.tokens_per_second.toFixed(1)} tokens/s, first ${run.first_token_ms.toFixed(0)} ms\n`,
        );
      }
    }
    results.push({ prompt: name, arms: arms.map((arm) => summary(arm.name, runs.get(arm.name))), runs });
  }
  return results.map(({ prompt, arms: all, runs }) => ({ prompt, arms: all, ratios: ratios(runs) }));
}

export function spread(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
  return { median: middle, min: sorted[0], max: sorted.at(-1) };
}

function summary(name, runs) {
  const [first] = runs;
  return {
    name,
    runs: runs.length,
    prompt_tokens: first.prompt_tokens,
    new_tokens: first.new_tokens,
    decode_tokens_per_second: spread(runs.map((run) => run.tokens_per_second)),
    prefill_tokens_per_second: spread(runs.map((run) => (run.prompt_tokens / run.first_token_ms) * 1000)),
    first_token_ms: spread(runs.map((run) => run.first_token_ms)),
    tokens: first.tokens ?? null,
    text: first.text ?? null,
  };
}

/** Of each of our arms to each of the others: of the medians, and round by round. */
function ratios(runs) {
  const names = [...runs.keys()];
  const ours = names.filter((name) => name.startsWith("xylem"));
  const theirs = names.filter((name) => !name.startsWith("xylem"));
  return ours.flatMap((our) =>
    theirs.map((their) => {
      const ratio = (value) => {
        const [a, b] = [our, their].map((name) => runs.get(name).map(value));
        return { of_medians: spread(a).median / spread(b).median, ...spread(a.map((x, i) => x / b[i])) };
      };
      return {
        ours: our,
        theirs: their,
        decode: ratio((run) => run.tokens_per_second),
        prefill: ratio((run) => run.prompt_tokens / run.first_token_ms),
      };
    }),
  );
}
