"use strict";
// Sorting tables, and values under the pointer. Nothing here is needed to read the page.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const REACH = 14; // points around a dot in which it answers

  const key = (row, at) => {
    const cell = row.cells[at];
    const number = cell.dataset.value;
    return number === undefined ? cell.textContent.trim() : number === "" ? null : Number(number);
  };
  // What is missing stays last whichever way the rest goes.
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  };
  const sortBy = (table, header, at) => {
    const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => compare(key(a, at), key(b, at), sign)));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((header, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sortBy(table, header, at));
    });
  }

  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);
  let shown = null;
  const hide = () => {
    tip.hidden = true;
    if (shown) shown.mark.setAttribute("visibility", "hidden");
    shown = null;
  };
  const show = (region, found) => {
    if (!found) return hide();
    if (shown && shown !== region) hide();
    shown = region;
    region.at = found.at;
    for (const [name, value] of Object.entries(found.shape)) region.mark.setAttribute(name, value);
    region.mark.setAttribute("visibility", "visible");
    if (tip.textContent !== found.text) tip.textContent = found.text;
    tip.hidden = false;
    const place = region.mark.getBoundingClientRect();
    const box = tip.getBoundingClientRect();
    const left = place.left + place.width / 2 - box.width / 2;
    const above = place.top - box.height - 8;
    tip.style.left = Math.max(6, Math.min(left, document.documentElement.clientWidth - box.width - 6)) + "px";
    tip.style.top = (above > 6 ? above : place.bottom + 8) + "px";
  };

  const lattice = (box, rows, columns, textOf) => {
    const [left, top, width, height] = box;
    const w = width / columns.length;
    const h = height / rows.length;
    const at = (row, column) => {
      if (rows[row] === undefined || columns[column] === undefined) return null;
      const said = `${rows[row]} × ${columns[column]}: ${textOf(row, column) || "not known"}`;
      return { at: [row, column], text: said, shape: { x: left + column * w, y: top + row * h, width: w, height: h } };
    };
    return {
      shape: "rect",
      find: (x, y) => at(Math.floor((y - top) / h), Math.floor((x - left) / w)),
      step: (now, dx, dy) => (now ? at(now[0] + dy, now[1] + dx) || at(...now) : at(0, 0)),
    };
  };
  const cells = (data) => lattice(data.box, data.rows, data.columns, (row, column) => data.texts[row][column]);
  // Hundredths of a lower triangle, row by row, a signed byte each; -128 is not known.
  const correlations = (data) => {
    const hundredths = Int8Array.from(atob(data.hundredths), (byte) => byte.charCodeAt(0));
    const textOf = (a, b) => {
      const [row, column] = a > b ? [a, b] : [b, a];
      const found = hundredths[(row * (row + 1)) / 2 + column];
      return found === -128 ? "" : (found < 0 ? "-" : "+") + (Math.abs(found) / 100).toFixed(2);
    };
    return lattice(data.box, data.names, data.names, textOf);
  };
  const dots = (data) => {
    const at = (index) => {
      const dot = data.dots[index];
      return dot ? { at: index, text: dot[2], shape: { cx: dot[0], cy: dot[1], r: 6 } } : null;
    };
    // Stepping goes from left to right.
    const order = data.dots.map((_, index) => index).sort((a, b) => data.dots[a][0] - data.dots[b][0]);
    return {
      shape: "circle",
      find: (x, y) => {
        let best = -1;
        let least = REACH * REACH;
        data.dots.forEach(([a, b], index) => {
          const far = (a - x) ** 2 + (b - y) ** 2;
          if (far < least) [best, least] = [index, far];
        });
        return at(best);
      },
      step: (now, dx, dy) => at(order[Math.max(0, Math.min(order.indexOf(now ?? order[0]) + (dx || dy), order.length - 1))]),
    };
  };
  const REGIONS = { cells, correlations, dots };
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  const listen = (svg, data, label) => {
    const region = REGIONS[data.kind](data);
    region.mark = document.createElementNS(SVG, region.shape);
    region.mark.setAttribute("class", "mark");
    region.mark.setAttribute("visibility", "hidden");
    const area = document.createElementNS(SVG, "rect");
    const [x, y, width, height] = data.box;
    const pad = data.kind === "dots" ? 4 : 0;
    const shape = { x: x - pad, y: y - pad, width: width + 2 * pad, height: height + 2 * pad };
    for (const [name, value] of Object.entries(shape)) area.setAttribute(name, value);
    area.setAttribute("class", "area");
    area.setAttribute("tabindex", "0");
    area.setAttribute("role", "application");
    area.setAttribute("aria-label", `${label}: values, by arrow keys`);
    svg.append(region.mark, area);
    const under = (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      show(region, region.find(point.x, point.y));
    };
    area.addEventListener("pointermove", under);
    area.addEventListener("pointerdown", under);
    area.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    area.addEventListener("blur", hide);
    area.addEventListener("focus", () => area.matches(":focus-visible") && show(region, region.step(region.at, 0, 0)));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") hide();
      const step = STEPS[event.key];
      if (!step) return;
      event.preventDefault();
      show(region, region.step(region.at, ...step));
    });
  };
  for (const values of document.querySelectorAll("script.values")) {
    const svg = document.querySelector(`#${CSS.escape(values.dataset.figure)} svg`);
    for (const data of JSON.parse(values.textContent)) listen(svg, data, svg.getAttribute("aria-label"));
  }
  document.addEventListener("scroll", hide, { capture: true, passive: true });
  document.addEventListener("pointerdown", (event) => event.target.closest(".area") || hide());
})();
