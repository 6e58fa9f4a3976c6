// Traces that come with the page (`scripts/build.sh` makes them): a fact, the same fact edited, and an explanation.

export const EXAMPLES = ["example.js", "example-2.js", "example-3.js"];
