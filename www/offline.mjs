// Makes the service worker of a site, once all else is there: it knows the files of its version by their hashes.
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const FILES = ["app.js", "app.css", "worker.js", "team.js", "icon.svg"];
const ENGINES = ["pkg", "pkg/threads"].flatMap((folder) => [`${folder}/xylem.js`, `${folder}/xylem_bg.wasm`]);

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

/** `site`: the folder, with a slash at the end. */
export async function writeOffline(site) {
  const there = [...FILES, ...ENGINES].filter((file) => existsSync(site + file));
  const hashes = {};
  for (const file of there) hashes[file] = sha256(await readFile(site + file));
  // Any change of any file makes another page, so that it can be told which version a page is of.
  const version = sha256(JSON.stringify(hashes)).slice(0, 16);
  const html = await readFile(`${site}index.html`, "utf8");
  const page = html.replace(/(<meta name="version" content=")[^"]*/, `$1${version}`);
  await writeFile(`${site}index.html`, page);
  hashes["./"] = sha256(page);
  await build({
    entryPoints: [fileURLToPath(new URL("src/offline.ts", import.meta.url))],
    outdir: site,
    bundle: true,
    format: "esm",
    target: "es2022",
    minify: true,
    sourcemap: true,
    define: { HASHES: JSON.stringify(hashes) },
  });
}
