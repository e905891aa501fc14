// Small charts as SVG: histograms, bars, the network to scale, and the map of maps.
"use strict";

zfkit.charts = (() => {
  const {h, number} = zfkit;
  const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]; // Okabe & Ito

  // A layer's colour; of more than six layers, those between two colours are mixed of them.
  function colour(model, layer) {
    const [place, n] = [model.layers.indexOf(layer), model.layers.length];
    if (n <= COLOURS.length) return COLOURS[place];
    const at = (place * (COLOURS.length - 1)) / (n - 1);
    const [from, to] = [Math.floor(at), Math.ceil(at)].map((i) => COLOURS[i].match(/\w\w/g).map((x) => parseInt(x, 16)));
    return `rgb(${from.map((v, i) => Math.round(v + (to[i] - v) * (at % 1))).join(", ")})`;
  }

  // A map's maxima over the pictures; what is above the last shown tile is darker.
  function histogram({counts, low, high}, shown) {
    const [width, height] = [280, 90];
    const most = Math.max(...counts, 1);
    const step = width / counts.length;
    const bars = counts.map((n, i) => {
      const above = low + ((i + 1) * (high - low)) / counts.length > shown;
      const tall = n ? Math.max(1, (height * Math.sqrt(n)) / Math.sqrt(most)) : 0;
      return h("rect", {
        x: i * step, y: height - tall, width: step - 1, height: tall, class: above ? "bar strong" : "bar",
      });
    });
    const text = `Histogram: from ${number(low)} to ${number(high)}; fullest bin ${most} pictures`;
    return h("figure", {class: "chart"},
      h("svg", {viewBox: `0 0 ${width} ${height + 16}`, role: "img", "aria-label": text}, bars,
        h("line", {x1: 0, y1: height, x2: width, y2: height, class: "axis"}),
        h("text", {x: 0, y: height + 13}, number(low)),
        h("text", {x: width, y: height + 13, "text-anchor": "end"}, number(high))));
  }

  // [["name", share 0 to 1, "text"], ...] as bars with words.
  function bars(rows) {
    return h("ul", {class: "bars"}, rows.map(([name, share, text]) =>
      h("li", {}, h("bdi", {}, name), " ", h("span", {class: "soft"}, text),
        h("span", {class: "rule", style: {width: `${Math.max(1, 100 * Math.abs(share))}%`}}))));
  }

  // The network to scale: each layer as high as its maps are, as wide as the logarithm of how many there are.
  function network(model, pane) {
    const gap = 14;
    const tallest = Math.max(...model.layers.map((l) => l.shape[1] || 1), 1);
    const boxes = [];
    let x = 0;
    for (const layer of model.layers) {
      const side = layer.shape.length > 1 ? layer.shape[1] : 1;
      const [wide, tall] = [8 + 7 * Math.log2(layer.count + 1), 24 + (126 * side) / tallest];
      boxes.push({layer, x, y: (150 - tall) / 2, wide, tall, side});
      x += wide + gap;
    }
    const links = boxes.map((b) => h("li", {style: {width: `${b.wide}px`}},
      h("a", {
        href: zfkit.address(zfkit.toLayer(model, b.layer), pane), class: "block",
        style: {height: `${b.tall}px`, "background-color": colour(model, b.layer)},
        title: `${b.layer.name}: ${b.layer.count} maps of ${b.side} × ${b.side}`,
      }, h("span", {class: "unseen"}, `${b.layer.name}, ${b.layer.count} maps`)),
      h("span", {class: "name", "aria-hidden": "true"}, b.layer.name),
      h("span", {class: "soft", "aria-hidden": "true"}, `${b.layer.count}`)));
    return h("ol", {class: "network", "aria-label": "Layers, drawn to scale"}, links);
  }

  // All feature maps as points: how strongly each answers, against how much it tells classes apart; size by frequency.
  function mapOfMaps(model, open, hover) {
    const points = [];
    for (const layer of model.layers) {
      layer.channels.forEach((map, place) => {
        const selective = layer.selectivity.length ? layer.selectivity[place] : layer.frequency[place];
        if (layer.reach[place] > 0 && selective !== null) points.push({layer, map, place, x: layer.reach[place], y: selective});
      });
    }
    if (!points.length) return null;
    const [width, height, pad] = [Math.max(300, Math.min(760, innerWidth - 40)), 360, 42];
    const labelled = model.layers.some((l) => l.selectivity.length);
    const low = Math.max(0.005, Math.min(...points.map((p) => p.x), 0.5));
    const most = Math.max(...points.map((p) => p.x), 1);
    const high = Math.max(...points.map((p) => p.y), 0.1);
    const across = (v) => pad + ((width - pad - 10) * Math.log(Math.max(v, low) / low)) / Math.log(most / low);
    const up = (v) => height - pad - ((height - pad - 10) * Math.max(0, v)) / high;
    const dots = points.map((p) => {
      const frequency = p.layer.frequency[p.place];
      return h("circle", {
        cx: across(p.x).toFixed(1), cy: up(p.y).toFixed(1), r: 2.5 + 8 * (frequency || 0),
        fill: colour(model, p.layer), "data-map": `${p.layer.name} ${p.map}`,
        onmouseenter: () => hover(p.layer, p.place), onclick: () => open(p.layer, p.map),
      });
    });
    const ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5].filter((v) => v >= low && v <= most).map((v) =>
      h("text", {x: across(v), y: height - pad + 16, "text-anchor": "middle"}, String(v)));
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].find((s) => high / s <= 5) || 1;
    const heights = Array.from({length: Math.floor(high / step) + 1}, (_, i) => i * step).map((v) =>
      h("text", {x: pad - 6, y: up(v) + 4, "text-anchor": "end"}, number(v)));
    const vertical = labelled ? "selectivity" : "mean frequency, cycles/px";
    return h("svg", {
      viewBox: `0 0 ${width} ${height}`, class: "maps-chart", role: "img",
      "aria-label": `${points.length} feature maps as points; the layers' pages list the same maps`,
    },
    h("line", {x1: pad, y1: height - pad, x2: width, y2: height - pad, class: "axis"}),
    h("line", {x1: pad, y1: 0, x2: pad, y2: height - pad, class: "axis"}), ticks, heights,
    h("text", {x: width - 4, y: height - 6, "text-anchor": "end"}, "strongest activation, as a share"),
    h("text", {x: 12, y: height - pad, transform: `rotate(-90 12 ${height - pad})`}, vertical), dots);
  }

  return {histogram, bars, network, mapOfMaps, colour};
})();
