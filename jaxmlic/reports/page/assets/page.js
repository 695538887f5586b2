"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const COLOURS = ["#4c78a8", "#e07b16", "#3f8f3c", "#d1443f", "#8f6bb0", "#9d6b52", "#c9639b", "#6f7780"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const MOST_BARS = 40, MOST_ROWS = 1000;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const state = { find: "", one: -1, runs: new Set(data.runs.keys()), sort: 1, down: false };

  // Elements are made of text nodes alone, so that no name can be read as HTML.
  function el(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (value !== null) made.setAttribute(key, value);
    }
    made.append(...children.flat().filter((child) => child !== null));
    return made;
  }
  // Plotly reads a few HTML tags and entities in text.
  const safe = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const short = (text, most = 24) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
  const percent = (value, digits = 1) => (value === null ? "-" : (100 * value).toFixed(digits));
  const name = (c) => data.classes[c];
  const colour = (r) => COLOURS[r % COLOURS.length];
  const dash = (r) => DASHES[Math.floor(r / COLOURS.length + r) % DASHES.length];
  const shownRuns = () => [...data.runs.keys()].filter((r) => state.runs.has(r));
  const matching = () => {
    const wanted = state.find.trim().toLowerCase();
    return [...data.classes.keys()].filter((c) => !wanted || name(c).toLowerCase().includes(wanted));
  };
  const shownClasses = () => (state.one >= 0 ? [state.one] : matching());
  const unique = (names) => {
    // Axes of names: equal short names would fall onto one another.
    const seen = new Map();
    return names.map((text) => {
      const count = (seen.get(text) || 0) + 1;
      seen.set(text, count);
      return count > 1 ? `${text} (${count})` : text;
    });
  };

  function layout(more) {
    const axis = { gridcolor: value("--line"), linecolor: value("--line"), zerolinecolor: value("--line"), automargin: true };
    const own = {
      paper_bgcolor: value("--back"), plot_bgcolor: value("--back"), font: { color: value("--text"), size: 12 },
      margin: { l: 50, r: 10, t: 20, b: 45 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      hoverlabel: { bgcolor: value("--panel"), font: { color: value("--text") } }, ...more,
    };
    for (const key of ["xaxis", "yaxis"]) own[key] = { ...axis, ...(more[key] || {}) };
    return own;
  }

  // A figure with a name and its numbers as a table: what a reader without the picture has.
  function plot(parent, label, traces, more, numbers) {
    const box = el("div", { role: "img", "aria-label": label });
    parent.append(el("figure", {}, el("figcaption", {}, label), box, numbers ? details(numbers) : null));
    const config = { responsive: true, displaylogo: false, displayModeBar: false };
    waiting.push(() => Plotly.newPlot(box, traces, layout(more), config));
  }
  // Plots take the width that their figure has beside all others of its part.
  const waiting = [];
  function show(part) {
    part();
    waiting.splice(0).forEach((draw) => draw());
  }
  function details({ caption, head, rows }) {
    const box = el("details", {}, el("summary", {}, "Numbers of this picture"));
    box.addEventListener("toggle", () => {
      if (box.open && box.children.length === 1)
        box.append(el("div", { class: "wide tall", role: "region", "aria-label": caption, tabindex: "0" }, table(caption, head, rows)));
    });
    return box;
  }
  function table(caption, head, rows) {
    return el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) => i ? el("td", {}, String(cell)) : el("th", { scope: "row" }, String(cell)))))));
  }
  function clear(id) {
    const box = $(id);
    for (const own of box.querySelectorAll(".js-plotly-plot")) Plotly.purge(own);
    box.replaceChildren();
    return box;
  }
  const nothing = (box, text) => box.append(el("p", {}, text));

  function drawLearning() {
    const box = clear("plot-learning"), metric = $("metric").value;
    const own = shownRuns().filter((r) => data.runs[r].curves[metric]);
    if (!own.length) return nothing(box, "No learning curve: the runs shown have no logged numbers.");
    const traces = own.map((r) => {
      const [x, y] = data.runs[r].curves[metric];
      return { x, y, name: safe(data.runs[r].name), mode: x.length < 60 ? "lines+markers" : "lines", line: { color: colour(r), dash: dash(r) }, marker: { size: 5 } };
    });
    const rows = own.flatMap((r) => data.runs[r].curves[metric][0].map((x, i) => [data.runs[r].name, x, data.runs[r].curves[metric][1][i]]));
    plot(box, `${metric} against the step`, traces,
      { height: 340, showlegend: true, xaxis: { title: { text: "step" } }, yaxis: { title: { text: safe(metric) } } },
      { caption: metric, head: ["run", "step", "value"], rows });
  }

  function drawClasses() {
    const box = clear("plot-classes"), runs = shownRuns(), all = shownClasses();
    const lead = runs[0];
    if (lead === undefined || !all.length) nothing(box, "No run or no class is chosen.");
    else {
      const order = [...all].sort((a, b) => (data.runs[lead].AP[a] ?? 2) - (data.runs[lead].AP[b] ?? 2));
      const own = order.slice(0, MOST_BARS).reverse();
      const labels = unique(own.map((c) => safe(short(name(c)))));
      const traces = runs.map((r) => ({
        type: "bar", orientation: "h", y: labels, x: own.map((c) => data.runs[r].AP[c] === null ? null : 100 * data.runs[r].AP[c]),
        name: safe(data.runs[r].name), marker: { color: colour(r) }, hovertemplate: "%{y}: %{x:.1f}<extra></extra>",
      }));
      const which = order.length > own.length ? `, the ${own.length} lowest of ${order.length} classes` : "";
      plot(box, `Average precision of the classes in percent${which}`, traces,
        { height: 120 + own.length * Math.max(18, 12 * runs.length), showlegend: runs.length > 1, barmode: "group", xaxis: { range: [0, 100] }, yaxis: { type: "category" } });
    }
    const columns = [["class", (c) => name(c)], ["positives", (c) => data.positives[c]]];
    for (const r of runs) for (const [title, key] of [["AP", "AP"], ["precision", "P"], ["recall", "R"]])
      columns.push([`${title}${data.runs.length > 1 ? `, ${data.runs[r].name}` : ""}`, (c) => data.runs[r][key][c]]);
    state.sort = Math.min(state.sort, columns.length - 1);
    const value = columns[state.sort][1], sign = state.down ? -1 : 1;
    const rows = [...all].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
    }).slice(0, MOST_ROWS);
    const sorted = (i) => (i === state.sort ? (state.down ? "descending" : "ascending") : "none");
    const head = columns.map(([title], i) => el("th", { scope: "col", "aria-sort": sorted(i) }, el("button", {
      type: "button", "data-column": i, onclick: () => {
        state.down = i === state.sort ? !state.down : i > 0;
        state.sort = i;
        show(drawClasses);
        document.querySelector(`#table-classes [data-column="${i}"]`).focus();
      } }, title, i === state.sort ? (state.down ? " ▼" : " ▲") : "")));
    $("table-classes").replaceChildren(
      el("caption", {}, all.length > rows.length ? `${rows.length} of ${all.length} classes` : `${rows.length} classes`),
      el("thead", {}, el("tr", {}, head)),
      el("tbody", {}, rows.map((c) => el("tr", {}, columns.map(([, get], i) => {
        const cell = get(c);
        return i === 0 ? el("th", { scope: "row" }, cell) : el("td", {}, i === 1 ? cell.toLocaleString("en") : percent(cell, 2));
      })))));
  }

  // The class of parts that show one: the chosen one, else the first that matches and has a positive.
  const detail = () => (state.one >= 0 ? state.one : matching().find((c) => data.positives[c] > 0) ?? matching()[0]);

  function drawCurves() {
    const box = clear("plot-curves"), c = detail();
    const own = shownRuns().filter((r) => c !== undefined && data.runs[r].pr[c]);
    if (!own.length) return nothing(box, c === undefined ? "No class matches." : `${name(c)} has no positive, or no run is chosen.`);
    const curve = (r) => data.runs[r].pr[c].map((values) => values.map((value) => value / 1000));
    const traces = own.map((r) => {
      const [x, y] = curve(r);
      return { x, y, name: `${safe(data.runs[r].name)} (AP ${percent(data.runs[r].AP[c])})`, mode: x.length < 30 ? "lines+markers" : "lines", line: { color: colour(r), dash: dash(r) } };
    });
    const rows = own.flatMap((r) => { const [x, y] = curve(r); return x.map((value, i) => [data.runs[r].name, value.toFixed(3), y[i].toFixed(3)]); });
    plot(box, `Precision against recall of ${name(c)}${state.one < 0 ? " (choose a class above for another)" : ""}`, traces,
      { height: 380, showlegend: true, xaxis: { title: { text: "recall" }, range: [0, 1.02] }, yaxis: { title: { text: "precision" }, range: [0, 1.02] } },
      { caption: `Precision and recall of ${name(c)}`, head: ["run", "recall", "precision"], rows });
  }

  function heat(box, label, classes, matrix, scale, numbers, range) {
    const labels = unique(classes.map((c) => safe(short(name(c), 18))));
    const size = Math.max(320, 110 + 15 * classes.length);
    plot(box, label, [{
      type: "heatmap", z: matrix, x: labels, y: labels, colorscale: scale, ...range, hoverongaps: false,
      hovertemplate: "%{y}, %{x}: %{z:.3f}<extra></extra>", colorbar: { thickness: 10, len: 0.7 },
    }], { height: size, xaxis: { type: "category", tickangle: -90, tickfont: { size: 10 }, showgrid: false }, yaxis: { type: "category", autorange: "reversed", tickfont: { size: 10 }, showgrid: false } }, numbers);
  }
  // Rows and columns of a matrix whose class matches the filter, with the partners of a chosen one.
  function cut(classes, matrix, partners) {
    const wanted = new Set(shownClasses());
    if (state.one >= 0) partners.forEach((c) => wanted.add(c));
    const kept = classes.map((c, i) => i).filter((i) => wanted.has(classes[i]));
    return [kept.map((i) => classes[i]), kept.map((i) => kept.map((j) => matrix[i][j]))];
  }

  function drawConfusion() {
    const box = clear("plot-confusion");
    for (const r of shownRuns()) {
      const { classes, matrix, beside } = data.runs[r].confusion;
      const [own, cells] = cut(classes, matrix, state.one < 0 ? [] : beside[state.one].map(([c]) => c));
      const rows = shownClasses().filter((c) => beside[c].length).slice(0, MOST_ROWS)
        .map((c) => [name(c), data.positives[c], beside[c].map(([j, n]) => `${name(j)} ${n}`).join(", ")]);
      const numbers = { caption: `${data.runs[r].name}: labels predicted wrongly where the class is true, with images`, head: ["class", "images", "predicted beside it"], rows };
      const part = classes.length < data.classes.length ? `, the ${classes.length} most confused classes` : "";
      const label = `${data.runs[r].name}: labels predicted wrongly where others are true${part}`;
      if (own.length) heat(box, label, own, cells, "Viridis", numbers, { zmin: 0, zmax: Math.max(0.05, ...cells.flat().filter((v) => v !== null)) });
      else box.append(el("figure", {}, el("figcaption", {}, `${data.runs[r].name}: the class is none of the ${classes.length} most confused ones; its numbers:`), details(numbers)));
    }
    if (!box.children.length) nothing(box, "No run is chosen.");
  }

  function drawGraph() {
    const box = clear("plot-graph"), form = $("graph-form").value, classes = data.graph_classes;
    for (const r of form === "data" ? shownRuns().slice(0, 1) : shownRuns()) {
      const graph = data.runs[r].graph;
      const matrix = form === "difference"
        ? graph.data.map((row, i) => row.map((v, j) => v === null || graph.predicted[i][j] === null ? null : graph.predicted[i][j] - v))
        : graph[form];
      const wanted = new Set(shownClasses());
      const pairs = graph.pairs.filter(([i, j]) => wanted.has(i) || wanted.has(j));
      const [own, cells] = cut(classes, matrix, pairs.flatMap(([i, j]) => [i, j]));
      const who = form === "data" ? "Labels of the data" : form === "predicted" ? `${data.runs[r].name}: predictions` : `${data.runs[r].name}: predictions minus data`;
      const part = classes.length < data.classes.length ? `, the ${classes.length} classes with most company` : "";
      const numbers = { caption: "Pairs whose number of images differs most", head: ["pair", "in the data", "predicted"], rows: pairs.map(([i, j, a, b]) => [`${name(i)}, ${name(j)}`, a, b]) };
      const range = form === "difference" ? { zmin: -1, zmax: 1 } : { zmin: 0, zmax: 1 };
      if (own.length) heat(box, `${who}${part}`, own, cells, form === "difference" ? "RdBu" : "Viridis", numbers, range);
      else box.append(el("figure", {}, el("figcaption", {}, `${who}: the class is not in the heat map`), details(numbers)));
    }
    if (!box.children.length) nothing(box, "No run is chosen.");
  }

  const value = (key) => getComputedStyle(document.documentElement).getPropertyValue(key).trim();
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon"];
  function drawEmbeddings() {
    const box = clear("plot-embeddings"), key = $("table").value;
    const colouring = $("colouring").value, text = value("--text");
    for (const r of shownRuns()) {
      const own = data.runs[r].embeddings[key];
      if (!own) continue;
      const classes = shownClasses(), named = classes.length <= 60;
      const marked = new Set(classes), all = [...data.classes.keys()];
      const group = all.map((c) => data.communities[c]);
      const byAP = { color: data.runs[r].AP.map((v) => (v === null ? null : 100 * v)), colorscale: "Viridis", cmin: 0, cmax: 100, colorbar: { title: { text: "AP" }, thickness: 10, len: 0.7 } };
      const byGroup = { color: group.map((g) => COLOURS[g % COLOURS.length]), symbol: group.map((g) => SYMBOLS[Math.floor(g / COLOURS.length + g) % SYMBOLS.length]) };
      const trace = {
        x: own.x, y: own.y, mode: named ? "markers+text" : "markers", type: "scatter",
        text: all.map((c) => (marked.has(c) ? safe(short(name(c))) : "")), textposition: "top center", textfont: { size: 10, color: text },
        hovertext: all.map((c) => `${safe(name(c))}: AP ${percent(data.runs[r].AP[c])}, community ${group[c] + 1}`), hoverinfo: "text",
        marker: { size: 9, opacity: all.map((c) => (marked.has(c) ? 1 : 0.15)), line: { width: 0.5, color: "#888" }, ...(colouring === "AP" ? byAP : byGroup) },
      };
      const rows = classes.map((c) => [name(c), own.x[c], own.y[c], group[c] + 1, percent(data.runs[r].AP[c])]);
      const label = `${data.runs[r].name}: ${key} (${own.caption})`;
      plot(box, label, [trace],
        { height: 460, showlegend: false, xaxis: { title: { text: "first direction" } }, yaxis: { title: { text: "second direction" } } },
        { caption: label, head: ["class", "first", "second", "community", "AP (%)"], rows });
    }
    if (!box.children.length) nothing(box, "The runs shown have no vectors of labels.");
  }

  const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
  function drawMap(canvas, [rows, columns, text]) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    canvas.width = columns;
    canvas.height = rows;
    const pixels = new ImageData(columns, rows);
    bytes.forEach((value, i) => {
      const at = (value / 255) * (HEAT.length - 1), low = Math.min(Math.floor(at), HEAT.length - 2), t = at - low;
      for (let k = 0; k < 3; k++) pixels.data[4 * i + k] = HEAT[low][k] + t * (HEAT[low + 1][k] - HEAT[low][k]);
      pixels.data[4 * i + 3] = 50 + (150 * value) / 255;
    });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }
  const where = (map) => !map ? "" : map[3] ? `, strongest ${map[3][1]} % from the left and ${map[3][0]} % from the top` : ", the same everywhere";
  function photo(src, alt, map) {
    const canvas = map ? el("canvas", { "aria-hidden": "true" }) : null;
    if (map) drawMap(canvas, map);
    return el("div", { class: "photo" }, el("img", { src, alt }), canvas);
  }

  function card(r, c, index, score, kind) {
    const unit = data.runs[r].unit, image = data.runs[r].gallery.images[index], form = $("overlay").value;
    const words = (labels) => labels.map(name).join(", ") || "none";
    const maps = { ...(image.maps || {}), ...((image.class_maps || {})[c] || {}) };
    const map = maps[form];
    const alt = `Photograph ${image.id}: labels ${words(image.truth)}; ${name(c)} ${kind}, ${unit} ${score}${map ? `; ${form}${where(map)}` : ""}`;
    const box = el("li", { class: "card" });
    if (image.src) box.append(photo(image.src, alt, map));
    box.append(el("p", {}, el("strong", {}, `${image.id}`), ` ${unit} ${score}`));
    box.append(el("p", {}, "labels: ", words(image.truth)));
    box.append(el("p", {}, `highest by ${unit}: `, image.top.flatMap(([label, value, predicted, truth], i) => [i ? ", " : "",
      el("span", { class: ["false", "true"][truth] ?? "unknown" }, `${name(label)} ${value.toFixed(1)} ${["✗", "✓"][truth] ?? "?"}${predicted ? "" : " (not predicted)"}`)])));
    if (image.path) box.append(el("p", {}, "path: ", image.path.map(name).join(" → ") || "END at once"));
    if (image.steps) {
      const steps = image.steps.map(([label, probability, own], t) => {
        const word = label < 0 ? "END" : name(label);
        return el("li", {}, image.src ? photo(image.src, `Step ${t + 1}, ${word}${where(own)}`, own) : null, `${t + 1}: ${word} ${probability.toFixed(2)}`);
      });
      box.append(el("details", {}, el("summary", {}, `${steps.length} steps`), el("ol", { class: "steps" }, steps)));
    }
    return box;
  }

  function drawGallery() {
    const box = clear("gallery"), c = detail();
    if (c === undefined) return nothing(box, "No class matches.");
    for (const r of shownRuns()) {
      const gallery = data.runs[r].gallery;
      box.append(el("h3", {}, `${data.runs[r].name}: ${name(c)}${state.one < 0 ? " (choose a class above for another)" : ""}`));
      for (const [key, title, kind, none] of [
        ["wrong", "Wrong: predicted, not in the labels", "predicted wrongly", "No false positive."],
        ["missed", "Missed: in the labels, not predicted", "missed", "No false negative."]]) {
        box.append(el("h4", {}, title));
        const own = gallery[key][c];
        box.append(own.length ? el("ul", { class: "row" }, own.map(([index, score]) => card(r, c, index, score, kind))) : el("p", {}, none));
      }
    }
    if (!box.children.length) nothing(box, "No run is chosen.");
  }

  function status() {
    const count = state.one >= 0 ? 1 : matching().length;
    $("status").textContent = `${count} of ${data.classes.length} classes, ${state.runs.size} of ${data.runs.length} runs`;
  }
  const PARTS = [drawLearning, drawClasses, drawCurves, drawConfusion, drawGallery, drawGraph, drawEmbeddings];
  const draw = () => { PARTS.forEach(show); status(); };

  function options(select, entries, chosen) {
    select.replaceChildren(...entries.map(([value, text]) => el("option", { value, ...(value === chosen ? { selected: "" } : {}) }, text)));
  }
  function fillClasses() {
    const own = matching();
    if (!own.includes(state.one)) state.one = -1;
    options($("class"), [[-1, `all ${own.length}`], ...own.map((c) => [c, short(name(c), 60)])], state.one);
  }

  function begin() {
    data.runs.forEach((run, r) => {
      const box = el("input", { type: "checkbox", checked: "", onchange: () => { box.checked ? state.runs.add(r) : state.runs.delete(r); draw(); } });
      $("runs").append(el("label", {}, box, el("span", { class: "swatch", style: `background:${colour(r)}`, "aria-hidden": "true" }), run.name));
    });
    const metrics = [...new Set(data.runs.flatMap((run) => Object.keys(run.curves)))].sort();
    options($("metric"), metrics.map((m) => [m, m]), ["val/mAP", "train/loss"].find((m) => metrics.includes(m)));
    const tables = [...new Set(data.runs.flatMap((run) => Object.keys(run.embeddings)))];
    options($("table"), tables.map((t) => [t, t]), tables[0]);
    const forms = new Set();
    for (const run of data.runs) for (const image of run.gallery.images) {
      Object.values(image.class_maps || {}).forEach((maps) => Object.keys(maps).forEach((form) => forms.add(form)));
      Object.keys(image.maps || {}).forEach((form) => forms.add(form));
    }
    options($("overlay"), [["", "none"], ...[...forms].map((form) => [form, form])], forms.has("Grad-CAM") ? "Grad-CAM" : "");
    for (const [id, empty] of [["metric", !metrics.length], ["table", !tables.length], ["colouring", !tables.length], ["overlay", !forms.size]]) $(id).parentElement.hidden = empty;
    fillClasses();
    let typing = 0;
    $("find").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => { state.find = $("find").value; fillClasses(); draw(); }, 150);
    });
    $("class").addEventListener("change", () => { state.one = Number($("class").value); draw(); });
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    const parts = [["metric", drawLearning], ["table", drawEmbeddings], ["colouring", drawEmbeddings], ["overlay", drawGallery], ["graph-form", drawGraph]];
    for (const [id, part] of parts) $(id).addEventListener("change", () => show(part));
    dark.addEventListener("change", draw);
    draw();
    document.documentElement.dataset.ready = "";
  }
  begin();
})();
