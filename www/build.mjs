// Builds the static site into `dist/` at the root of the repository. The model's bundle (`dist/model`) is left alone.
import { existsSync } from "node:fs";
import { copyFile, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { writeOffline } from "./offline.mjs";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const out = here("../dist/");

const { metafile } = await build({
  entryPoints: {
    app: here("src/main.ts"),
    worker: here("src/worker.ts"),
    team: here("src/team.ts"),
    bench: here("src/bench/main.ts"),
  },
  outdir: out,
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  sourcemap: true,
  legalComments: "none",
  metafile: true,
});
await build({
  entryPoints: { app: here("src/style/app.css"), bench: here("src/style/bench.css") },
  outdir: out,
  bundle: true,
  minify: true,
});

// The licences of what is bundled ask to be passed on with it.
const bundled = new Set(
  Object.keys(metafile.inputs)
    .map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1])
    .filter(Boolean),
);
const notices = [...bundled].sort().map(async (name) => {
  const folder = here(`node_modules/${name}/`);
  const licence = (await readdir(folder)).find((file) => /^licen[cs]e/i.test(file));
  if (!licence) throw new Error(`${name} comes without a licence file`);
  return `${name}\n\n${await readFile(folder + licence, "utf8")}`;
});
await writeFile(`${out}licences.txt`, (await Promise.all(notices)).join(`\n${"-".repeat(80)}\n\n`));

for (const file of ["index.html", "bench.html", "icon.svg"]) await copyFile(here(`src/${file}`), out + file);

// The engine for several threads is built only where that is possible; the page does without.
await rm(`${out}pkg`, { recursive: true, force: true });
for (const folder of ["pkg", "pkg/threads"]) {
  await mkdir(out + folder, { recursive: true });
  for (const file of ["xylem.js", "xylem_bg.wasm"]) {
    const built = here(`../${folder}/${file}`);
    if (existsSync(built)) await copyFile(built, `${out}${folder}/${file}`);
    else console.warn(`www: ${folder}/${file} is missing`);
  }
}

await writeOffline(out);
