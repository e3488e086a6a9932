"use strict";
// The page of one run's latents. Text from data is only ever set as text, never as HTML.

const PAGE = 100;
const KINDS = [
  ["top", "Strongest"],
  ["q4", "Drawn from the strongest quarter of its firings"],
  ["q3", "From the second quarter"],
  ["q2", "From the third quarter"],
  ["q1", "From the weakest quarter"],
];
const state = { order: [], page: 0, open: null };
const chunks = new Map(); // number -> promise of the chunk's latents
const arrived = new Map(); // number -> what to call when the chunk's script has run
let index; // columns over the living latents, see page.py
let rowOf; // latent -> row of the columns

const $ = (id) => document.getElementById(id);

/** An element with attributes and children (strings become text). */
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect", "text", "title", "line"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const percent = (x) => `${(x * 100).toLocaleString("en", { maximumSignificantDigits: 2 })} %`;
const number = (x) => String(+x.toPrecision(3));
const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣");

/** Why a latent has no score. */
const unscored = (row) => (index.description[row]
  ? `too rare: it fires in fewer than ${index.least_unseen} contexts of unseen documents`
  : "undescribed: the explainer gave no usable answer");

function scoreNode(row) {
  const score = index.score[row];
  if (score === null) {
    return make("span", { class: "score none", title: `No score, ${unscored(row)}` }, unscored(row).split(":")[0]);
  }
  return make("span", { class: score > 0.7 ? "score good" : "score", title: "detection score" }, score.toFixed(2));
}

// ---- the list

function refresh() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const group = $("group").value;
  const key = $("sort").value;
  const down = $("direction").getAttribute("aria-pressed") === "true" ? -1 : 1;
  const values = index[key];
  const found = [];
  for (let row = 0; row < index.latent.length; row++) {
    if (group && index.group[row] !== +group) continue;
    if (words.every((word) => index.search[row].includes(word))) found.push(row);
  }
  // What has no score comes last, whichever way.
  const rank = (row) => (values[row] === null ? Infinity : down * values[row]);
  found.sort((a, b) => rank(a) - rank(b) || index.latent[a] - index.latent[b] || 0);
  state.order = found;
  state.page = 0;
  draw();
}

function draw() {
  const first = state.page * PAGE;
  const rows = state.order.slice(first, first + PAGE);
  const total = state.order.length;
  $("list").replaceChildren(...rows.map(rowNode));
  $("list").scrollTop = 0;
  const many = total === 1 ? "1 latent" : `${total.toLocaleString("en")} latents`;
  $("count").textContent = total ? many : "No latent matches; try fewer or shorter words.";
  $("place").textContent = total ? `${first + 1}–${first + rows.length}` : "";
  $("previous").disabled = first === 0;
  $("next").disabled = first + PAGE >= total;
  mark();
}

function rowNode(row) {
  const id = index.latent[row];
  return make("li", {}, make("a", { href: `#${id}`, "data-latent": id },
    make("span", { class: "id" }, `#${id}`),
    make("span", { class: "text" }, index.description[row] || "no description"),
    make("span", { class: "right" }, scoreNode(row),
      make("span", { class: "density", title: "share of tokens on which it fires" }, percent(index.density[row])))));
}

function mark() {
  for (const link of $("list").querySelectorAll("a")) {
    if (+link.dataset.latent === state.open) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

function turn(step) {
  state.page += step;
  draw();
  $("list").querySelector("a")?.focus();
}

// ---- one latent

function load(chunk) {
  if (!chunks.has(chunk)) {
    chunks.set(chunk, new Promise((resolve, reject) => {
      arrived.set(chunk, resolve);
      const name = `data/${String(chunk).padStart(4, "0")}.js`;
      const script = make("script", { src: name });
      script.onerror = () => {
        chunks.delete(chunk);
        reject(new Error(`${name} is missing: copy the whole folder, not index.html alone`));
      };
      document.head.append(script);
    }));
  }
  return chunks.get(chunk);
}

async function open(id) {
  const row = rowOf.get(id);
  state.open = row === undefined ? null : id;
  document.body.classList.toggle("open", state.open !== null);
  $("welcome").hidden = state.open !== null;
  $("latent").hidden = state.open === null;
  mark();
  if (state.open === null) return;
  document.title = `Latent ${id} of ${index.run}`;
  let nodes;
  try {
    const chunk = await load(Math.floor(row / index.chunk));
    nodes = detail(row, chunk.latents[row % index.chunk], chunk.vocabulary);
  } catch (error) {
    nodes = [make("h2", { tabindex: -1 }, `Latent ${id}`), make("p", { role: "alert" }, error.message)];
  }
  if (state.open !== id) return;
  $("latent").replaceChildren(...nodes);
  $("main").scrollTop = 0;
  $("latent").querySelector("h2").focus({ preventScroll: true });
}

function facts(pairs) {
  return make("dl", { class: "facts" },
    ...pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function detail(row, latent, vocabulary) {
  const id = index.latent[row];
  const score = index.score[row];
  const previous = make("button", { type: "button", "aria-label": "Previous latent of the list" }, "‹");
  const next = make("button", { type: "button", "aria-label": "Next latent of the list" }, "›");
  previous.onclick = () => step(-1);
  next.onclick = () => step(1);
  const head = make("div", {},
    make("div", { class: "title" },
      make("a", { class: "back", href: "#" }, "← All latents"),
      make("h2", { tabindex: -1 }, `Latent ${id}`),
      make("span", { class: "steps" }, previous, next)),
    make("p", { class: "description" }, index.description[row] || "No description: the explainer gave no usable answer."),
    facts([
      ["Score", score === null ? make("span", { class: "quiet" }, `none, ${unscored(row)}`)
        : make("span", {}, scoreNode(row),
          make("span", { class: "quiet" }, ` on ${latent.scored_on} unseen contexts, half of them active`))],
      ["Described by", index.explainer[latent.explainer] || "–"],
      ["Fires on", `${percent(index.density[row])} of tokens (${latent.firings.toLocaleString("en")})`],
      ...(index.groups > 1 ? [["Group", `${index.group[row]} of ${index.groups}`]] : []),
      ["Mean, largest activation", `${number(latent.mean)}, ${number(index.max[row])}`],
    ]));
  const cards = make("div", { class: "cards" },
    effects("Promotes", latent.promoted, ""), effects("Suppresses", latent.suppressed, "minus"),
    make("section", { class: "card" }, make("h3", {}, "Activations"), histogram(latent.histogram, latent.bin_width)),
    related("Nearest decoder rows", latent.nearest, (x) => `cos ${x.toFixed(2)}`));
  if (index.groups > 1) {
    cards.append(
      related("Parents (share of its firings)", latent.parents, percent, "No latent of an earlier group fires along."),
      related("Children (share of theirs)", latent.children, percent, "No latent of a later group leans on it."));
  }
  const sections = KINDS.map(([kind, title]) => {
    const own = latent.contexts.filter((context) => context.kind === kind);
    if (!own.length) return null;
    return make("section", {}, make("h3", {}, title),
      make("div", { class: "contexts" }, ...own.map((context) => contextNode(context, vocabulary, index.max[row]))));
  });
  return [head, cards, ...sections.filter(Boolean)];
}

function effects(title, list, kind) {
  const largest = Math.max(...list.map(([, by]) => Math.abs(by)), 1e-9);
  return make("section", { class: "card" }, make("h3", {}, title), make("ol", {},
    ...list.map(([token, by]) => {
      const fill = make("span", { class: "fill", "aria-hidden": "true" });
      fill.style.width = `${(100 * Math.abs(by)) / largest}%`;
      return make("li", { class: `effect ${kind}` }, fill, make("code", {}, visible(token)),
        make("span", { class: "quiet number" }, `${by > 0 ? "+" : "−"}${number(Math.abs(by))}`));
    })));
}

function related(title, list, explain, none = "none") {
  const body = list.length
    ? make("ul", {}, ...list.map(([id, value]) => make("li", {},
      make("a", { href: `#${id}`, title: index.description[rowOf.get(id)] },
        `#${id} ${index.description[rowOf.get(id)] ?? ""}`),
      make("span", { class: "quiet number" }, explain(value)))))
    : make("p", { class: "quiet" }, none);
  return make("section", { class: "card" }, make("h3", {}, title), body);
}

function histogram(counts, width) {
  const last = counts.findLastIndex((count) => count > 0) + 1;
  const largest = Math.max(...counts);
  const name = `Histogram of ${counts.reduce((a, b) => a + b, 0)} activations from 0 to ${number(last * width)}`;
  const bars = counts.slice(0, last).map((count, bin) => {
    const height = count ? Math.max(1, (90 * count) / largest) : 0;
    return make("rect", { x: (bin * 240) / last, y: 92 - height, width: 240 / last - 1, height },
      make("title", {}, `${number(bin * width)} to ${number((bin + 1) * width)}: ${count}`));
  });
  return make("svg", { viewBox: "0 0 240 108", role: "img", "aria-label": name }, ...bars,
    make("text", { x: 0, y: 105 }, "0"),
    make("text", { x: 240, y: 105, "text-anchor": "end" }, number(last * width)));
}

function contextNode(context, vocabulary, max) {
  const quote = make("blockquote");
  const active = new Map(context.active);
  let peak = null;
  for (const [place, value] of context.active) if (peak === null || value > active.get(peak)) peak = place;
  let plain = "";
  context.tokens.forEach((token, place) => {
    const text = vocabulary[token];
    if (!active.has(place)) { plain += text; return; }
    quote.append(plain);
    plain = "";
    const node = make("mark", { title: `activation ${number(active.get(place))}`, class: place === peak ? "peak" : null },
      text.trim() ? text : visible(text));
    node.style.setProperty("--share", Math.max(8, (85 * active.get(place)) / max));
    quote.append(node);
  });
  quote.append(plain);
  const caption = peak === null ? "" : `${number(active.get(peak))} on “${visible(vocabulary[context.tokens[peak]].trim())}” · `;
  return make("figure", {}, quote, make("figcaption", {}, caption + index.documents[context.document]));
}

function step(by) {
  const place = state.order.indexOf(rowOf.get(state.open));
  const row = state.order[place === -1 ? 0 : place + by];
  if (row === undefined) return;
  const page = Math.floor((place + by) / PAGE);
  if (place !== -1 && page !== state.page) {
    state.page = page;
    draw();
  }
  location.hash = index.latent[row];
}

// ---- keys

function moveInList(event) {
  const links = [...$("list").querySelectorAll("a")];
  const place = links.indexOf(document.activeElement);
  const target = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: links.length - 1 }[event.key];
  if (target === undefined) return;
  event.preventDefault();
  links[Math.min(Math.max(target, 0), links.length - 1)]?.focus();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement.tagName);
  if (event.key === "Escape") {
    document.body.classList.remove("open");
    ($("list").querySelector("[aria-current]") ?? $("list").querySelector("a") ?? $("search")).focus();
    if (matchMedia("(max-width: 50rem)").matches) location.hash = "";
  } else if (typing) {
    if (event.key === "ArrowDown" && document.activeElement === $("search")) {
      event.preventDefault();
      $("list").querySelector("a")?.focus();
    }
  } else if (event.key === "/") {
    event.preventDefault();
    $("search").focus();
    $("search").select();
  } else if (event.key === "j" || event.key === "k") {
    step(event.key === "j" ? 1 : -1);
  } else if ($("list").contains(document.activeElement)) {
    moveInList(event);
  }
}

// ---- what the data files call

const mtxplt = {
  index(content) {
    index = content;
    rowOf = new Map(index.latent.map((id, row) => [id, row]));
    $("run").textContent = index.run;
    document.title = `Latents of ${index.run}`;
    $("summary").replaceChildren(...index.summary.map(([name, value]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    $("groups").hidden = index.groups < 2;
    for (let group = 1; group <= index.groups; group++) $("group").append(make("option", { value: group }, String(group)));
    if (index.groups < 2) $("sort").querySelector("[value=group]").remove();
    refresh();
    if (location.hash.length > 1) open(+location.hash.slice(1));
    document.documentElement.dataset.ready = "true";
  },
  chunk(place, content) {
    arrived.get(place)(content);
  },
};

$("controls").addEventListener("submit", (event) => { // Enter in the search field
  event.preventDefault();
  $("list").querySelector("a")?.click();
});
$("search").addEventListener("input", refresh);
$("sort").addEventListener("change", refresh);
$("group").addEventListener("change", refresh);
$("direction").addEventListener("click", () => {
  const down = $("direction").getAttribute("aria-pressed") !== "true";
  $("direction").setAttribute("aria-pressed", String(down));
  $("direction").textContent = down ? "Largest first" : "Smallest first";
  refresh();
});
$("previous").addEventListener("click", () => turn(-1));
$("next").addEventListener("click", () => turn(1));
addEventListener("keydown", onKey);
addEventListener("hashchange", () => {
  const wanted = location.hash.slice(1);
  if (wanted !== "main") open(wanted === "" ? NaN : +wanted);
});
