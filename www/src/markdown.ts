// Model output is untrusted. markdown-it parses it with HTML off, and its tokens become DOM nodes of a few known kinds:
// no HTML text is ever parsed by the browser, and no image or other resource is fetched.

import MarkdownIt from "markdown-it";
import { copyButton, h } from "./dom";

const parser = new MarkdownIt({ html: false, linkify: false, typographer: false });
type Token = ReturnType<typeof parser.parse>[number];

const TAGS = new Set([
  "p",
  "h1",
  "h2",
  "h3",
  "h4",
  "h5",
  "h6",
  "ul",
  "ol",
  "li",
  "blockquote",
  "hr",
  "em",
  "strong",
  "s",
  "table",
  "thead",
  "tbody",
  "tr",
  "th",
  "td",
  "a",
]);

type Block = { source: string; nodes: Node[] };

/** Shows Markdown in `element`. When the text grows, blocks that did not change keep their nodes, and so a selection. */
export class MarkdownView {
  readonly element = h("div", { class: "markdown", dir: "auto" });
  #blocks: Block[] = [];
  #text = "";

  update(text: string): void {
    if (text === this.#text) return;
    this.#text = text;
    const lines = text.split("\n");
    const environment = {};
    const blocks = topLevel(parser.parse(text, environment)).map((tokens) => {
      const [from, to] = tokens[0]?.map ?? [0, lines.length];
      return { tokens, source: lines.slice(from, to).join("\n") };
    });
    // A reference definition further down can change a block whose own text stayed.
    const independent = !("references" in environment);
    let same = 0;
    while (independent && same < blocks.length && this.#blocks[same]?.source === blocks[same]?.source) same += 1;
    for (const block of this.#blocks.splice(same)) for (const node of block.nodes) this.element.removeChild(node);
    for (const { tokens, source } of blocks.slice(same)) {
      const fragment = document.createDocumentFragment();
      build(tokens, fragment);
      const nodes = [...fragment.childNodes];
      this.element.append(fragment);
      this.#blocks.push({ source, nodes });
    }
  }
}

function topLevel(tokens: Token[]): Token[][] {
  const blocks: Token[][] = [];
  let depth = 0;
  for (const token of tokens) {
    if (depth === 0) blocks.push([]);
    blocks.at(-1)?.push(token);
    depth += token.nesting;
  }
  return blocks;
}

function build(tokens: Token[], root: Node): void {
  const open: Node[] = [root];
  for (const token of tokens) {
    const parent = open.at(-1) ?? root;
    if (token.hidden) continue;
    if (token.nesting === -1) open.pop();
    else if (token.nesting === 1) open.push(parent.appendChild(container(token)));
    else leaf(token, parent);
  }
}

function leaf(token: Token, parent: Node): void {
  switch (token.type) {
    case "inline":
      build(token.children ?? [], parent);
      break;
    case "softbreak":
      parent.appendChild(document.createTextNode("\n"));
      break;
    case "hardbreak":
      parent.appendChild(h("br"));
      break;
    case "hr":
      parent.appendChild(h("hr"));
      break;
    case "code_inline":
      parent.appendChild(h("code", {}, token.content));
      break;
    case "fence":
    case "code_block":
      parent.appendChild(codeBlock(token));
      break;
    case "image":
      // Fetching it would tell another host that this answer was read: a link instead.
      parent.appendChild(link(token.attrGet("src"), token.content || "image"));
      break;
    default:
      parent.appendChild(document.createTextNode(token.content));
  }
}

function container(token: Token): HTMLElement {
  if (!TAGS.has(token.tag)) return h("span");
  if (token.tag === "a") return link(token.attrGet("href"), "");
  const element = document.createElement(token.tag);
  const start = token.tag === "ol" ? token.attrGet("start") : null;
  if (start !== null) element.setAttribute("start", String(start));
  const align = /text-align:(left|center|right)/.exec(String(token.attrGet("style") ?? ""))?.[1];
  if (align) element.style.textAlign = align;
  return element;
}

/** A link that leaves this page in its own tab, or plain text if the address is anything but web or mail. */
function link(address: unknown, text: string): HTMLElement {
  const href = String(address ?? "");
  if (!/^(https?:|mailto:)/i.test(href)) return h("span", {}, text);
  return h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow", title: href }, text);
}

function codeBlock(token: Token): HTMLElement {
  const language = token.info.trim().split(/\s+/)[0] ?? "";
  return h(
    "figure",
    { class: "code" },
    h(
      "figcaption",
      {},
      h("span", {}, language || "text"),
      copyButton("Copy code", () => token.content),
    ),
    h("pre", { tabindex: 0, "aria-label": "Code" }, h("code", {}, token.content)),
  );
}
