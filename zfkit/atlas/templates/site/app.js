// From the address to pages: one pane, or two side by side, with their heading, keys and footer.
"use strict";

(() => {
  const {h, address, toLayer, toUnit} = zfkit;
  const main = document.getElementById("main");
  let drawing = 0; // the newest drawing: an older one that ends later is thrown away
  let drawn = []; // what the panes show: {route, view}

  async function draw() {
    const mine = ++drawing;
    const routes = zfkit.routes();
    const panes = [];
    for (const [pane, route] of routes.entries()) {
      let view;
      try {
        view = await zfkit.views[route.view](route, pane);
      } catch (error) {
        view = {title: "trouble", parts: [h("h1", {}, "This page cannot be shown"), h("p", {role: "alert"}, error.message)]};
      }
      panes.push({route, view});
    }
    if (mine !== drawing) return;
    const turned = drawn.length === panes.length && panes.every((p, i) => zfkit.writeRoute({...p.route, options: {}}) === zfkit.writeRoute({...drawn[i].route, options: {}}));
    const focus = turned ? keepFocus() : null;
    main.className = panes.length > 1 ? "two" : "";
    main.replaceChildren(...panes.map(({view}, i) => h("article", {"aria-label": panes.length > 1 ? `Pane ${i + 1}` : null}, view.parts.flat(Infinity).filter(Boolean))));
    drawn = panes;
    header(panes);
    const title = panes.map((p) => p.view.title).join(" | ");
    document.title = title.includes("zfkit") ? title : `${title} · zfkit`;
    if (turned) focus();
    else {
      scrollTo(0, 0);
      zfkit.say(title);
    }
    document.body.dataset.ready = location.hash || "#/";
  }

  // After a change of options on one page the same control has the focus as before.
  function keepFocus() {
    const all = [...main.querySelectorAll("a, button, input, select")];
    const place = all.indexOf(document.activeElement);
    const [x, y] = [scrollX, scrollY];
    return () => {
      if (place >= 0) main.querySelectorAll("a, button, input, select")[place]?.focus({preventScroll: true});
      scrollTo(x, y);
    };
  }

  function header(panes) {
    const {route} = panes[0];
    const model = route.model || zfkit.site.models[0];
    const here = (is) => (is ? "page" : null);
    const layers = zfkit.site.models.length > 1 && !route.model ? [] : model.layers;
    const second = panes.length > 1
      ? h("a", {href: `#${zfkit.writeRoute(route)}`}, "one pane")
      : h("a", {href: `#${[route, twin(route)].map(zfkit.writeRoute).join("~")}`}, "side by side");
    document.getElementById("top").replaceChildren(
      h("a", {href: "#/", class: "brand", "aria-current": here(route.view === "front")}, zfkit.site.models.map((m) => m.name).join(" · ")),
      h("nav", {"aria-label": "Layers"}, layers.map((l) => h("a", {href: address(toLayer(model, l)), "aria-current": here(route.layer === l)}, l.name))),
      h("nav", {"aria-label": "Other"}, h("a", {href: address({view: "pictures"}), "aria-current": here(route.view === "pictures")}, "pictures"), " ", second));
  }

  // What the second pane shows at first: the other network's layer of the same place, if there is one.
  function twin(route) {
    const {models} = zfkit.site;
    if (!route.layer || models.length < 2) return {...route};
    const other = models[(models.indexOf(route.model) + 1) % models.length];
    const place = Math.round(((other.layers.length - 1) * route.model.layers.indexOf(route.layer)) / Math.max(1, route.model.layers.length - 1));
    const layer = other.layers.find((l) => l.name === route.layer.name) || other.layers[place];
    return toLayer(other, layer, {});
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !drawn.length) return;
    if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName) && event.target.type !== "radio") return;
    const {route, view} = drawn[0];
    const keys = view.keys || {};
    const sideways = {ArrowLeft: 0, ArrowRight: 1}[event.key];
    const go = (to) => { event.preventDefault(); location.hash = address(to); };
    if (event.target.type === "radio" && sideways !== undefined) return;
    if (route.view === "unit") {
      const {rule, colours} = route.options;
      if (sideways !== undefined) go(toUnit(route.model, route.layer, [keys.previous, keys.next][sideways], {rule, colours}));
      if (event.key === "Escape") go(toLayer(route.model, route.layer));
      if (/^[1-9]$/.test(event.key) && Number(event.key) <= keys.ranks) keys.go({tile: event.key});
    }
    if (route.view === "picture" && sideways !== undefined && keys.pictures) go({view: "picture", picture: keys.pictures[sideways]});
  }

  function footer() {
    const {site} = zfkit;
    document.getElementById("foot").replaceChildren(
      h("p", {}, "Keys on a map's page: ← and → to its neighbours, 1 to 9 for a tile, Esc to its layer."),
      h("p", {}, "Method: Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, arXiv 1311.2901, section 2.1 and Fig. 2."),
      site.credits.length ? h("details", {}, h("summary", {}, "Photographs"), h("p", {}, `${site.credits.join("; ")}.`)) : "");
  }

  zfkit.load("site", "site.js").then((site) => {
    zfkit.site = site;
    document.title = `${site.models.map((m) => m.name).join(" and ")} · zfkit`;
    footer();
    addEventListener("hashchange", draw);
    addEventListener("keydown", key);
    draw();
  }).catch((error) => main.replaceChildren(h("p", {role: "alert"}, error.message)));
})();
