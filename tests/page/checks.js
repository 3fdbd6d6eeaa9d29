// Returns what leaves the window or overlaps something else.
function layout() {
  const selector = "h1, h2, h3, p, label, button, select, input, output, a, img, figcaption, canvas, pre, table, progress";
  const shown = [...document.querySelectorAll(selector)]
    .filter(e => e.offsetParent && getComputedStyle(e).visibility !== "hidden" && !e.closest(".visually-hidden"))
    .map(e => [e, e.getBoundingClientRect()])
    .filter(([, b]) => b.width > 1 && b.height > 1);
  const name = e => `${e.tagName.toLowerCase()}#${e.id} ${e.textContent.trim().slice(0, 20)}`;
  const problems = [];
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) problems.push(`the page is ${wide} px wider than the window`);
  for (const [e, b] of shown) {
    const leaves = b.right > innerWidth + 1 || b.left < -1;
    if (leaves && !e.closest(".scroll, .table, pre")) problems.push(`${name(e)} leaves the window`);
  }
  for (let i = 0; i < shown.length; i++) for (let j = 0; j < i; j++) {
    const [e, a] = shown[i], [f, b] = shown[j];
    if (e.contains(f) || f.contains(e)) continue;
    const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (x > 2 && y > 2) problems.push(`${name(e)} overlaps ${name(f)}`);
  }
  return problems;
}

// Returns texts whose contrast with their background is below 4.5 (WCAG 2, level AA).
function contrast() {
  const numbers = color => (color.match(/[\d.]+/g) || []).map(Number);
  const linear = v => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const selector = "h1, h2, h3, p, label, button, .button, select, figcaption, td, th, caption, .soft, output, pre";
  const problems = [];
  for (const e of document.querySelectorAll(selector)) {
    if (!e.offsetParent || !e.textContent.trim() || e.disabled) continue;
    let behind = e, color = null;
    for (; behind && !color; behind = behind.parentElement) {
      const found = numbers(getComputedStyle(behind).backgroundColor);
      if (found.length === 3 || found[3] > 0) color = found;
    }
    const sorted = [light(numbers(getComputedStyle(e).color)), light(color)].sort((a, b) => b - a);
    const ratio = (sorted[0] + 0.05) / (sorted[1] + 0.05);
    if (ratio < 4.5) problems.push(`${e.tagName} ${e.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return problems;
}

// Returns controls that have no name for a screen reader.
function nameless() {
  const labels = e => [...(e.labels || [])].some(label => label.textContent.trim());
  return [...document.querySelectorAll("button, select, input, a, progress")]
    .filter(e => e.offsetParent || e.type === "file")
    .filter(e => !(e.getAttribute("aria-label") || e.textContent.trim() || labels(e)))
    .map(e => e.outerHTML);
}
