// The service worker: keeps the files of the page, so that it opens without its host. The host goes first wherever it
// answers, so that nobody is left with an old page; but a page of one version never gets a file of another. The model's files
// are none of its business.

import { EXAMPLES } from "./lookups/examples";

type Extended = Event & { waitUntil(work: Promise<unknown>): void };
type Fetched = Event & {
  request: Request;
  clientId: string;
  resultingClientId: string;
  respondWith(response: Promise<Response>): void;
};

/** SHA-256 of the files of this version, by path; `www/offline.mjs` puts them in. */
declare const HASHES: Readonly<Record<string, string>>;

const address = (file: string): string => new URL(file, self.location.href).href;
const PAGE = address("./");
const parts = new Set(Object.keys(HASHES).map(address));
const examples = new Set(EXAMPLES.map(address));

// The page names the version of all other files, so that its hash stands for them all. Other sites of the origin have caches too.
const OWN = HASHES["./"] ?? "";
const PREFIX = `xylem-page ${PAGE} `;
const cacheName = (version: string): string => PREFIX + version;
/** Which version each open page has, and each worker of one. This script is ended and begun again while they stay. */
const CLIENTS = cacheName("clients");
const MAX_CLIENTS = 200;

self.addEventListener("install", (event) => (event as Extended).waitUntil(install()));
// No page of an earlier version is open any more.
self.addEventListener("activate", (event) => (event as Extended).waitUntil(removeOthers()));
self.addEventListener("fetch", (event) => {
  const fetched = event as Fetched;
  const url = new URL(fetched.request.url);
  url.search = url.hash = "";
  const key = url.href === address("index.html") ? PAGE : url.href;
  if (fetched.request.method !== "GET") return;
  if (key === PAGE) fetched.respondWith(page(fetched));
  else if (parts.has(key)) fetched.respondWith(part(fetched, key));
  else if (examples.has(key)) fetched.respondWith(example(fetched.request, key));
});

/** Fails while the host has not all files of this version; the browser tries again at the next visit. */
async function install(): Promise<void> {
  const cache = await caches.open(cacheName(OWN));
  const keep = async (file: string): Promise<Headers> => {
    const response = await fetch(address(file), { cache: "no-cache" });
    if (!response.ok || (await hashOf(response)) !== HASHES[file]) throw new Error(`${file} is not of this version`);
    const { headers } = response;
    await cache.put(address(file), response);
    return headers;
  };
  // An engine for several threads is of use in isolated pages alone.
  const isolated = (await keep("./")).has("cross-origin-embedder-policy");
  const others = Object.keys(HASHES).filter((file) => file !== "./" && (isolated || !file.startsWith("pkg/threads/")));
  await Promise.all(others.map(keep));
}

async function removeOthers(): Promise<void> {
  const names = await caches.keys();
  // Early versions of the page had one cache for all.
  const others = names.filter((name) => name.startsWith(PREFIX) || name === "xylem-page");
  await Promise.all(others.filter((name) => name !== cacheName(OWN)).map((name) => caches.delete(name)));
}

async function page({ request, resultingClientId }: Fetched): Promise<Response> {
  const response = await ask(request);
  const kept = response && response.status < 500 ? undefined : await caches.match(PAGE, { cacheName: cacheName(OWN) });
  if (kept) await note(resultingClientId, OWN);
  else if (response?.ok) await note(resultingClientId, await hashOf(response));
  return kept ?? response ?? Response.error();
}

async function part({ request, clientId, resultingClientId }: Fetched, key: string): Promise<Response> {
  const version = await versionOf(clientId);
  // A worker is of the version of the page that starts it.
  if (version) await note(resultingClientId, version);
  const response = await ask(request, { cache: "no-cache" });
  const kept = await caches.match(key, { cacheName: cacheName(version ?? OWN) });
  if (!kept) return response ?? Response.error();
  const fits = response?.ok && (version === null || (await hashOf(response)) === (await hashOf(kept)));
  return fits ? response : kept;
}

/** Examples are data, which the page checks: those of another version do no harm. */
async function example(request: Request, key: string): Promise<Response> {
  const response = await ask(request);
  if (!response?.ok) return (await caches.match(key, { cacheName: cacheName(OWN) })) ?? response ?? Response.error();
  const cache = await caches.open(cacheName(OWN));
  const copy = response.clone();
  // Where there is no room the copy of the last visit stays.
  cache.put(key, copy).catch((cause: unknown) => console.warn("The page's file could not be kept:", cause));
  return response;
}

/** Null where the host does not answer. */
async function ask(request: Request, options?: RequestInit): Promise<Response | null> {
  try {
    return await fetch(request, options);
  } catch {
    return null;
  }
}

async function versionOf(client: string): Promise<string | null> {
  const noted = await caches.match(address(`?client=${client}`), { cacheName: CLIENTS });
  return noted ? noted.text() : null;
}

async function note(client: string, version: string): Promise<void> {
  if (!client) return;
  const cache = await caches.open(CLIENTS);
  await cache.put(address(`?client=${client}`), new Response(version));
  const all = await cache.keys();
  await Promise.all(all.slice(0, -MAX_CLIENTS).map((old) => cache.delete(old)));
}

async function hashOf(response: Response): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", await response.clone().arrayBuffer());
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
