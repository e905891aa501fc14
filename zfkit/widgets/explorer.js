// The explorer's page. Python says what there is (`about`), what is chosen (`state`), and sends pictures and numbers in
// messages of a kind (see explorer.py); this draws them, and asks for changes. Text is always text, never markup.

const SVG = "http://www.w3.org/2000/svg";
const SILENCE = 8000; // ms without an answer of the kernel, after which that is said
const MOST = 9 * 2 ** 20; // bytes of a picture that is sent; servers take 10 MiB in a message
const THUMB = 44; // px, of a map on the strip
const PAGES = 24; // at most that lie ready: some more than Python counts on

function h(tag, attributes = {}, ...children) {
  const drawn = ["svg", "rect", "circle", "line", "text"].includes(tag);
  const element = drawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
  // Notebooks would take keys for their own shortcuts: they look for this at what has the focus, before what is around.
  if (!drawn) element.dataset.lmSuppressShortcuts = "true";
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

const fill = (element, ...children) => element.replaceChildren(...children.flat(Infinity).filter(Boolean));

function number(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

const percent = (value) => `${Math.round(100 * value)} %`;

// Tile i of a sheet, as wide and high as it is said.
function place(context, sheet, i, left, top, width, height) {
  const [w, h] = [sheet.width || sheet.image.width, sheet.height || sheet.image.height];
  context.drawImage(sheet.image, (i % sheet.columns) * w, Math.floor(i / sheet.columns) * h, w, h, left, top, width, height);
}

// Tile i of a sheet on a canvas of its own, at its own size; the style sheet enlarges it.
function draw(canvas, sheet, i, label) {
  const [width, height] = [sheet.width || sheet.image.width, sheet.height || sheet.image.height];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
  canvas.classList.toggle("crisp", Math.max(width, height) <= 64);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  place(context, sheet, i, 0, 0, width, height);
  if (label !== undefined) {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
  }
  return canvas;
}

const tile = (sheet, i, label = "") => draw(h("canvas", label ? {} : {"aria-hidden": "true"}), sheet, i, label || undefined);

function render({model, el}) {
  const about = model.get("about");
  let state = {...model.get("state")}; // as the user has it: ahead of Python's by the requests on their way
  const view = Math.random().toString(36).slice(2); // one widget may be shown twice: answers say to whom
  const got = {}; // the last message of each kind, its pictures decoded
  const arrived = {}; // its number, so that a late one replaces no newer one
  let [asked, answered, queued] = [0, 0, null];
  let blended = false;
  let gone = false; // was it said that the kernel does not answer?
  let stream = null; // of the camera
  const timers = {};
  const soon = (name, ms, act) => { clearTimeout(timers[name]); timers[name] = setTimeout(act, ms); };
  const closing = new AbortController();
  const root = h("div", {class: "zx", tabindex: -1});
  el.append(root);

  // ------------------------------------------------------------------------------------------- to and from Python

  function send(content, buffers = []) {
    asked += 1;
    const silent = (words) => { say(words); gone = true; };
    soon("overdue", SILENCE, () => silent("The kernel does not answer: it is busy with something else, or gone. Run the cell again, or load the page anew."));
    try {
      model.send({...content, n: asked, view}, undefined, buffers);
    } catch {
      silent("The kernel is gone: run the cell again, or load the page anew.");
    }
  }

  // One request is under way at a time; of those that come meanwhile the last changes count.
  function ask(changes) {
    if ("layer" in changes && changes.layer !== state.layer) changes = {channel: 0, rank: 0, ...changes};
    if ("channel" in changes && changes.channel !== state.channel) changes = {rank: 0, ...changes};
    if ("layer" in changes || "channel" in changes || "rank" in changes) changes = {position: null, ...changes};
    Object.assign(state, changes);
    queued = {...queued, ...changes};
    forward();
    show();
  }

  function forward() {
    if (queued === null || asked > answered) return;
    const changes = queued;
    queued = null;
    send({kind: "set", changes});
  }

  async function receive(content, buffers) {
    const {kind} = content;
    if ("view" in content && content.view !== view) return; // to another view of this widget
    if (kind === "ack") {
      answered = Math.max(answered, content.n);
      if (answered === asked) clearTimeout(timers.overdue);
      if (gone) say("");
      forward();
      if (answered === asked && queued === null) follow();
      return;
    }
    const mine = (arrived[kind] = (arrived[kind] || 0) + 1);
    const message = {...content};
    const page = kind === "page" || kind === "ahead";
    if (page) coming.add(nameOf(content));
    try {
      await Promise.all(Object.entries(content).map(async ([name, value]) => {
        if (value && typeof value === "object" && "buffer" in value) {
          const bytes = buffers[value.buffer];
          const blob = new Blob([bytes.buffer ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength) : bytes]);
          message[name] = kind === "saved" ? {...value, blob} : {...value, image: await createImageBitmap(blob)};
        }
      }));
    } catch {
      coming.delete(nameOf(content));
      say("A picture of the kernel could not be shown: load the page anew.");
      return;
    }
    if (page) {
      coming.delete(nameOf(content));
      offerPage(message, kind === "page" && arrived.page === mine);
      return;
    }
    if (arrived[kind] !== mine) {
      free(message);
      return;
    }
    const before = got[kind];
    got[kind] = message;
    (arrives[kind] || (() => {}))(message);
    free(before);
  }

  // Pages by the map they belong to, the last that came or was shown last; those that may come next are sent ahead.
  const pages = new Map();
  const coming = new Set(); // those whose pictures are being decoded
  const nameOf = (m) => ["layer", "channel", "rule", "colours", "gain"].map((n) => m[n]).join("\n");
  const fits = (m) => m && nameOf(m) === nameOf(state);

  function lay(page) {
    if (page.nothing) return; // a sentence of the search, not of a map
    const before = pages.get(nameOf(page));
    pages.delete(nameOf(page));
    pages.set(nameOf(page), page);
    if (before !== page) {
      if (before && before === got.page) got.page = page;
      free(before);
    }
    for (const [name, old] of pages) {
      if (pages.size <= PAGES) break;
      if (old === got.page) continue;
      pages.delete(name);
      free(old);
    }
  }

  function turnTo(page) {
    lay(page);
    got.page = page;
    drawPage();
    mark();
  }

  // One that came late, or ahead, is shown where it is waited for; the newest of a map that was left, where nothing better is.
  function offerPage(page, newest) {
    const better = newest ? fits(page) || !fits(got.page) : fits(page) && !fits(got.page);
    if (better) turnTo(page);
    else lay(page);
  }

  // Pictures hold memory of the browser's until they are closed.
  function free(message) {
    for (const value of Object.values(message || {})) value?.image?.close();
  }

  function follow() {
    if (asked > answered || queued !== null) return;
    state = {...model.get("state")};
    show();
    if (about.alone && state.link !== undefined) {
      soon("link", 300, () => history.replaceState(null, "", state.link === "?" ? location.pathname : state.link));
      document.title = `${state.layer} ${state.channel} · ${about.model} · zfkit`;
    }
  }

  const arrives = {
    layer: () => { drawStrip(); drawWall(); },
    turn: (m) => {
      const page = pages.get(nameOf(m));
      if (page) offerPage(page, true);
      else if (!coming.has(nameOf(m))) send({kind: "again"});
    },
    detail: () => { drawDetail(); mark(); },
    facts: () => drawFacts(),
    control: () => { drawControl(); mark(); },
    strip: () => drawLayers(),
    points: () => drawWall(),
    thumbnails: () => { drawStrip(); drawWall(); drawFacts(); },
    own: () => { drawOwn(); drawStrip(); },
    samples: () => drawSamples(),
    methods: () => drawCompare(),
    models: () => drawCompare(),
    peek: (m) => drawPeek(m),
    said: (m) => say(m.words),
    code: (m) => copy(m.words, "The code is copied."),
    saved: (m) => offer(m.picture.blob, m.name, m.words),
    progress: (m) => {
      busy.hidden = !m.what;
      fill(busy, h("span", {}, m.what), h("progress", {max: 1, value: m.done, "aria-label": m.what || "progress"}));
    },
  };

  // ------------------------------------------------------------------------------------------------ what is fixed

  const notice = h("div", {class: "zx-notice"});
  const busy = h("div", {class: "zx-busy", hidden: true});
  const live = h("p", {class: "zx-unseen", role: "status"});
  const aside = h("p", {class: "zx-unseen zx-aside", "aria-live": "polite"}); // what a key did that opens no other map
  function say(words) {
    gone = false;
    if (words) root.dataset.drawn = "";
    fill(notice, words ? h("p", {role: "alert"}, words) : null);
  }

  function offer(blob, name, words) {
    const address = URL.createObjectURL(blob);
    const link = h("a", {download: name, href: address, onclick: () => setTimeout(() => URL.revokeObjectURL(address), 60000)}, "download it");
    fill(notice, h("p", {role: "status"}, words, words ? "; " : "", link));
  }

  async function copy(text, words) {
    try {
      await navigator.clipboard.writeText(text);
      fill(notice, h("p", {role: "status"}, words));
    } catch { // not allowed: a page that is not from this machine, say
      const area = h("textarea", {readonly: true, rows: 4, "aria-label": "text to copy"}, text);
      fill(notice, h("p", {}, "Copy with Ctrl+C:"), area);
      area.select();
    }
  }

  const button = (words, title, onclick, attributes = {}) => h("button", {type: "button", title, onclick, ...attributes}, words);
  const select = (label, options, field, onchange) => h("label", {}, h("span", {}, label), " ",
    h("select", {"data-field": field, "aria-label": label || null, onchange: (e) => onchange(e.target.value)}, options.map(([value, words]) => h("option", {value}, words))));

  if (about.empty) {
    root.dataset.drawn = "";
    fill(root, h("div", {class: "zx-head"}, h("h2", {}, about.model)), h("p", {}, about.empty));
    return undefined;
  }

  const tabs = h("div", {class: "zx-tabs", role: "tablist"}, Object.entries(about.tabs).map(([name, words]) =>
    h("button", {type: "button", role: "tab", id: `${view}-${name}`, "data-tab": name, onclick: () => ask({tab: name})}, words)));
  tabs.addEventListener("keydown", (e) => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[e.key];
    if (!step) return;
    e.stopPropagation();
    const names = Object.keys(about.tabs);
    const to = names[(names.indexOf(state.tab) + step + names.length) % names.length];
    ask({tab: to});
    tabs.querySelector(`[data-tab=${to}]`).focus();
  });
  const places = ["row", "column"].map((name, i) => h("input", {type: "number", min: 0, value: 0, onchange: (e) => {
    const position = [...(got.detail?.position || [0, 0])];
    position[i] = Math.max(0, Math.min(Number(e.target.value), (got.detail?.shape || [1, 1])[i] - 1));
    ask({position});
  }}));
  const reading = h("p", {});
  const help = h("dialog", {class: "zx-help", "aria-label": "How to read this"},
    h("h3", {}, "How to read this"),
    h("p", {}, "Left, what excites a feature map most in these pictures: what its unit sees of each. Middle, what the deconvnet projects back to pixels from that activation alone. Right, one of them: where on the photograph it is, where else the map fires, and both large."),
    reading,
    h("p", {}, "In each patch stand its picture's name and the activation, as it is before the ReLU; of what is 0 or less the network passes nothing on."),
    h("h3", {}, "Keys"),
    h("p", {}, "← → map · ↑ ↓ layer · 1 to 9 tile · r random · a all at once · space lays projections over patches · ? this"),
    h("form", {method: "dialog"}, h("button", {}, "close")));
  const spot = [h("p", {}, "place on the map"), h("label", {}, "row ", places[0]), h("label", {}, "column ", places[1])];
  const more = h("details", {class: "zx-more"}, h("summary", {title: "more", "aria-label": "more"}, "···"),
    h("div", {},
      button("copy code", "the lines of Python that open this view", () => send({kind: "code"})),
      button("how to read this", "and all keys", () => help.showModal()),
      spot));
  root.addEventListener("pointerdown", (e) => { if (!more.contains(e.target)) more.open = false; });
  more.addEventListener("keydown", (e) => { if (e.key === "Escape" && more.open) { more.open = false; more.firstChild.focus(); } });
  const cloud = button("map of maps", "all maps of all layers as points", () => ask({wall: true, show: "points", tab: state.tab === "compare" ? "maps" : state.tab}));
  const head = h("header", {class: "zx-head"},
    h("div", {class: "zx-name"}, h("h2", {title: `${about.model} on ${about.count.toLocaleString("en")} pictures (${about.source})`}, about.model, h("span", {class: "zx-soft", title: about.where}, ` on ${about.count.toLocaleString("en")} pictures (${about.source})`)), busy), tabs,
    h("div", {class: "zx-row"}, cloud,
      about.alone ? button("copy link", "the address of this view", () => copy(location.origin + location.pathname + state.link, "The link is copied.")) : null,
      button("save picture", "this view as a PNG with a caption", save), more));

  const layers = h("nav", {class: "zx-layers", "aria-label": "layers"});
  const strip = h("section", {class: "zx-strip", "aria-label": "feature maps"});
  const bars = h("canvas", {class: "zx-bars", role: "slider", tabindex: 0, "aria-label": "feature map", "aria-valuemin": 0});
  const film = h("canvas", {"aria-hidden": "true"});
  const shelf = h("div", {class: "zx-shelf", "aria-hidden": "true"}, film);
  const count = h("div", {class: "zx-count"});
  const words = h("p", {class: "zx-soft"});
  const sort = select("sort", about.orders.map((o) => [o, {index: "number"}[o] || o]), "order", (order) => ask({order}));
  const find = h("input", {type: "search", placeholder: "find a map", title: "by class, picture or number", "aria-label": "find maps by class, picture or number",
    onchange: look, onkeydown: (e) => { if (e.key === "Enter") look(e); }});
  function look(e) {
    const words = e.target.value.trim();
    const map = /^\d+$/.test(words) && Number(words) < layerOf(state.layer).maps;
    if (map) e.target.value = "";
    ask(map ? {channel: Number(words), search: ""} : {search: words});
  }
  const all = button("", "all maps of this layer", toggle, {class: "zx-all"});
  function toggle() {
    ask({wall: !state.wall, show: state.show === "points" ? "projections" : state.show});
    fill(aside, state.wall ? `all maps of ${state.layer}` : `${state.layer} map ${state.channel}`);
  }
  strip.append(count, h("div", {}, bars, shelf, words),
    h("div", {class: "zx-tools"}, sort, find, button("random", "another map, drawn at random (r)", random), all));

  // Three parts: what excites it, what it picks out, one of them.
  const grid = (label) => h("div", {class: "zx-nine", role: "group", "aria-label": label});
  const [excites, picks] = [grid("patches"), grid("projections")];
  const nine = [excites, picks].map((part, second) => Array.from({length: about.shown}, (_, i) => {
    const cell = h("button", {type: "button", class: "zx-tile", onclick: () => ask({rank: i})}, h("canvas", {}), h("span", {class: "zx-caption"}, h("bdi", {}), h("b", {})), h("span", {class: "zx-level"}));
    if (second) cell.querySelector(".zx-caption").remove();
    part.append(cell);
    return cell;
  }));
  const columns = Math.ceil(Math.sqrt(about.shown));
  root.style.setProperty("--columns", columns);
  const rule = select("", about.rules.map((r) => [r, r]), "rule", (r) => ask({rule: r}));
  const colours = select("", about.colours.map((c) => [c, c === "signed" ? "plain" : c]), "colours", (c) => ask({colours: c}));
  const gain = select("", [1, 1.5, 2, 4].map((g) => [g, `${g}×`]), "gain", (g) => ask({gain: Number(g)}));
  for (const [control, label] of [[rule, "rule of the way back"], [colours, "colours"], [gain, "contrast"]]) control.querySelector("select").setAttribute("aria-label", label);
  const heading = h("h3", {});
  const photo = h("div", {class: "zx-photo"}, h("canvas", {}), h("div", {class: "zx-box"}), h("span", {class: "zx-caption"}, "what it sees"));
  const fires = h("div", {class: "zx-photo zx-fires", tabindex: 0, role: "group"}, h("canvas", {class: "zx-grey"}), h("canvas", {class: "zx-heat crisp"}),
    h("div", {class: "zx-box zx-dot"}), h("span", {class: "zx-caption"}, "where it fires"));
  const patch = h("div", {class: "zx-photo"}, h("canvas", {}), h("span", {class: "zx-caption"}, "patch"));
  const back = h("div", {class: "zx-photo"}, h("canvas", {}), h("span", {class: "zx-caption"}));
  const unit = h("span", {class: "zx-soft zx-hint"});
  const maximum = button("back to the maximum", "project the unit that was found again", () => ask({position: null}));
  const windows = h("span", {class: "zx-soft"});
  const stage = h("div", {class: "zx-three"},
    h("section", {}, h("div", {class: "zx-title"}, h("h3", {}, "what excites it"), windows), excites),
    h("section", {}, h("div", {class: "zx-title"}, h("h3", {class: "zx-picks"}, h("span", {}, "what "), "it picks out"), rule, colours, gain), picks),
    h("section", {}, h("div", {class: "zx-title"}, heading, unit, maximum), h("div", {class: "zx-four"}, photo, fires, patch, back)));
  const sentence = h("p", {class: "zx-sentence"});
  const facts = h("div", {class: "zx-facts"});
  const [known, control] = [h("div", {class: "zx-known"}), h("section", {class: "zx-control"})];
  facts.append(known, control);
  const wall = h("div", {class: "zx-wall"});
  const peek = h("div", {class: "zx-peek", hidden: true});
  const mapsTab = h("div", {role: "tabpanel", "aria-labelledby": `${view}-maps`}, stage, sentence, facts);
  const points = h("div", {class: "zx-points", hidden: true});
  const hiddenLayers = new Set();
  const shows = select("show", [["projections", "projections"], ["patches", "patches"], ["points", "map of maps"]], "show", (value) => ask({show: value}));
  const wallPart = h("div", {hidden: true}, h("div", {class: "zx-title"}, shows), wall, points, peek);
  const ownTab = h("div", {role: "tabpanel", "aria-labelledby": `${view}-image`, class: "zx-own"});
  const compareTab = h("div", {role: "tabpanel", "aria-labelledby": `${view}-compare`});
  fill(root, head, layers, strip, notice, wallPart, mapsTab, ownTab, compareTab, live, aside, help);

  // -------------------------------------------------------------------------------------------------- drawing

  const order = () => (got.layer && got.layer.layer === state.layer ? got.layer.order : []);
  const layerOf = (name) => about.layers.find((l) => l.name === name);
  const thumbs = () => (got.thumbnails && got.thumbnails.layer === state.layer ? got.thumbnails : null);

  // All that the state alone decides; pictures come when they arrive.
  function show() {
    for (const one of tabs.children) {
      one.setAttribute("aria-selected", String(one.dataset.tab === state.tab));
      one.tabIndex = one.dataset.tab === state.tab ? 0 : -1;
    }
    const walled = state.wall && state.tab !== "compare";
    all.hidden = cloud.hidden = state.tab === "compare";
    if (state.tab !== "image") closeCamera();
    mapsTab.hidden = state.tab !== "maps" || walled;
    wallPart.hidden = !walled;
    ownTab.hidden = state.tab !== "image" || walled;
    compareTab.hidden = state.tab !== "compare";
    for (const field of ["rule", "colours", "order", "show"]) root.querySelector(`[data-field=${field}]`).value = state[field];
    const scale = root.querySelector("[data-field=gain]");
    if (![...scale.options].some((o) => Number(o.value) === state.gain)) scale.append(h("option", {value: state.gain}, `${state.gain}×`));
    scale.value = String(state.gain);
    if (document.activeElement !== find) find.value = state.search;
    nine.forEach((part) => part.forEach((cell, i) => cell.setAttribute("aria-pressed", String(i === state.rank))));
    maximum.hidden = !state.position;
    for (const part of spot) part.hidden = state.tab !== "maps" || walled;
    for (const part of [sort, find]) part.hidden = walled && state.show === "points";
    if (state.tab === "maps" && !fits(got.page) && pages.has(nameOf(state))) turnTo(pages.get(nameOf(state)));
    drawLayers();
    drawStrip();
    if (walled) drawWall();
    if (state.tab === "image") drawOwn();
    if (state.tab === "compare") drawCompare();
    mark();
  }

  // What is on the page but belongs to another map is dimmed until its own comes.
  function mark() {
    const dim = (element, stale) => element.classList.toggle("zx-stale", Boolean(stale));
    dim(stage, !fits(got.page));
    dim(stage.lastChild, !fits(got.detail) || got.detail.rank !== state.rank || String(got.detail.asked) !== String(state.position));
    dim(known, !fits(got.facts));
    dim(control, !fits(got.control));
    dim(rows, got.own && got.own.layer !== state.layer);
    facts.hidden = Boolean(got.page?.nothing);
  }

  function drawLayers() {
    const shown = got.strip;
    if (!layers.children.length || layers.dataset.drawn !== String(Boolean(shown))) {
      [layers.dataset.drawn, layers.dataset.at] = [String(Boolean(shown)), ""];
      fill(layers, h("span", {class: "zx-soft"}, "photo ›"), about.layers.map((l, number) => {
        const sheet = shown && shown[number];
        const [wide, tall] = sheet ? [sheet.width, sheet.height] : [10, 10];
        const small = h("canvas", {"aria-hidden": "true", width: 3.2 * wide, height: tall});
        for (let i = 0; sheet && i < sheet.columns; i += 1) place(small.getContext("2d"), sheet, i, 1.1 * i * wide, 0, wide, tall);
        return h("button", {type: "button", "data-layer": l.name, title: l.refused ? `${l.name}: patches alone. ${l.refused}` : `${l.name}, maps of ${l.shape.join(" × ")}`,
          onclick: () => ask({layer: l.name})}, h("span", {class: "zx-three-small"}, small), h("span", {}, h("b", {}, l.name), h("small", {}, `${l.maps} maps · ${l.sees}`)));
      }), about.rest.length ? h("span", {class: "zx-soft"}, `› ${about.rest.join(" › ")}`) : null);
    }
    for (const one of layers.querySelectorAll("button")) {
      const chosen = one.dataset.layer === state.layer;
      if (chosen && layers.dataset.at !== state.layer && layers.clientWidth) { // once it is on the page
        layers.scrollLeft = one.offsetLeft - layers.clientWidth / 2 + one.offsetWidth / 2;
        layers.dataset.at = state.layer;
      }
      one.setAttribute("aria-pressed", String(chosen));
    }
  }

  let shelved = []; // what the shelf was drawn from
  let barred = []; // what the bars were drawn from
  let inks = []; // their colours
  let wide = 600; // px of strip and shelf, until they are on a page
  let told = ""; // what the words of the strip were drawn from
  function drawStrip() {
    const channels = order();
    const at = channels.indexOf(state.channel);
    const now = [state.layer, state.channel, at, channels.length, state.wall, got.layer?.words, Boolean(got.own?.picture)].join();
    if (now !== told) {
      told = now;
      fill(count, h("b", {}, state.channel), h("small", {}, channels.length && channels.length < layerOf(state.layer).maps ? `${at + 1} of ${channels.length} found` : `of ${layerOf(state.layer).maps}`));
      fill(all, state.wall ? "one map" : `▦ all ${channels.length || ""} at once`);
      all.setAttribute("aria-pressed", String(state.wall));
      fill(words, got.layer?.words || "");
      words.hidden = !got.layer?.words;
      for (const option of sort.querySelectorAll("option")) option.hidden = option.value === "your picture" && !got.own?.picture;
      bars.setAttribute("aria-valuemax", Math.max(channels.length - 1, 0));
      bars.setAttribute("aria-valuenow", Math.max(at, 0));
      bars.setAttribute("aria-valuetext", `map ${state.channel} of ${state.layer}`);
    }
    drawBars(channels, at);
    drawShelf(channels, at, Math.max(Math.floor(wide / (THUMB + 2)), 1));
  }

  // Thumbnails around the chosen map: one canvas below buttons, as each canvas is a layer that every frame has to place.
  function drawShelf(channels, at, room) {
    const sheet = thumbs()?.projections;
    const first = Math.max(0, Math.min(at - Math.floor(room / 2), channels.length - room));
    const some = channels.slice(first, first + room);
    const buttons = shelf.children;
    while (buttons.length > some.length + 1) shelf.lastChild.remove();
    while (buttons.length < some.length + 1) shelf.append(h("button", {type: "button", tabindex: -1, onclick: (e) => { ask({channel: Number(e.currentTarget.dataset.channel), wall: false}); bars.focus({preventScroll: true}); }}));
    some.forEach((c, i) => buttons[i + 1].classList.toggle("zx-chosen", c === state.channel));
    const sharp = window.devicePixelRatio || 1;
    const now = [sheet, sharp, ...some];
    if (now.length === shelved.length && now.every((value, i) => value === shelved[i])) return;
    shelved = now;
    some.forEach((c, i) => {
      Object.assign(buttons[i + 1].dataset, {channel: c});
      buttons[i + 1].title = `map ${c}`;
      fill(buttons[i + 1], sheet ? null : h("span", {}, c));
    });
    const [pitch, side] = [(THUMB + 2) * sharp, THUMB * sharp];
    Object.assign(film, {width: Math.max(some.length * pitch, 1), height: side});
    film.style.width = `${some.length * (THUMB + 2)}px`;
    const context = film.getContext("2d");
    if (sheet) some.forEach((c, i) => place(context, sheet, c, i * pitch, 0, side, side));
  }

  // Each canvas that is drawn on costs its frame half a millisecond or more, also where it looks as before.
  function drawBars(channels, at) {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const drawn = [got.layer, at, wide, dark];
    if (drawn.every((value, i) => value === barred[i])) return;
    const [layer, , , wasDark] = barred;
    barred = drawn;
    Object.assign(bars, {width: wide, height: 28});
    const context = bars.getContext("2d");
    if (layer !== got.layer || dark !== wasDark) { // asking for a style has it computed anew
      const styles = getComputedStyle(root);
      inks = ["--zx-bar", "--zx-mark"].map((name) => styles.getPropertyValue(name).trim());
    }
    const [ink, lit] = [inks[0] || "#b9c3d0", inks[1] || "#e69f00"];
    const step = wide / Math.max(channels.length, 1);
    channels.forEach((c, i) => {
      context.fillStyle = i === at ? lit : ink;
      const tall = i === at ? 28 : 3 + 25 * (got.layer.bars[c] || 0);
      context.fillRect(i * step, 28 - tall, Math.max(step - (step > 3 ? 1 : 0), i === at ? 4 : 0.5), tall);
    });
  }

  function drawPage() {
    const page = got.page;
    if (page.layer !== state.layer && asked > answered) return;
    root.dataset.drawn = ""; // which takes the opening figure of a page away
    fill(sentence, page.sentence || (page.refused ? `Patches alone: ${page.refused}` : ""));
    stage.classList.toggle("zx-empty", Boolean(page.sentence));
    picks.parentElement.hidden = !page.sentence && !page.projections;
    fill(reading, page.scale || "", page.cut ? ` Tiles are ${page.cut}.` : "");
    fill(windows, page.cut || `its ${about.shown} strongest patches`);
    windows.title = page.cut || "";
    if (page.sentence) {
      fill(live, page.sentence);
      return;
    }
    const strongest = Math.max(...page.values, 1e-30);
    nine[0].forEach((cell, i) => {
      const there = page.there[i];
      cell.disabled = nine[1][i].disabled = !there;
      const text = there ? `${page.names[i]} ${number(page.values[i])}` : "no picture";
      const name = `${page.layer} map ${page.channel}, ${i + 1}: ${text}`;
      drawTile(i, name);
      nine[0][i].setAttribute("aria-label", `patch of ${name}`);
      nine[1][i].setAttribute("aria-label", `projection of ${name}`);
      fill(cell.querySelector(".zx-caption bdi"), there ? page.names[i] : "no picture");
      fill(cell.querySelector(".zx-caption b"), there ? number(page.values[i]) : null);
      for (const part of nine) part[i].querySelector(".zx-level").style.width = there ? percent(Math.max(page.values[i], 0) / strongest) : 0;
    });
    fill(live, `${page.layer} map ${page.channel}`);
  }

  function drawTile(i, name) {
    const page = got.page;
    const canvas = draw(nine[0][i].querySelector("canvas"), page.patches, i, `patch of ${name}`);
    if (!page.projections) return;
    draw(nine[1][i].querySelector("canvas"), page.projections, i, `projection of ${name}`);
    if (blended) {
      const context = canvas.getContext("2d");
      context.globalAlpha = 0.6;
      context.drawImage(nine[1][i].querySelector("canvas"), 0, 0);
      context.globalAlpha = 1;
    }
  }

  let detailed = ""; // the map whose unit was shown last
  function drawDetail() {
    const d = got.detail;
    stage.lastChild.hidden = Boolean(d.sentence);
    if (d.sentence) return;
    const same = got.page?.layer === d.layer && got.page.channel === d.channel;
    fill(heading, `${d.rank + 1} · ${(same && got.page.names?.[d.rank]) || d.name}, ${number(d.value)}`);
    const of = `${d.layer} ${d.channel}`;
    if (detailed === of) fill(aside, `picture ${d.rank + 1}, ${d.name}. ${d.words}`); // a new map is announced with its page
    detailed = of;
    heading.title = d.name;
    fill(unit, d.words);
    unit.title = `${d.name}. ${d.words}`;
    draw(photo.querySelector("canvas"), {...d.photo, columns: 1}, 0, `photograph ${d.name}`);
    draw(fires.querySelector(".zx-grey"), {...d.photo, columns: 1}, 0);
    draw(fires.querySelector(".zx-heat"), {...d.heat, columns: 1}, 0);
    put(photo.querySelector(".zx-box"), d.box);
    put(fires.querySelector(".zx-heat"), d.area);
    const [left, top, right, bottom] = d.area;
    const [rows, cols] = d.shape;
    const cell = [(right - left) / cols, (bottom - top) / rows];
    put(fires.querySelector(".zx-dot"), [left + d.position[1] * cell[0], top + d.position[0] * cell[1], left + (d.position[1] + 1) * cell[0], top + (d.position[0] + 1) * cell[1]]);
    fires.setAttribute("aria-label", `where the map fires; unit at row ${d.position[0]}, column ${d.position[1]}; arrow keys ask another`);
    draw(patch.querySelector("canvas"), {...d.patch, columns: 1}, 0, `patch of ${d.name}`);
    back.hidden = !d.projection;
    if (d.projection) draw(back.querySelector("canvas"), {...d.projection, columns: 1}, 0, `projection of ${d.name}`);
    fill(back.querySelector(".zx-caption"), d.value <= 0 ? "silent here" : "projection");
    back.classList.toggle("zx-silent", d.value <= 0);
    places.forEach((input, i) => { input.value = d.position[i]; input.max = d.shape[i] - 1; });
  }

  function put(element, [left, top, right, bottom]) {
    Object.assign(element.style, {left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`});
  }

  function askPlace(row, column) {
    const d = got.detail;
    if (!d || d.layer !== state.layer || d.channel !== state.channel) return;
    const position = [row, column].map((v, i) => Math.max(0, Math.min(v, d.shape[i] - 1)));
    if (String(position) !== String(state.position || d.position)) ask({position});
  }
  fires.addEventListener("pointerdown", (e) => {
    const box = fires.getBoundingClientRect();
    const [left, top, right, bottom] = got.detail.area;
    const [x, y] = [(e.clientX - box.left) / box.width, (e.clientY - box.top) / box.height];
    askPlace(Math.floor(((y - top) / (bottom - top)) * got.detail.shape[0]), Math.floor(((x - left) / (right - left)) * got.detail.shape[1]));
  });
  fires.addEventListener("keydown", (e) => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[e.key];
    if (!step) return;
    e.preventDefault();
    e.stopPropagation();
    const [row, column] = state.position || got.detail.position;
    askPlace(row + step[0], column + step[1]);
  });

  function mapButton(layer, c, text) {
    const [sheets, both] = [thumbs(), h("canvas", {"aria-hidden": "true"})];
    if (sheets) {
      const {width, height} = sheets.patches;
      Object.assign(both, {width: 2.1 * width, height});
      [sheets.projections, sheets.patches].forEach((sheet, i) => place(both.getContext("2d"), sheet, c, 1.1 * i * width, 0, width, height));
    }
    return h("button", {type: "button", class: "zx-map", title: `to map ${c}`, onclick: () => ask({layer, channel: c, search: "", wall: false, tab: "maps"})},
      sheets ? both : null, h("span", {}, h("b", {}, c), h("small", {}, text)));
  }

  const ruleBars = (rows, most) => h("ul", {class: "zx-list"}, rows.map(([name, share, text]) =>
    h("li", {}, h("bdi", {title: name}, name), h("span", {class: "zx-rule", style: {width: `${Math.max(1, (100 * share) / most)}%`}}), h("span", {}, text))));

  function drawFacts() {
    const f = got.facts;
    if (!f || f.layer !== state.layer) return;
    const g = f.histogram;
    const parts = [];
    if (f.warnings.length) parts.push(h("ul", {class: "zx-warnings", "aria-label": "health warnings"}, f.warnings.map(([what, remedy]) => h("li", {}, what, " ", h("span", {class: "zx-soft"}, `Remedy: ${remedy}.`)))));
    const first = [h("p", {class: "zx-soft"}, f.words)];
    if (f.filter) first.push(h("p", {class: "zx-filter", title: "its filter, and that one's spectrum to half a cycle per pixel"}, tile({...f.filter, columns: 1}, 0, "its filter"), h("span", {}, "filter"), tile({...f.spectrum, columns: 1}, 0, "spectrum of its filter, to half a cycle per pixel"), h("span", {}, "spectrum")));
    if (g) {
      const most = Math.max(...g.counts);
      const text = `Histogram of the map's maximum over ${g.measured} pictures, from ${number(g.low)} to ${number(g.high)}`;
      parts.push(h("section", {}, h("h3", {}, `on ${g.measured} pictures`, h("small", {class: "zx-soft"}, ` fires on ${percent(g.active)}`)),
        h("svg", {viewBox: "0 0 240 50", preserveAspectRatio: "none", role: "img", "aria-label": text, class: "zx-histogram"}, g.counts.map((n, i) => {
          const tall = n ? Math.max(1.5, 50 * Math.sqrt(n / most)) : 0;
          const value = g.low + ((i + 1) * (g.high - g.low)) / g.counts.length;
          return h("rect", {x: i * 10, y: 50 - tall, width: 9, height: tall, class: value > g.shown ? "zx-top" : value <= 0 ? "zx-none" : "zx-some"});
        })),
        h("div", {class: "zx-faces"}, g.faces.map(([value, name], i) => h("figure", {}, tile(f.faces, i, name), h("figcaption", {}, value <= 0 ? "silent" : number(Number(value.toPrecision(2)))))))));
    }
    if (f.labels) {
      const most = f.labels.rows[0][1];
      parts.push(h("section", {}, h("h3", {}, `top ${f.labels.of} come from`), ruleBars(f.labels.rows.map(([name, n]) => [name, n, String(n)]), most),
        h("p", {class: "zx-soft", title: "(its mean in that class − its mean in the others) / their sum: 0 none, 1 that class alone"}, `selectivity ${f.labels.selectivity} for `, h("bdi", {}, f.labels.favourite))));
    }
    if (f.near?.length) parts.push(h("section", {}, h("h3", {}, "answers like it"), h("div", {class: "zx-row"}, f.near.map(([c, r]) => mapButton(f.layer, c, `r ${r.toFixed(2)}`)))));
    if (!g) first.push(h("p", {class: "zx-soft"}, "More is measured while nothing else is to be done …"));
    fill(known, parts, h("section", {}, h("h3", {}, "in numbers"), first));
    mark();
  }

  function drawControl() {
    const c = got.control;
    control.hidden = !c.sheet;
    if (!c.sheet) return;
    fill(control, h("h3", {}, "from learning?"), h("div", {class: "zx-row"}, Array.from({length: c.sheet.columns}, (_, i) => tile(c.sheet, i, `control ${i + 1}`))),
      h("p", {class: "zx-soft", title: "mean cosine between the first three projections and those of the same units after the weights of each layer were shuffled"}, "With shuffled weights: ", h("b", {}, c.alike.toFixed(2)), " alike."));
  }

  function drawWall() {
    if (wallPart.hidden) return;
    const pointed = state.show === "points";
    [wall.hidden, points.hidden] = [pointed, !pointed];
    if (pointed) {
      drawPoints();
      return;
    }
    const sheets = thumbs();
    const channels = order();
    if (!sheets) {
      wall.dataset.drawn = "";
      fill(wall, h("p", {class: "zx-soft"}, "The maps are drawn …"));
      return;
    }
    const dead = new Set(got.layer.dead);
    const drawn = `${state.layer} ${state.show} ${channels.join()}`;
    if (wall.dataset.drawn !== drawn) {
      wall.dataset.drawn = drawn;
      fill(wall, channels.map((c) => h("button", {type: "button", "data-map": c, class: dead.has(c) ? "zx-dead" : "", title: `map ${c}${dead.has(c) ? ", dead" : ""}`, "aria-label": `map ${c}`},
        tile(sheets[state.show], c))));
    }
    for (const one of wall.querySelectorAll(".zx-chosen")) {
      one.classList.remove("zx-chosen");
      one.removeAttribute("aria-current");
    }
    const chosen = wall.querySelector(`[data-map="${state.channel}"]`);
    chosen?.classList.add("zx-chosen");
    chosen?.setAttribute("aria-current", "true");
  }
  const mapAt = (e) => e.target.closest?.("[data-map]");
  wall.addEventListener("click", (e) => { const one = mapAt(e); if (one) { peek.hidden = true; peek.dataset.map = ""; ask({channel: Number(one.dataset.map), wall: false, tab: "maps"}); } });
  for (const kind of ["pointerover", "focusin"]) wall.addEventListener(kind, (e) => { const one = mapAt(e); if (one && !one.classList.contains("zx-dead")) lookAt(state.layer, Number(one.dataset.map)); });
  for (const kind of ["pointerleave", "focusout"]) for (const part of [wall, points]) part.addEventListener(kind, () => { peek.hidden = true; peek.dataset.map = ""; });
  function lookAt(layer, channel) {
    peek.dataset.map = `${layer} ${channel}`;
    soon("peek", 60, () => model.send({kind: "peek", layer, channel, view}));
  }
  function drawPeek(m) {
    const name = `${m.layer} ${m.channel}`;
    const one = state.show === "points" ? [...points.querySelectorAll("circle")].find((c) => c.dataset.map === name) : m.layer === state.layer && wall.querySelector(`[data-map="${m.channel}"]`);
    if (!one || !m.sheet || peek.dataset.map !== name) return;
    fill(peek, h("b", {}, state.show === "points" ? `${m.layer} map ${m.channel}` : `map ${m.channel}`), h("div", {class: "zx-nine"}, Array.from({length: about.shown}, (_, i) => tile(m.sheet, i))));
    peek.hidden = false;
    const [box, outer] = [one.getBoundingClientRect(), wallPart.getBoundingClientRect()];
    peek.style.left = `${Math.min(Math.max(box.left - outer.left - 60, 0), Math.max(outer.width - 176, 0))}px`;
    const below = box.bottom + peek.offsetHeight + 8 < Math.min(innerHeight, outer.bottom) || box.top < peek.offsetHeight;
    peek.style.top = `${(below ? box.bottom + 4 : box.top - peek.offsetHeight - 4) - outer.top}px`;
  }

  // All maps of all layers: how far these pictures reach each, against how much it tells classes apart.
  function drawPoints() {
    if (!got.points) {
      if (!points.children.length) {
        fill(points, h("p", {class: "zx-soft"}, "All layers are measured …"));
        send({kind: "points"});
      }
      return;
    }
    const known = got.points.layers.filter((l) => l.selectivity);
    if (!known.length) {
      fill(points, h("p", {class: "zx-soft"}, `The pictures of ${about.source} have no classes, and so no map has a selectivity to stand at.`));
      return;
    }
    const [width, height, pad] = [Math.max(320, points.clientWidth || 800), 420, 46];
    const reached = known.flatMap((l) => l.reach.filter((v) => v > 0));
    const [low, most] = [Math.max(0.01, Math.min(...reached)), Math.max(...reached, 1)];
    const high = Math.max(...known.flatMap((l) => l.selectivity), 0.1);
    const across = (v) => pad + ((width - pad - 12) * Math.log(Math.max(v, low) / low)) / Math.log(most / low);
    const up = (v) => height - pad - ((height - pad - 12) * v) / high;
    const colour = (i) => `hsl(${210 + (160 * i) / Math.max(known.length - 1, 1)} 75% ${72 - (30 * i) / Math.max(known.length - 1, 1)}%)`;
    const dots = known.flatMap((l, i) => (hiddenLayers.has(l.layer) ? [] : l.reach.flatMap((v, c) => (v > 0 ? [h("circle", {
      cx: across(v).toFixed(1), cy: up(l.selectivity[c]).toFixed(1), r: (2.5 + 4 * Math.sqrt(l.active[c])).toFixed(1), fill: colour(i), "data-map": `${l.layer} ${c}`,
      class: l.layer === state.layer && c === state.channel ? "zx-here" : "",
      onpointerenter: () => lookAt(l.layer, c), onclick: () => { peek.hidden = true; ask({layer: l.layer, channel: c, search: "", wall: false, tab: "maps"}); },
    })] : []))));
    const ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2].filter((v) => v >= low && v <= most).map((v) => h("text", {x: across(v), y: height - pad + 18, "text-anchor": "middle"}, percent(v)));
    const step = [0.05, 0.1, 0.2].find((s) => high / s <= 6) || 0.5;
    const heights = Array.from({length: Math.floor(high / step) + 1}, (_, i) => h("text", {x: pad - 7, y: up(i * step) + 4, "text-anchor": "end"}, number(i * step)));
    const of = (good) => known.reduce((n, l) => n + l.reach.filter(good).length, 0);
    const [silent, unknown] = [of((v) => v !== null && v <= 0), of((v) => v === null)];
    fill(points,
      h("div", {class: "zx-row"}, known.map((l, i) => button([h("span", {class: "zx-ink", style: {background: colour(i)}}), l.layer], "show or hide this layer", () => {
        if (!hiddenLayers.delete(l.layer)) hiddenLayers.add(l.layer);
        drawPoints();
      }, {"aria-pressed": String(!hiddenLayers.has(l.layer))}))),
      h("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${dots.length} feature maps as points; the layers' strips list the same maps`},
        h("line", {x1: pad, y1: height - pad, x2: width, y2: height - pad}), h("line", {x1: pad, y1: 4, x2: pad, y2: height - pad}), ticks, heights,
        h("text", {x: width - 6, y: height - 8, "text-anchor": "end"}, `strongest activation, of ${got.points.recorded ? "the map's record" : "the layer's strongest map"}`),
        h("text", {x: 13, y: height - pad, transform: `rotate(-90 13 ${height - pad})`}, "selectivity"), dots),
      h("p", {class: "zx-soft"}, `A point is a feature map, the larger the more pictures excite it; hover shows its patches, a click opens it.${silent ? ` Nothing in these pictures excites ${silent} more.` : ""}${unknown ? ` Without a record, and so without a place: ${unknown}.` : ""}`));
    peek.hidden = true;
  }

  // What is drawn here alone, all maps at once, as a picture with a caption.
  function save() {
    say("");  // the link of what was saved before
    if (state.wall && state.tab !== "compare") saveWall();
    else send({kind: "save"});
  }

  async function saveWall() {
    const [pad, head, styles] = [20, 50, getComputedStyle(root)];
    const pointed = state.show === "points";
    const sheet = thumbs()?.[state.show];
    const svg = points.querySelector("svg");
    const channels = order();
    if (pointed ? !svg : !sheet || !channels.length) {
      say("There is nothing to save yet.");
      return;
    }
    const columns = Math.ceil(Math.sqrt(1.6 * channels.length));
    const [width, height] = pointed ? [svg.clientWidth, svg.clientHeight]
      : [columns * (sheet.width + 2), Math.ceil(channels.length / columns) * (sheet.height + 2)];
    const canvas = h("canvas", {width: 2 * (width + 2 * pad), height: 2 * (height + head + pad)});
    const context = canvas.getContext("2d");
    context.scale(2, 2);
    context.fillStyle = styles.backgroundColor.replace("rgba(0, 0, 0, 0)", "") || getComputedStyle(root.closest(".zfkit")).backgroundColor;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = styles.color;
    context.font = `600 16px ${styles.fontFamily}`;
    const title = pointed ? `${about.model}: all maps of all layers, on ${about.source}` : `${about.model} ${state.layer}, ${state.show} of ${channels.length} maps by ${state.order}`;
    context.fillText(title, pad, 30);
    if (pointed) {
      const drawn = svg.cloneNode(true);
      drawn.setAttribute("xmlns", SVG);
      const parts = [svg, drawn].map((one) => one.querySelectorAll("*"));
      parts[0].forEach((part, i) => { for (const name of ["fill", "stroke", "strokeWidth", "fontSize", "fontFamily", "opacity"]) parts[1][i].style[name] = getComputedStyle(part)[name]; });
      const image = new Image();
      image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(drawn))}`;
      await image.decode();
      context.drawImage(image, pad, head, width, height);
    } else {
      channels.forEach((c, i) => context.drawImage(tile(sheet, c), pad + (i % columns) * (sheet.width + 2), head + Math.floor(i / columns) * (sheet.height + 2)));
    }
    canvas.toBlob((blob) => offer(blob, `${about.model}-${pointed ? "map-of-maps" : `${state.layer}-${state.show}`}.png`.replace(/[/:]/g, "_"), ""));
  }

  // ---------------------------------------------------------------------------------------------- your picture

  const frame = h("div", {class: "zx-frame"}, h("canvas", {}), h("div", {class: "zx-square", tabindex: 0, role: "slider", "aria-label": "square that is used", "aria-valuemin": 0, "aria-valuemax": 100}));
  const samples = h("div", {class: "zx-row zx-samples"});
  const file = h("input", {type: "file", class: "zx-unseen", id: `${view}-file`, accept: "image/*", "aria-label": "choose a picture", onchange: (e) => { if (e.target.files[0]) upload(e.target.files[0]); e.target.value = ""; }});
  const path = h("input", {type: "text", placeholder: "or its path, then Enter", "aria-label": "path of a picture of your own", onchange: (e) => ask({image: e.target.value})});
  const camera = navigator.mediaDevices?.getUserMedia ? button("camera", "take a picture", shoot) : null;
  const said = h("div", {});
  const rows = h("div", {class: "zx-cards"});
  fill(ownTab, h("div", {class: "zx-side"}, h("p", {class: "zx-soft"}, "Choose a picture, drop one here, or paste it; or try one of these."), samples, h("div", {class: "zx-row"}, file, h("label", {class: "zx-choose", for: file.id}, "choose a picture"), camera), about.alone ? null : path, frame, said), rows);

  async function upload(blob) {
    let sent = blob;
    if (blob.size > MOST) { // what the network sees has a few hundred pixels
      try {
        const image = await createImageBitmap(blob);
        const times = Math.min(1, 2048 / Math.max(image.width, image.height));
        const canvas = h("canvas", {width: Math.round(image.width * times), height: Math.round(image.height * times)});
        canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
        image.close();
        sent = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
      } catch {
        say(`${blob.name || "The picture"} has more than 9 MB, and the browser cannot read it to make it smaller.`);
        return;
      }
    }
    send({kind: "upload", name: blob.name || "picture"}, [await sent.arrayBuffer()]);
  }
  ownTab.addEventListener("dragover", (e) => { e.preventDefault(); ownTab.classList.add("zx-drop"); });
  ownTab.addEventListener("dragleave", () => ownTab.classList.remove("zx-drop"));
  ownTab.addEventListener("drop", (e) => { e.preventDefault(); e.stopPropagation(); ownTab.classList.remove("zx-drop"); if (e.dataTransfer.files[0]) upload(e.dataTransfer.files[0]); });
  document.addEventListener("paste", (e) => {
    const item = [...(e.clipboardData?.items || [])].find((i) => i.type.startsWith("image/"));
    if (item && state.tab === "image" && root.isConnected && root.contains(document.activeElement)) upload(item.getAsFile());
  }, {signal: closing.signal});

  function closeCamera() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    ownTab.querySelector(".zx-camera")?.remove();
  }

  async function shoot() {
    closeCamera();
    let found;
    try {
      found = await navigator.mediaDevices.getUserMedia({video: true});
    } catch {
      say("The browser gives no camera to this page.");
      return;
    }
    if (closing.signal.aborted || state.tab !== "image" || stream) { // whoever has left, or asked twice, wants none
      found.getTracks().forEach((track) => track.stop());
      return;
    }
    stream = found;
    const video = h("video", {autoplay: true, playsinline: true});
    video.srcObject = stream;
    frame.before(h("div", {class: "zx-camera"}, video, h("div", {class: "zx-row"}, button("take it", "this picture", () => {
      if (!video.videoWidth) return; // it has shown nothing yet
      const canvas = h("canvas", {width: video.videoWidth, height: video.videoHeight});
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => upload(new File([blob], "camera.png")));
      closeCamera();
    }), button("close", "without a picture", closeCamera))));
  }

  function drawSamples() {
    const s = got.samples;
    fill(samples, s.places.map((i, at) => button(tile(s.sheet, at, s.names[at]), s.names[at], () => send({kind: "sample", place: i}))));
  }

  function drawOwn() {
    const o = got.own;
    frame.hidden = !o?.picture;
    if (document.activeElement !== path) path.value = state.image;
    if (!o) return;
    if (o.picture) {
      draw(frame.querySelector("canvas"), {...o.picture, columns: 1, width: 0, height: 0}, 0, "your picture");
      frame.style.aspectRatio = `${o.size[0]} / ${o.size[1]}`;
      drawSquare(o.at);
    }
    const share = (name, p) => [name, p, percent(p)];
    fill(said, h("p", {class: "zx-soft"}, o.note), o.classes.length ? [h("h3", {}, "what the network calls it"), ruleBars(o.classes.map(([name, p]) => share(name, p)), 1)]
      : o.picture ? h("p", {}, `${about.model} has no class names, so there are no probabilities to show.`) : null);
    if (o.sentence) {
      fill(rows, h("p", {class: "zx-sentence", role: "alert"}, o.sentence));
      return;
    }
    fill(rows, h("div", {class: "zx-title"}, h("h3", {}, `the maps of ${o.layer} that it excites most`), h("span", {class: "zx-soft"}, `${o.caption} Sort strip and wall by “your picture” for all of them.`)),
      o.channels.map((c, i) => h("button", {type: "button", class: "zx-card", title: `to map ${c}`, onclick: () => ask({tab: "maps", layer: o.layer, channel: c, search: "", wall: false})},
        h("span", {}, h("b", {}, `map ${c}`), ` ${number(o.values[i])} · ${percent(o.shares[i])}`),
        h("span", {class: "zx-trio"}, [["patches", "your patch"], ["projections", "what it picks out"], ["usual", "usually likes"]].filter(([n]) => o[n]).map(([n, text]) =>
          h("span", {}, tile(o[n], i, `${text}, map ${c}`), h("small", {}, text)))))));
  }

  function drawSquare(at) {
    const [width, height] = got.own.size;
    const short = Math.min(width, height);
    const [left, top] = [at * (width - short), at * (height - short)];
    put(frame.lastChild, [left / width, top / height, (left + short) / width, (top + short) / height]);
    frame.lastChild.setAttribute("aria-valuenow", Math.round(100 * at));
    got.own.at = at;
  }
  const moveSquare = (at) => { drawSquare(Math.max(0, Math.min(at, 1))); soon("square", 80, () => send({kind: "square", at: got.own.at})); };
  const slide = (e) => {
    const box = frame.getBoundingClientRect();
    const [width, height] = got.own.size;
    const short = Math.min(width, height) / Math.max(width, height);
    const along = width > height ? (e.clientX - box.left) / box.width : (e.clientY - box.top) / box.height;
    if (short < 1) moveSquare((along - short / 2) / (1 - short));
  };
  frame.addEventListener("pointerdown", (e) => { frame.setPointerCapture(e.pointerId); slide(e); });
  frame.addEventListener("pointermove", (e) => { if (e.buttons) slide(e); });
  frame.lastChild.addEventListener("keydown", (e) => {
    const step = {ArrowLeft: -0.1, ArrowUp: -0.1, ArrowRight: 0.1, ArrowDown: 0.1}[e.key];
    if (!step) return;
    e.preventDefault();
    e.stopPropagation();
    moveSquare(got.own.at + step);
  });

  // ------------------------------------------------------------------------------------------------ comparisons

  const versus = select("compare", about.versus.map((v) => [v, v === "methods" ? "methods" : `with ${v}`]), "versus", (v) => ask({versus: v}));
  const compared = h("div", {class: "zx-compared"});
  fill(compareTab, h("div", {class: "zx-title"}, versus), compared);

  function drawCompare() {
    root.querySelector("[data-field=versus]").value = state.versus;
    const m = state.versus === "methods" ? got.methods : got.models;
    compared.classList.toggle("zx-stale", !m || m.layer !== state.layer || m.channel !== state.channel || (m.versus || "methods") !== state.versus);
    if (!m || (m.versus || "methods") !== state.versus) return;
    if (state.versus === "methods") {
      if (m.sentence) {
        fill(compared, h("p", {class: "zx-sentence"}, m.sentence));
        return;
      }
      const cells = about.columns.map((name) => h("div", {}, h("b", {}, name), h("p", {class: "zx-soft"}, about.sentences[name])));
      const tall = m.sheet.image.height / m.sheet.height;
      for (let i = 0; i < tall * m.sheet.columns; i += 1) cells.push(tile(m.sheet, i, `${about.columns[i % m.sheet.columns]}, picture ${Math.floor(i / m.sheet.columns) + 1}`));
      fill(compared, h("h3", {}, `${m.layer} map ${m.channel}: a row for each of its strongest pictures`), h("div", {class: "zx-methods", style: {"gridTemplateColumns": `repeat(${m.sheet.columns}, minmax(0, 1fr))`}}, cells));
      if (!got.page) fill(reading, m.scale); // else it stands there
      return;
    }
    fill(compared, h("div", {class: "zx-title"}, tile({...m.photo, columns: 1}, 0, `photograph ${m.name}`), h("p", {}, h("b", {}, m.name), h("br"), "The maps of a layer that this photograph excites most: what each sees of it, and what it picks out. Maps of two networks share nothing but the photograph: compare what they pick, not their numbers.")),
      h("div", {class: "zx-pairs"}, m.models.map((one, i) => h("section", {}, h("h3", {}, one.title), one.sentence ? h("p", {}, one.sentence)
        : h("div", {class: "zx-cards"}, one.captions.map(([c, v], at) => h("div", {class: "zx-card"}, h("span", {}, h("b", {}, `map ${c}`), ` ${number(v)}`),
          h("span", {class: "zx-trio"}, tile(m[`patches${i}`], at, `patch, map ${c}`), tile(m[`projections${i}`], at, `projection, map ${c}`)))))))));
  }

  // ------------------------------------------------------------------------------------------------------- keys

  function turn(by) {
    const channels = order();
    const at = Math.max(0, Math.min(channels.indexOf(state.channel) + by, channels.length - 1));
    if (channels.length && channels[at] !== state.channel) ask({channel: channels[at]});
  }
  function random() {
    const channels = order().filter((channel) => channel !== state.channel);
    if (channels.length) ask({channel: channels[Math.floor(Math.random() * channels.length)], wall: false});
  }
  function climb(by) {
    const names = about.layers.map((l) => l.name);
    const to = names[names.indexOf(state.layer) + by];
    if (to) ask({layer: to});
  }
  const keys = {
    ArrowLeft: () => turn(-1), ArrowRight: () => turn(1), ArrowUp: () => climb(1), ArrowDown: () => climb(-1),
    PageUp: () => turn(-10), PageDown: () => turn(10), Home: () => turn(-1e9), End: () => turn(1e9),
    r: random, a: () => { if (state.tab !== "compare") toggle(); }, "?": () => help.showModal(),
    " ": () => {
      blended = !blended;
      if (got.page && !got.page.sentence) drawPage();
      fill(aside, blended ? "projections over patches" : "patches alone");
    },
  };
  root.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName) || help.open) return;
    // Space presses buttons, but for tiles, which Enter chooses.
    if (e.key === " " && /^(BUTTON|SUMMARY|A)$/.test(e.target.tagName) && !e.target.classList.contains("zx-tile")) return;
    const digit = /^[1-9]$/.test(e.key) && Number(e.key) <= about.shown;
    if (!digit && !(e.key in keys)) return;
    e.preventDefault();
    e.stopPropagation();
    if (digit) ask({rank: Number(e.key) - 1});
    else keys[e.key]();
  });
  root.addEventListener("keyup", (e) => { if (e.key === " " && e.target.classList.contains("zx-tile")) e.preventDefault(); });
  // A click that took its own button away, or fell on no control, leaves the keys to this page.
  root.addEventListener("click", () => { if (!root.contains(document.activeElement)) bars.focus({preventScroll: true}); });
  const slideTo = (e) => {
    const box = bars.getBoundingClientRect();
    const channels = order();
    const at = Math.max(0, Math.min(Math.floor(((e.clientX - box.left) / box.width) * channels.length), channels.length - 1));
    if (channels.length && channels[at] !== state.channel) ask({channel: channels[at]});
  };
  bars.addEventListener("pointerdown", (e) => { bars.setPointerCapture(e.pointerId); slideTo(e); });
  bars.addEventListener("pointermove", (e) => { if (e.buttons) slideTo(e); });

  const listen = (content, buffers) => receive(content, buffers);
  model.on("msg:custom", listen);
  model.on("change:state", follow);
  const sized = new ResizeObserver(() => {
    wide = Math.round(bars.clientWidth) || wide;
    drawLayers();
    drawStrip();
    drawWall();
  });
  for (const part of [strip, bars]) sized.observe(part);
  show();
  if (about.alone && document.activeElement === document.body) root.focus({preventScroll: true}); // keys work at once
  send({kind: "ready", query: about.alone ? location.search.slice(1) : ""});
  return () => {
    model.off("msg:custom", listen);
    model.off("change:state", follow);
    sized.disconnect();
    closing.abort();
    closeCamera();
    Object.values(timers).forEach(clearTimeout);
    [...pages.values(), ...Object.values(got)].forEach(free);
  };
}

export default {render};
