// Builds the static site into `dist/` at the root of the repository. The model's bundle (`dist/model`) is left alone.
import { existsSync } from "node:fs";
import { copyFile, mkdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const out = here("../dist/");

await build({
  entryPoints: { app: here("src/main.ts"), worker: here("src/worker.ts") },
  outdir: out,
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  sourcemap: true,
  legalComments: "linked",
});
await build({ entryPoints: { app: here("src/style/app.css") }, outdir: out, bundle: true, minify: true });

for (const file of ["index.html", "icon.svg"]) await copyFile(here(`src/${file}`), out + file);

await mkdir(`${out}pkg`, { recursive: true });
for (const file of ["xylem.js", "xylem_bg.wasm"]) {
  const built = here(`../pkg/${file}`);
  if (existsSync(built)) await copyFile(built, `${out}pkg/${file}`);
  else console.warn(`www: pkg/${file} is missing; build the engine before you serve dist/`);
}
