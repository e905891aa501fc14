// One function for each kind of page: from a route to elements.
"use strict";

zfkit.views = (() => {
  const {h, number, percent, toLayer, toUnit, address} = zfkit;
  const ORDERS = {
    index: "index", reach: "strongest first", selectivity: "selectivity", frequency: "frequency, low first",
    dead: "least active first", like: "likeness to the map seen last",
  };
  const KINDS = {photo: "patches", natural: "natural colours"};
  const settings = {kind: "photo", rule: "", colours: "", seen: null}; // kept while one walks from page to page

  const sees = (layer) => (layer.stride ? `${layer.field} px of the picture` : "the whole picture");
  const notes = (layer) => layer.notes.map((note) => h("p", {class: "note"}, note));

  // ------------------------------------------------------------------------------------------------------- front

  async function front({options}, pane) {
    const {site} = zfkit;
    const parts = [h("h1", {}, `What do the layers of ${site.models.map((m) => m.name).join(" and ")} see?`),
      h("p", {}, `Each feature map of a network answers to something in a picture. For every map, these pages show the ${site.k} places, `
        + `in ${site.count.toLocaleString("en")} pictures, that excite it most, and what a deconvnet reconstructs from each, down to pixels.`)];
    for (const model of site.models) parts.push(...frontOf(model, pane));
    parts.push(h("section", {}, h("h2", {}, "How to read the pictures"), h("ol", {class: "reading"},
      h("li", {}, "A patch is the part of a picture that one unit sees; it did excite the map, that is a fact."),
      h("li", {}, "The projection beside it shows which edges and colours of the patch reach that unit, through the switches of max-pooling."),
      h("li", {}, "Grey is zero, and each projection has its own symmetric scale: brightness does not compare between two of them."),
      h("li", {}, "Nine patches that share one thing say more than one; the projections tell which thing."),
      h("li", {}, "Part of a projection's likeness comes from the picture: an untrained network has some, too."))));
    return {title: document.title, parts};
  }

  function frontOf(model, pane) {
    const {site} = zfkit;
    const maps = model.layers.reduce((sum, l) => sum + l.count, 0);
    const shown = model.layers.reduce((sum, l) => sum + l.channels.length, 0);
    const facts = [
      model.data ? `Network: ${model.data}${model.top1 ? `, ${model.top1} % top-1` : ""}.` : "",
      `${maps.toLocaleString("en")} feature maps in ${model.layers.length} layers${shown < maps ? `, ${shown} of them shown` : ""}.`,
      `Pictures: ${site.images}, ${site.size}. Made on ${site.made} with zfkit ${site.version}.`,
    ];
    const preview = h("p", {class: "preview", "aria-hidden": "true"}, "Point at a dot to see what that map likes; click to open it.");
    const hover = (layer, place) => preview.replaceChildren(
      zfkit.wallTile(model, layer, "photo", place, 96, ""),
      layer.rules.length ? zfkit.wallTile(model, layer, layer.rules[0], place, 96, "") : "",
      h("span", {}, `${layer.name} ${layer.channels[place]}`));
    const open = (layer, map) => { location.hash = address(toUnit(model, layer, map), pane); };
    const chart = zfkit.charts.mapOfMaps(model, open, hover);
    return [h("section", {}, h("h2", {}, h("bdi", {}, model.name)), h("p", {class: "soft"}, facts.filter(Boolean).join(" ")),
      zfkit.charts.network(model, pane)),
    chart && h("section", {}, h("h3", {}, "The map of maps"),
      h("p", {class: "soft"}, "Every feature map is a dot, coloured by layer; larger dots prefer finer detail. To the right: how strongly it answers "
        + `to these pictures, as a share of ${model.recorded ? "what it reaches on its network's own kind of pictures" : "its layer's strongest"}.`),
      h("div", {class: "beside"}, chart, preview))];
  }

  // ------------------------------------------------------------------------------------------------------- layer

  async function layer(route, pane) {
    const {model, layer: l, options} = route;
    const data = await zfkit.layerData(model, l);
    const album = await zfkit.pictures();
    const chosen = options.like ? Number(options.like) : settings.seen === l ? settings.seenMap : null;
    const order = options.sort || "index";
    const kind = options.show || ([...l.rules, l.natural && "natural"].includes(settings.kind) ? settings.kind : "photo");
    const go = (change) => { location.hash = address({...route, options: {...options, ...change}}, pane); };
    const wall = h("ol", {class: "wall"});
    const count = h("p", {class: "soft", role: "status"});

    function fill() {
      const places = ordered(data, order, chosen).filter((p) => fits(data, album, p, find.value));
      wall.replaceChildren(...places.map((p) => h("li", {}, h("a", {
        href: address(toUnit(model, l, l.channels[p]), pane), title: about(data, p),
      }, zfkit.wallTile(model, l, kind, p, "100%", ""), h("span", {}, String(l.channels[p]))))));
      count.textContent = find.value ? `${places.length} of ${l.channels.length} maps like what is called so.` : "";
    }

    const find = h("input", {type: "search", value: options.find || "", placeholder: "class or picture", oninput: fill,
      onchange: () => history.replaceState(null, "", address({...route, options: {...options, find: find.value}}, pane))});
    const usable = Object.entries(ORDERS).filter(([name]) =>
      (name !== "selectivity" || data.selectivity.length) && (name !== "like" || chosen !== null)
      && (name !== "frequency" || data.frequency.some((f) => f !== null)));
    const sort = h("select", {onchange: () => go({sort: sort.value, like: sort.value === "like" ? chosen : ""})},
      usable.map(([name, text]) => h("option", {value: name, selected: name === order}, text)));
    const shows = h("fieldset", {class: "choice"}, h("legend", {class: "unseen"}, "What the wall shows"),
      ["photo", ...l.rules, ...(l.natural ? ["natural"] : [])].map((name) => h("label", {}, h("input", {type: "radio", name: `show${pane}`, checked: name === kind,
        onchange: () => { settings.kind = name; go({show: name}); }}), ` ${KINDS[name] || name}`)));
    fill();
    const dead = l.dead ? `${l.dead} never active on these pictures.` : "Every map is active on some picture.";
    return {title: l.name, parts: [
      h("h1", {}, h("bdi", {}, l.name)),
      h("p", {class: "soft"}, `${l.count} feature maps${l.channels.length < l.count ? `, ${l.channels.length} of them shown` : ""}; `
        + `a unit sees ${sees(l)}${l.stride ? `, its neighbour ${l.stride} px further on` : ""}. ${dead}`),
      notes(l), h("div", {class: "controls"}, shows, h("label", {}, "Sort ", sort), h("label", {}, "Find ", find)), count, wall]};
  }

  const about = (data, p) => `map ${data.channels[p]}: strongest ${number(data.max[p])}, active on ${percent(data.active[p])}`
    + (data.favourite[p] ? `, prefers ${data.favourite[p]}` : "");

  function ordered(data, order, chosen) {
    const places = data.channels.map((_, p) => p);
    const last = (v) => (v === null || v === undefined ? Infinity : v);
    const likeness = new Map(chosen === null ? [] : (data.nearest[data.channels.indexOf(chosen)] || []));
    const keys = {
      index: (p) => p, reach: (p) => -data.max[p], selectivity: (p) => -data.selectivity[p],
      frequency: (p) => last(data.frequency[p]), dead: (p) => data.active[p] + 1e-6 * data.reach[p],
      like: (p) => (data.channels[p] === chosen ? -2 : -(likeness.get(data.channels[p]) ?? -Infinity)), // r may be below 0
    };
    const key = keys[order] || keys.index;
    return places.sort((a, b) => key(a) - key(b) || a - b);
  }

  function fits(data, album, p, wanted) {
    const text = wanted.trim().toLowerCase();
    return !text || String(data.channels[p]) === text
      || data.image[p].some((i) => i >= 0 && zfkit.called(album, i).toLowerCase().includes(text));
  }

  // -------------------------------------------------------------------------------------------------------- unit

  async function unit(route, pane) {
    const {model, layer: l, map, place: p, options} = route;
    const data = await zfkit.layerData(model, l);
    const album = await zfkit.pictures();
    const n = data.image[p].filter((i) => i >= 0).length;
    const rank = Math.min(Math.max(Number(options.tile || 1) - 1, 0), Math.max(n - 1, 0));
    const rule = l.rules.includes(options.rule) ? options.rule : l.rules.includes(settings.rule) ? settings.rule : l.rules[0];
    const colours = (options.colours ?? settings.colours) === "natural" && l.natural && rule === l.rules[0] ? "natural" : "";
    Object.assign(settings, {seen: l, seenMap: map, rule, colours: options.colours ?? settings.colours});
    const go = (change) => { location.hash = address({...route, options: {...options, ...change}}, pane); };
    const grid = (kind, what) => h("div", {}, h("h2", {}, what), h("ol", {class: "nine", style: {"--columns": zfkit.square(zfkit.site.k)}},
      data.image[p].map((i, r) => h("li", {}, i < 0 ? null : h("button", {
        type: "button", "aria-pressed": String(r === rank), onclick: () => go({tile: r + 1}),
        title: `${zfkit.called(album, i)}: ${number(data.value[p][r])}`,
      }, zfkit.unitTile(model, l, kind, p, r, "100%", `${what}, rank ${r + 1}: ${zfkit.called(album, i)}`),
      h("span", {class: "level", style: {width: `${Math.max(0, (100 * data.value[p][r]) / (data.max[p] || 1))}%`}}))))));
    const rules = l.rules.length > 1 && h("fieldset", {class: "choice"}, h("legend", {class: "unseen"}, "How the way back is made"),
      l.rules.map((name) => h("label", {}, h("input", {type: "radio", name: `rule${pane}`, checked: name === rule,
        onchange: () => go({rule: name})}), ` ${KINDS[name] || name}`)));
    const paints = l.natural && rule === l.rules[0] && h("fieldset", {class: "choice"}, h("legend", {class: "unseen"}, "Colours"),
      ["plain", "natural"].map((name) => h("label", {}, h("input", {type: "radio", name: `colours${pane}`, checked: name === (colours || "plain"),
        onchange: () => go({colours: name})}), ` ${name} colours`)), colours && h("p", {class: "soft"}, zfkit.site.natural));
    const around = [p - 1, p + 1].map((q) => l.channels[(q + l.channels.length) % l.channels.length]);
    const step = (to, text, key) => h("a", {href: address(toUnit(model, l, to), pane), rel: key, "aria-label": `map ${to}`}, text);
    return {title: `${l.name} ${map}`, keys: {previous: around[0], next: around[1], ranks: n, go}, parts: [
      h("p", {class: "crumbs"}, h("a", {href: address(toLayer(model, l), pane)}, `all maps of ${l.name}`), step(around[0], "← ", "prev"), step(around[1], " →", "next")),
      h("h1", {}, h("bdi", {}, l.name), ` map ${map}`),
      warnings(data.warnings[p]), notes(l),
      h("div", {class: "unit"},
        rule ? h("div", {}, grid(colours || rule, "what it picks out"), rules, paints) : null,
        grid("photo", "what excites it"),
        n ? h("div", {}, h("h2", {}, "this one"), thisOne(l, data, album, p, rank, pane)) : h("p", {}, "No picture excites it.")),
      h("div", {class: "facts"}, facts(model, l, data, p), alike(model, l, data, p, pane), inputs(model, l, data, p, pane), code(model, l, map, rule))]};
  }

  // The whole picture with what the unit sees.
  function thisOne(l, data, album, p, rank, pane) {
    const i = data.image[p][rank];
    const [height, width] = zfkit.site.shape;
    const [left, top, right, bottom] = data.box[p][rank];
    const name = zfkit.called(album, i);
    return h("figure", {class: "whole"},
      h("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${name}, with the part that the unit sees`},
        picture(i, width, height),
        h("rect", {x: left, y: top, width: right - left, height: bottom - top, class: "field"})),
      h("figcaption", {}, h("a", {href: address({view: "picture", picture: i}, pane)}, h("bdi", {}, name)),
        h("span", {class: "soft"}, ` rank ${rank + 1}, ${number(data.value[p][rank])} at row ${data.row[p][rank]}, column ${data.col[p][rank]}`)));
  }

  function picture(i, width, height) {
    const image = document.createElementNS("http://www.w3.org/2000/svg", "image");
    for (const [name, value] of Object.entries({href: `pictures/${i}.webp`, width, height})) image.setAttribute(name, value);
    return image;
  }

  const warnings = (list) => (list.length ? h("ul", {class: "warnings", "aria-label": "Health warnings"},
    list.map(([sentence, remedy]) => h("li", {}, sentence, " ", h("span", {class: "soft"}, `Remedy: ${remedy}.`)))) : null);

  function facts(model, l, data, p) {
    const shown = Math.min(...data.value[p].filter((_, r) => data.image[p][r] >= 0), Infinity);
    const labels = data.labels[p];
    const most = labels && labels.first.length ? labels.first[0][1] : 1;
    const plural = {class: "classes", photograph: "photographs"}[data.kind];
    return h("section", {}, h("h2", {}, "In numbers"),
      h("p", {}, `Strongest ${number(data.max[p])}, ${reach(data, p)}; above 0 on ${percent(data.active[p])} of the pictures`
        + (data.frequency[p] === null ? "." : `; projections of ${number(data.frequency[p])} cycles/px on average.`)),
      l.filters && h("p", {class: "filters"}, h("span", {}, zfkit.wallTile(model, l, "filter", p, 84, "its filter", [1, 1]), "filter"),
        h("span", {}, zfkit.wallTile(model, l, "spectrum", p, 84, "spectrum of its filter", [1, 1]), "spectrum, ±½ cycles/px")),
      h("h3", {}, `Its maximum in each of ${data.measured} pictures`), zfkit.charts.histogram(data.histogram[p], shown),
      labels && labels.first.length ? [h("h3", {}, `The ${labels.of} that excite it most, by ${data.kind}`),
        zfkit.charts.bars(labels.first.map(([name, often]) => [name, often / most, String(often)])),
        h("p", {class: "soft"}, `${labels.kinds} ${plural}. Selectivity ${number(data.selectivity[p])} for `, h("bdi", {}, data.favourite[p]), " (0 none, 1 that alone).")] : null);
  }

  const reach = (data, p) => (data.reach[p] === null ? "a map that nothing of its network's own kind of pictures excites"
    : `${percent(data.reach[p])} of ${data.recorded ? "what it reaches on its network's own kind of pictures" : "the layer's strongest"}`);

  const kindOf = (l) => (l.rules.includes(settings.rule) ? settings.rule : "photo");

  function links(rows, pane) {
    return h("ul", {class: "links"}, rows.map(([model, l, map, text]) => {
      const place = l.channels.indexOf(map);
      const inside = [place < 0 ? null : zfkit.wallTile(model, l, "photo", place, 64, ""),
        place < 0 || kindOf(l) === "photo" ? null : zfkit.wallTile(model, l, kindOf(l), place, 64, ""),
        h("span", {}, `${l.name} ${map}`), h("span", {class: "soft"}, text)];
      return h("li", {}, place < 0 ? inside : h("a", {href: address(toUnit(model, l, map), pane)}, inside));
    }));
  }

  const alike = (model, l, data, p, pane) => (data.nearest[p].length ? h("section", {}, h("h2", {}, "Maps that answer like it"),
    links(data.nearest[p].map(([map, r]) => [model, l, map, `r = ${r.toFixed(2)}`]), pane)) : null);

  function inputs(model, l, data, p, pane) {
    const rows = data.inputs[p].map(([name, map, added]) => [model, model.layers.find((m) => m.name === name), map, `${added > 0 ? "+" : "−"}${number(Math.abs(added))}`]);
    return rows.length ? h("section", {}, h("h2", {}, "What it is made of"), h("p", {class: "soft"}, `What maps before it add to its strongest activation in ${data.measured} pictures.`), links(rows, pane)) : null;
  }

  function code(model, l, map, rule) {
    const {load, k} = zfkit.site;
    const mined = `zfkit.mine(model, photos, [${JSON.stringify(l.name)}], ${k}, inside=${l.inside ? "True" : "False"})`;
    const show = rule ? `project_top(model, photos, ${mined}, ${JSON.stringify(l.name)}, [${map}], rule="${rule}")`
      : `topk.cut_top(model, photos, ${mined}, ${JSON.stringify(l.name)}, [${map}])`;
    const lines = ["import zfkit", `model, photos = ${model.load || "..."}, ${load || "..."}${model.load && load ? "" : "  # yours"}`,
      `patches = zfkit.${show}`].join("\n");
    const copy = h("button", {type: "button", onclick: async () => { await navigator.clipboard.writeText(lines); zfkit.say("copied"); }}, "copy");
    return h("section", {class: "code"}, h("h2", {}, "The same in Python ", navigator.clipboard ? copy : null), h("pre", {tabindex: "0"}, h("code", {}, lines)));
  }

  // ---------------------------------------------------------------------------------------------------- pictures

  async function pictures({options}, pane) {
    const album = await zfkit.pictures();
    const list = h("ol", {class: "wall"});
    const fill = () => list.replaceChildren(...album.places.filter((i) => zfkit.called(album, i).toLowerCase().includes(find.value.trim().toLowerCase()))
      .map((i) => h("li", {}, h("a", {href: address({view: "picture", picture: i}, pane), title: zfkit.called(album, i)}, zfkit.face(album, i, "100%", zfkit.called(album, i))))));
    const find = h("input", {type: "search", oninput: fill, placeholder: "class or picture"});
    fill();
    return {title: "pictures", parts: [h("h1", {}, "The pictures"), h("p", {class: "soft"}, "All that some map likes best."), h("label", {}, "Find ", find), list]};
  }

  async function pictureView(route, pane) {
    const album = await zfkit.pictures();
    const i = route.picture;
    if (!album.places.includes(i)) return lost();
    const sections = [];
    let note = null;
    for (const model of zfkit.site.models) {
      for (const l of model.layers) {
        const name = `${zfkit.folder(model, l)}/pictures`;
        const {strongest, measured} = await zfkit.load(name, `${name}.js`);
        const seen = measured.includes(i);
        if (!seen) note = h("p", {class: "note"}, `Every map was measured in ${measured.length} pictures, and this is none of them: listed are maps that have it among their ${zfkit.site.k}.`);
        const rows = (strongest[i] || []).map(([map, share]) => [model, l, map, percent(share)]);
        sections.push(h("section", {}, h("h2", {}, zfkit.site.models.length > 1 ? `${model.name} ${l.name}` : l.name),
          rows.length ? links(rows, pane) : h("p", {class: "soft"}, seen ? "No map is above 0." : `No map has it among its ${zfkit.site.k}.`)));
      }
    }
    const around = [-1, 1].map((d) => album.places[(album.places.indexOf(i) + d + album.places.length) % album.places.length]);
    const step = (to, text, key) => h("a", {href: address({view: "picture", picture: to}, pane), rel: key, "aria-label": zfkit.called(album, to)}, text);
    return {title: zfkit.called(album, i), keys: {pictures: around}, parts: [
      h("p", {class: "crumbs"}, h("a", {href: address({view: "pictures"}, pane)}, "all pictures"), step(around[0], "← ", "prev"), step(around[1], " →", "next")),
      h("h1", {}, h("bdi", {}, zfkit.called(album, i))), h("img", {src: `pictures/${i}.webp`, alt: zfkit.called(album, i), class: "large"}),
      h("p", {}, "What each layer sees in it: the maps that it brings nearest to their strongest activation, and how near."), note, sections]};
  }

  async function lost() {
    return {title: "not here", parts: [h("h1", {}, "There is no such page here"), h("p", {}, "The address names a layer, map or picture that this site does not have. ", h("a", {href: "#/"}, "To the first page"))]};
  }

  return {front, layer, unit, pictures, picture: pictureView, lost};
})();
