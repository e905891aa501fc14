// Everything that takes the focus inside a zfkit widget: a name for screen readers, and the page's own
// shortcuts kept away from it (in JupyterLab, typing "dd" on a slider would delete the cell).
function prepare(root) {
  const labelled = (box) => {  // a widget's tooltip is its label's title, even where the label is empty and hidden
    const label = box?.querySelector(".widget-label");
    const title = label?.title === "null" ? "" : label?.title;  // that is how a widget writes that it has none
    return title || label?.textContent.trim() || "";
  };
  const each = () => {
    for (const e of root.querySelectorAll("button, input, select, textarea, a[href], .noUi-handle, .widget-readout, canvas"))
      if (!e.hasAttribute("data-lm-suppress-shortcuts")) e.setAttribute("data-lm-suppress-shortcuts", "true");
    for (const handle of root.querySelectorAll(".noUi-handle")) {
      const words = labelled(handle.closest(".widget-slider, .jupyter-widgets")) || "slider";
      if (handle.getAttribute("aria-label") !== words) handle.setAttribute("aria-label", words);
    }
    for (const e of root.querySelectorAll(".widget-readout[contenteditable]:not([aria-label])")) {
      e.setAttribute("role", "textbox");
      e.setAttribute("aria-label", `value of ${labelled(e.closest(".jupyter-widgets")) || "the slider"}`);
    }
    for (const e of root.querySelectorAll("input:not([aria-label]), select:not([aria-label]), textarea:not([aria-label])")) {
      const box = e.closest(".jupyter-widgets[title]");
      const words = box?.getAttribute("title") || e.getAttribute("title") || labelled(e.closest(".jupyter-widgets"))
        || e.placeholder;
      if (words) e.setAttribute("aria-label", words);
    }
    for (const icon of root.querySelectorAll(".widget-play button > .fa")) {  // whose button has an icon alone
      const words = { "fa-retweet": "repeat" }[icon.classList[1]] || icon.classList[1]?.replace("fa-", "");
      if (words && icon.parentElement.getAttribute("aria-label") !== words) icon.parentElement.setAttribute("aria-label", words);
    }
    for (const group of root.querySelectorAll(".widget-toggle-buttons")) {
      for (const e of group.querySelectorAll("button")) {
        const pressed = e.classList.contains("mod-active") ? "true" : "false";
        if (e.getAttribute("aria-pressed") !== pressed) e.setAttribute("aria-pressed", pressed);
      }
    }
  };
  let waiting = false;
  const observer = new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false; each(); }, 150);  // once for all that changed, and after it is painted
  });
  observer.observe(root, { childList: true, subtree: true, attributes: true, attributeFilter: ["class", "title"] });
  each();
  return () => observer.disconnect();
}

function render({ model, el }) {
  el.classList.add("zfkit-head");
  const make = (tag, attributes, ...children) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  };
  const save = make("button", { type: "button", textContent: "save picture", title: "what is shown as a PNG, with its words",
    onclick: () => { saved.replaceChildren(); model.send({ kind: "save" }); } });
  const about = make("dialog", {}, make("h3", { textContent: "Keys" }), ...[...Object.entries(model.get("moves")), ["Tab", "to each control"],
    ["?", "this"]].map(([key, words]) => make("p", {}, make("kbd", { textContent: key }), ` ${words}`)),
    make("form", { method: "dialog" }, make("button", { textContent: "close" })));
  about.setAttribute("aria-label", "Keys");
  const ask = () => { if (!about.open) about.showModal(); };
  const help = make("button", { type: "button", textContent: "?", title: "keys", onclick: ask });
  const saved = make("span", {});
  saved.setAttribute("role", "status");
  el.append(make("h2", { textContent: model.get("title") }), saved, save, help, about);
  const receive = (content, [picture]) => {
    const href = URL.createObjectURL(new Blob([picture], { type: "image/png" }));
    const link = make("a", { href, download: content.name, textContent: "download it", onclick: () => setTimeout(() => URL.revokeObjectURL(href), 60000) });
    saved.replaceChildren(content.words ? `${content.words}; ` : "", link);
  };
  model.on("msg:custom", receive);
  const ended = new AbortController();
  let unprepare = () => {};
  requestAnimationFrame(() => {
    const root = el.closest(".zfkit");
    if (!root || ended.signal.aborted) return;
    root.tabIndex = -1;
    root.setAttribute("data-lm-suppress-shortcuts", "true");
    unprepare = prepare(root);
    root.addEventListener("keydown", (event) => {
      const target = event.target;
      const own = target.closest("input, select, textarea, [contenteditable], [role=slider], [role=application], dialog");
      if (own || event.ctrlKey || event.metaKey || event.altKey || !model.get("taken").includes(event.key) || (event.shiftKey && event.key !== "?")) return;
      event.preventDefault();
      event.stopPropagation();
      if (event.key === "?") ask();
      else model.send({ kind: "key", key: event.key });
    }, { signal: ended.signal });
    // A click that falls on no control leaves the keys to this widget.
    root.addEventListener("click", () => { if (!root.contains(document.activeElement)) root.focus({ preventScroll: true }); }, { signal: ended.signal });
  });
  return () => { model.off("msg:custom", receive); ended.abort(); unprepare(); };
}
export default { render };
