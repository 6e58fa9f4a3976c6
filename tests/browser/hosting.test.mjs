// The site on nginx, below a path, as docs/hosting.md describes it.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdir, readFile, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { answered, browser, copySite, root, scratch, serve, watchResults } from "./harness.mjs";
import { folder, GREEDY, native, QUESTION } from "./real.mjs";

const NGINX = process.env.NGINX ?? "/usr/sbin/nginx";
const XYLEM = process.env.XYLEM ?? join(root, "target/release/xylem");

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Serves `site` with `more` in the server's block; gives its address, and what the log says so far. */
async function nginx(t, site, more) {
  const home = await scratch(t);
  const port = await freePort();
  const log = join(home, "access.log");
  const conf = `
    daemon off;
    worker_processes 1;
    pid ${home}/pid;
    error_log stderr;
    events {}
    http {
      include /etc/nginx/mime.types;
      default_type application/octet-stream;
      log_format asked '$status $uri $http_range';
      access_log ${log} asked;
      client_body_temp_path ${home}/body;
      proxy_temp_path ${home}/proxy;
      fastcgi_temp_path ${home}/fastcgi;
      uwsgi_temp_path ${home}/uwsgi;
      scgi_temp_path ${home}/scgi;
      server {
        listen 127.0.0.1:${port};
        root ${site};
        ${more}
      }
    }`;
  await writeFile(join(home, "nginx.conf"), process.getuid() === 0 ? `user root;${conf}` : conf);
  const server = spawn(NGINX, ["-p", home, "-c", join(home, "nginx.conf")], { stdio: ["ignore", "ignore", "pipe"] });
  let complaint = "";
  server.stderr.on("data", (text) => {
    complaint += text;
  });
  const ended = new Promise((resolve) => server.once("exit", resolve));
  t.after(async () => {
    server.kill("SIGQUIT");
    await ended;
  });
  const address = `http://127.0.0.1:${port}/`;
  for (let tries = 0; ; tries += 1) {
    try {
      await fetch(address);
      break;
    } catch {
      assert.ok(tries < 50 && server.exitCode === null, `nginx does not answer: ${complaint}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
  return { address, log: async () => (await readFile(log, "utf8")).trim().split("\n") };
}

for (const [what, more] of [
  ["as it comes", ""],
  ["with compression of all it serves", "gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;"],
]) {
  test(`nginx ${what}, below a path`, { skip: process.platform !== "linux" && "on Linux only" }, async (t) => {
    const site = await scratch(t);
    const below = join(site, "people/ada/xylem");
    await mkdir(below, { recursive: true });
    await copySite(below);
    await cp(join(folder, "model"), join(below, "model"), { recursive: true });
    const host = await nginx(t, site, more);
    const page = await browser(t);
    await watchResults(page, GREEDY);
    await page.goto(`${host.address}people/ada/xylem/`);
    const { result } = await answered(page, QUESTION);
    assert.deepEqual(result.tokens, (await native()).tokens);
    const rows = (await host.log()).filter((line) => /stem-\d+\.bin/.test(line));
    assert.ok(rows.length > 0);
    for (const line of rows) assert.match(line, /^206 \/people\/ada\/xylem\/model\/stem-\d+\.bin bytes=\d+-\d+$/);
    assert.deepEqual(page.problems, []);
    assert.equal(page.hosts.size, 1);
  });
}

test("a bundle on `xylem serve` opens in a page elsewhere that it allows, and Ctrl-C ends it under a client that stalls", async (t) => {
  const options = ["--dir", join(folder, "model"), "--port", "0", "--allow-origin", "*"];
  const server = spawn(XYLEM, ["serve", ...options], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise((resolve) => server.once("exit", resolve));
  t.after(() => server.kill());
  const [line] = await once(server.stdout, "data");
  const bundle = new URL(String(line).match(/http:\/\/\S+/)[0]);
  const site = await scratch(t);
  await copySite(site);
  const page = await browser(t);
  await watchResults(page, GREEDY);
  await page.goto(`${await serve(t, site)}?model=${encodeURIComponent(bundle.href)}`);
  const { result } = await answered(page, QUESTION);
  assert.deepEqual(result.tokens, (await native()).tokens);
  assert.deepEqual(page.problems, []);

  // More than fits into the buffers on the way, and nobody reads it.
  const stalled = connect(bundle.port, bundle.hostname).on("error", () => undefined);
  t.after(() => stalled.destroy());
  stalled.pause();
  const asking = "GET /stem-000.bin HTTP/1.1\r\nHost: x\r\n\r\n";
  await new Promise((resolve) => stalled.write(asking.repeat(8), resolve));
  await new Promise((resolve) => setTimeout(resolve, 300));
  server.kill("SIGINT");
  assert.equal(await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 5000, "still there"))]), 0);
});
