// The service worker: keeps the files of the page, so that it opens without its host. The host goes first wherever it
// answers, so that nobody is left with an old page. The model's files are none of its business.

import { EXAMPLES } from "./lookups/examples";

type Extended = Event & { waitUntil(work: Promise<unknown>): void };
type Fetched = Event & { request: Request; respondWith(response: Promise<Response>): void };

const PAGE = "xylem-page";
const FILES = ["./", "app.js", "app.css", "worker.js", "icon.svg", "pkg/xylem.js", "pkg/xylem_bg.wasm"];
// Not every page has them.
const MORE = [...EXAMPLES, "team.js", "pkg/threads/xylem.js", "pkg/threads/xylem_bg.wasm"];
const address = (file: string): string => new URL(file, self.location.href).href;
const urls = new Set([...FILES, ...MORE].map(address));

self.addEventListener("install", (event) => {
  (event as Extended).waitUntil(caches.open(PAGE).then((cache) => cache.addAll(FILES.map(address))));
});

self.addEventListener("fetch", (event) => {
  const { request } = event as Fetched;
  const url = new URL(request.url);
  url.search = url.hash = "";
  if (request.method === "GET" && urls.has(url.href)) (event as Fetched).respondWith(answer(request, url.href));
});

async function answer(request: Request, key: string): Promise<Response> {
  try {
    const response = await fetch(request);
    if (response.ok) void keep(key, response.clone());
    return response;
  } catch (cause) {
    const kept = await caches.match(key);
    if (kept) return kept;
    throw cause;
  }
}

async function keep(key: string, response: Response): Promise<void> {
  try {
    const cache = await caches.open(PAGE);
    await cache.put(key, response);
  } catch (cause) {
    // No room: the copy of the last visit stays.
    console.warn("The page's file could not be kept:", cause);
  }
}
