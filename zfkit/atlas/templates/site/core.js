// What every view rests on: data by name, elements, links, and tiles cut out of sheets.
"use strict";

const zfkit = (() => {
  const taken = new Map(); // data that arrived, or a promise of it, by name
  const waiting = new Map();

  // Called by the data files, as the browser runs them.
  function take(name, data) {
    waiting.get(name)?.(data);
  }

  // Data of this name, from a script beside the page: one that is opened from the disk may load nothing else.
  function load(name, file) {
    if (!taken.has(name)) {
      taken.set(name, new Promise((resolve, reject) => {
        waiting.set(name, resolve);
        const script = document.createElement("script");
        script.src = file;
        script.onerror = () => {
          taken.delete(name);
          reject(new Error(`${file} is missing: was the whole folder copied?`));
        };
        document.head.append(script);
      }));
    }
    return taken.get(name);
  }

  const SVG = "http://www.w3.org/2000/svg";
  const DRAWN = new Set("svg g rect circle line path polyline text title".split(" "));

  // An element: h("a", {href: "#"}, "text", element, ...). Text is always text, never markup. `on...` is a listener;
  // `style` an object of properties, set one by one, which a page without inline styles may.
  function h(tag, attributes = {}, ...children) {
    const drawn = DRAWN.has(tag);
    const element = drawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "style") for (const [key, v] of Object.entries(value)) element.style.setProperty(key, v);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
    return element;
  }

  // Three significant digits without an exponent, as everywhere in zfkit.
  function number(value) {
    if (value === null || value === undefined) return "–";
    if (Math.abs(value) >= 100) return value.toFixed(0);
    return String(Number(value.toPrecision(3)));
  }

  const percent = (value) => `${Math.round(100 * value)} %`;

  // ------------------------------------------------------------------------------------------------ where one is
  // "#/conv5/152" in a site of one network, "#/zfnet64/conv5/152" in one of several; two of them, side by side, with
  // "~" between. Options such as the order of a layer's wall follow after "?".

  function readRoute(text) {
    const [path, query] = text.split("?");
    let names;
    try {
      names = path.split("/").filter(Boolean).map(decodeURIComponent);
    } catch { // a lone "%"
      return {view: "lost", options: {}};
    }
    const several = site.models.length > 1;
    const options = Object.fromEntries(new URLSearchParams(query || ""));
    if (!names.length) return {view: "front", options};
    if (names[0] === "pictures") return {view: names[1] ? "picture" : "pictures", picture: Number(names[1]), options};
    const model = several ? site.models.find((m) => m.folder === names[0]) : site.models[0];
    if (!model) return {view: "lost", options};
    const [name, map] = several ? names.slice(1) : names;
    if (name === undefined) return {view: "front", options};
    const layer = model.layers.find((l) => l.name === name);
    if (!layer) return {view: "lost", options};
    if (map === undefined) return {view: "layer", model, layer, options};
    const place = layer.channels.indexOf(Number(map));
    return {view: place < 0 ? "lost" : "unit", model, layer, map: Number(map), place, options};
  }

  function writeRoute(route) {
    const names = [];
    if (route.view === "pictures" || route.view === "picture") names.push("pictures");
    if (route.view === "picture") names.push(route.picture);
    if (route.view === "layer" || route.view === "unit") {
      if (site.models.length > 1) names.push(route.model.folder);
      names.push(route.layer.name);
    }
    if (route.view === "unit") names.push(route.map);
    const set = Object.entries(route.options || {}).filter(([, value]) => !["", null, undefined, false].includes(value));
    const query = set.length ? `?${new URLSearchParams(set)}` : "";
    return `/${names.map((name) => encodeURIComponent(name).replaceAll("~", "%7E")).join("/")}${query}`;
  }

  let site = {models: []};
  const routes = () => location.hash.replace(/^#/, "").split("~").map(readRoute);

  // The address of a route in this pane, which leaves the other pane as it is.
  function address(route, pane = 0) {
    const all = routes();
    all[pane] = route;
    return `#${all.map(writeRoute).join("~")}`;
  }

  const toLayer = (model, layer, options) => ({view: "layer", model, layer, options});
  const toUnit = (model, layer, map, options) => ({view: "unit", model, layer, map, options});

  // ------------------------------------------------------------------------------------------------------- tiles

  const folder = (model, layer) => `${model.folder}/${layer.folder}`;
  const layerData = (model, layer) => load(folder(model, layer), `${folder(model, layer)}/layer.js`);
  const pictures = () => load("pictures", "pictures/pictures.js");

  // The tile at a row and column of a sheet of `columns` x `rows` tiles of height x width px, `size` px wide.
  function tile(file, [height, width], columns, rows, row, column, size, text, crisp) {
    const share = (n, of) => (of > 1 ? `${(100 * n) / (of - 1)}%` : "0%");
    return h("span", {
      class: crisp ? "tile crisp" : "tile", role: text ? "img" : null, "aria-label": text || null, "aria-hidden": text ? null : "true",
      style: {
        "background-image": `url("${file}")`,
        "background-size": `${100 * columns}% ${100 * rows}%`,
        "background-position": `${share(column, columns)} ${share(row, rows)}`,
        "aspect-ratio": `${width} / ${height}`,
        width: typeof size === "number" ? `${size}px` : size,
      },
    });
  }

  // Columns of a grid as square as can be, as the sheets are laid out.
  const square = (n) => Math.ceil(Math.sqrt(n));

  // What the sheets show of the map at `place` in its layer, at a rank.
  function unitTile(model, layer, kind, place, rank, size, text) {
    const sheet = Math.floor(place / site.maps);
    const rows = Math.min(site.maps, layer.channels.length - sheet * site.maps);
    const file = `${folder(model, layer)}/${kind}-${sheet}.webp`;
    return tile(file, layer.tile, site.k, rows, place % site.maps, rank, size, text, Math.max(...layer.tile) <= site.crisp);
  }

  // The map's tile on its layer's wall.
  function wallTile(model, layer, kind, place, size, text, shape = layer.thumb) {
    const n = layer.channels.length;
    const columns = square(n);
    const rows = Math.ceil(n / columns);
    const file = `${folder(model, layer)}/wall-${kind}.webp`;
    const crisp = Math.max(...shape) <= site.crisp;
    return tile(file, shape, columns, rows, Math.floor(place / columns), place % columns, size, text, crisp);
  }

  // Picture i, small.
  function face(album, i, size, text) {
    const place = album.places.indexOf(i);
    const sheet = Math.floor(place / album.sheet);
    const n = Math.min(album.sheet, album.places.length - sheet * album.sheet);
    const columns = square(n);
    const here = place % album.sheet;
    const file = `pictures/faces-${sheet}.webp`;
    const rows = Math.ceil(n / columns);
    return tile(file, album.face, columns, rows, Math.floor(here / columns), here % columns, size, text, false);
  }

  // What to call picture i: its name, and its label where it has one.
  function called(album, i) {
    const place = album.places.indexOf(i);
    const [name, label] = [album.names[place], album.labels[place]];
    return label && !name.includes(label) ? `${name} (${label})` : name;
  }

  function say(text) {
    document.getElementById("said").textContent = text;
  }

  return {
    take, load, h, number, percent, address, routes, writeRoute, toLayer, toUnit, layerData, pictures, unitTile,
    wallTile, face, called, say, folder, square,
    get site() { return site; },
    set site(data) { site = data; },
  };
})();
