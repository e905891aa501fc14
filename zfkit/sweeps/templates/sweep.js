document.documentElement.classList.add("scripted");
const rows = [...document.querySelectorAll("tbody tr")], picks = [...document.querySelectorAll("select[data-name]")];
const shown = document.querySelector("#shown");
function pick() {
  const left = new Set(rows.filter(row => picks.every(s => !s.value || row.dataset[s.dataset.name] === s.value))
    .map(row => row.dataset.run));
  for (const thing of document.querySelectorAll("[data-run]")) thing.hidden = !left.has(thing.dataset.run);
  for (const part of document.querySelectorAll("section.figures"))
    part.hidden = !part.querySelector("figure:not([hidden])");
  shown.textContent = left.size === rows.length ? `${rows.length} runs` : `${left.size} of ${rows.length} runs`;
}
for (const select of picks) select.addEventListener("change", pick);
document.querySelector("#size").addEventListener("input", e =>
  document.documentElement.style.setProperty("--width", e.target.value + "px"));
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, at = [...head.parentElement.children].indexOf(head);
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.children[at].dataset.value, number = v => v === "" ? NaN : Number(v);
  const order = (a, b) => {
    const x = number(key(a)), y = number(key(b));
    if (!isNaN(x) && !isNaN(y)) return up ? x - y : y - x;
    if (!isNaN(x) || !isNaN(y)) return isNaN(x) ? 1 : -1;
    return up ? key(a).localeCompare(key(b)) : key(b).localeCompare(key(a));
  };
  document.querySelector("tbody").append(...[...rows].sort(order));
});
pick();
