// A place or a box on a picture: a transparent canvas above it.
function render({ model, el }) {
  el.classList.add("zfkit-place");
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("data-lm-suppress-shortcuts", "true");
  el.appendChild(canvas);
  const get = (name) => model.get(name);
  let hover = null, dragFrom = null;

  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
  function describe() {
    const [l, t, r, b] = get("box");
    canvas.setAttribute("aria-label", get("label") + (get("mode") === "box"
      ? `. Box from ${Math.round(100 * l)}, ${Math.round(100 * t)} to ${Math.round(100 * r)}, ${Math.round(100 * b)} percent; arrow keys move it, with Shift resize it`
      : `. Row ${get("row")} of 0 to ${get("rows") - 1}, column ${get("col")} of 0 to ${get("cols") - 1}; arrow keys move`));
  }
  function cell(row, col) {  // fractions of the picture: left, top, width, height
    const [l, t, r, b] = get("area"), [high, wide] = get("extent");
    const w = (r - l) / get("cols"), h = (b - t) / get("rows");
    if (!high) return [l + col * w, t + row * h, w, h];
    return [l + (col + 0.5) * w - wide / 2, t + (row + 0.5) * h - high / 2, wide, high];
  }
  function draw() {
    const wide = canvas.clientWidth, high = canvas.clientHeight, dpr = window.devicePixelRatio || 1;
    if (!wide || !high) return;
    if (canvas.width !== Math.round(wide * dpr)) canvas.width = Math.round(wide * dpr);
    if (canvas.height !== Math.round(high * dpr)) canvas.height = Math.round(high * dpr);
    const c = canvas.getContext("2d");
    c.setTransform(dpr, 0, 0, dpr, 0, 0);
    c.clearRect(0, 0, wide, high);
    const outline = ([x, y, w, h], colour, line) => {
      let W = w * wide, H = h * high, X = x * wide, Y = y * high;
      if (W < 7) { X -= (7 - W) / 2; W = 7; }
      if (H < 7) { Y -= (7 - H) / 2; H = 7; }
      c.strokeStyle = "rgba(0,0,0,.65)"; c.lineWidth = line + 2; c.strokeRect(X, Y, W, H);
      c.strokeStyle = colour; c.lineWidth = line; c.strokeRect(X, Y, W, H);
    };
    const inset = ([x, y, w, h]) => [x + 2 / wide, y + 2 / high, w - 4 / wide, h - 4 / high];
    if (get("mode") === "box") {
      const [l, t, r, b] = get("box");
      if (r > l && b > t) outline([l, t, r - l, b - t], "#ffc233", 2);
    } else {
      if (hover) outline(inset(cell(...hover)), "rgba(255,255,255,.9)", 1);
      if (get("row") >= 0 && get("col") >= 0) outline(inset(cell(get("row"), get("col"))), "#ffc233", 2);
    }
    describe();
  }
  function at(event) {
    const box = canvas.getBoundingClientRect(), [l, t, r, b] = get("area");
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    const col = Math.floor((x - l) / (r - l) * get("cols")), row = Math.floor((y - t) / (b - t) * get("rows"));
    return { x: clamp(x, 0, 1), y: clamp(y, 0, 1), row: clamp(row, 0, get("rows") - 1), col: clamp(col, 0, get("cols") - 1) };
  }
  function place(row, col) {
    if (row === get("row") && col === get("col")) return;
    model.set({ row, col });
    model.save_changes();
    draw();
  }
  function box(l, t, r, b) {
    model.set("box", [Math.min(l, r), Math.min(t, b), Math.max(l, r), Math.max(t, b)]);
    model.save_changes();
    draw();
  }
  function over(value) {
    const now = JSON.stringify(value), old = JSON.stringify(hover);
    if (now === old) return;
    hover = value;
    draw();
  }
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    dragFrom = at(event);
    if (get("mode") !== "box") place(dragFrom.row, dragFrom.col);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    const here = at(event);
    if (get("mode") === "box") { if (dragFrom) box(dragFrom.x, dragFrom.y, here.x, here.y); return; }
    if (dragFrom) place(here.row, here.col);
    over([here.row, here.col]);
  });
  canvas.addEventListener("pointerup", () => { dragFrom = null; });
  canvas.addEventListener("pointercancel", () => { dragFrom = null; });
  canvas.addEventListener("pointerleave", () => { if (!dragFrom) over(null); });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (get("mode") === "box") {
      let [l, t, r, b] = get("box");
      const d = 0.02, dx = step[1] * d, dy = step[0] * d;
      if (event.shiftKey) { r = clamp(r + dx, l + d, 1); b = clamp(b + dy, t + d, 1); }
      else {
        const mx = clamp(dx, -l, 1 - r), my = clamp(dy, -t, 1 - b);
        l += mx; r += mx; t += my; b += my;
      }
      box(l, t, r, b);
      return;
    }
    const times = event.shiftKey ? 5 : 1;
    place(clamp(Math.max(get("row"), 0) + times * step[0], 0, get("rows") - 1),
          clamp(Math.max(get("col"), 0) + times * step[1], 0, get("cols") - 1));
  });
  const changes = "change:row change:col change:rows change:cols change:area change:extent change:box change:mode change:label";
  let drawing = 0;  // one message changes several of these; one drawing is enough, in the next frame
  const redraw = () => { drawing = drawing || requestAnimationFrame(() => { drawing = 0; draw(); }); };
  model.on(changes, redraw);
  const watching = new ResizeObserver(draw);
  watching.observe(canvas);
  draw();
  return () => { model.off(changes, redraw); cancelAnimationFrame(drawing); watching.disconnect(); };
}
export default { render };
