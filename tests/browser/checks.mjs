// What every view is held to: nothing for axe to complain of, and nothing wider than the window.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const axe = await readFile(
  createRequire(new URL("../../www/package.json", import.meta.url)).resolve("axe-core/axe.min.js"),
  "utf8",
);

/** What axe finds wrong with the page as it is. */
export async function complaints(page) {
  if (!(await page.evaluate(() => "axe" in window))) await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run());
  return violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.failureSummary} ${node.html}`));
}

/** The visible elements of `selector` that reach beyond the window. */
export function tooWide(page, selector) {
  return page.evaluate(
    (selector) =>
      [...document.querySelectorAll(selector)]
        .filter((element) => element.checkVisibility() && element.getBoundingClientRect().right > innerWidth + 1)
        .map((element) => element.className || element.tagName),
    selector,
  );
}
