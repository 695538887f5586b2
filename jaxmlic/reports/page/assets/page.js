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
  const plural = (count) => `${count.toLocaleString("en")} class${count === 1 ? "" : "es"}`;
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
  const captioned = (text) => el("caption", {}, el("span", {}, text));
  function table(caption, head, rows) {
    return el("table", {}, captioned(caption),
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
      const counted = all.filter((c) => runs.some((r) => data.runs[r].AP[c] !== null));
      const order = counted.sort((a, b) => (data.runs[lead].AP[a] ?? 2) - (data.runs[lead].AP[b] ?? 2));
      const own = order.slice(0, MOST_BARS);
      const labels = unique(own.map((c) => safe(short(name(c)))));
      const traces = runs.map((r) => ({
        type: "bar", orientation: "h", y: labels, x: own.map((c) => data.runs[r].AP[c] === null ? null : 100 * data.runs[r].AP[c]),
        name: safe(data.runs[r].name), marker: { color: colour(r) }, hovertemplate: "%{y}: %{x:.1f}<extra></extra>",
      }));
      const without = all.length - counted.length;
      const which = (order.length > own.length ? `, the ${own.length} lowest of ${order.length} classes` : "")
        + (without ? ` (${plural(without)} without one: too few images)` : "");
      if (own.length) plot(box, `Average precision of the classes in percent${which}`, traces,
        { height: 120 + own.length * Math.max(18, 12 * runs.length), showlegend: runs.length > 1, barmode: "group", xaxis: { range: [0, 101], title: { text: "AP (%)" } }, yaxis: { type: "category", autorange: "reversed", showgrid: false } });
      else nothing(box, "Too few images have these classes: no average precision.");
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
      captioned(all.length > rows.length ? `${rows.length} of ${all.length} classes` : plural(rows.length)),
      el("thead", {}, el("tr", {}, head)),
      el("tbody", {}, rows.map((c) => el("tr", {}, columns.map(([, get], i) => {
        const cell = get(c);
        return i === 0 ? el("th", { scope: "row" }, cell) : el("td", {}, i === 1 ? cell.toLocaleString("en") : percent(cell, 2));
      })))));
  }

  // The class of parts that show one: the chosen one, else the one of most images that matches.
  const detail = () => (state.one >= 0 ? state.one : matching().sort((a, b) => data.positives[b] - data.positives[a])[0]);

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

  // The classes that are most often there with a chosen one.
  function company(classes, graph) {
    const own = classes.indexOf(state.one);
    if (own < 0) return [];
    const share = (k) => Math.max(graph.data[own][k] ?? 0, graph.predicted[own][k] ?? 0);
    return classes.map((c, k) => [c, share(k)]).sort(([, a], [, b]) => b - a).slice(0, 8).map(([c]) => c);
  }

  function drawGraph() {
    const box = clear("plot-graph"), classes = data.graph_classes;
    const runs = shownRuns(), first = runs.slice(0, 1).map((r) => [r, "data"]);
    const parts = {
      data: first, beside: [...first, ...runs.map((r) => [r, "predicted"])],
      predicted: runs.map((r) => [r, "predicted"]), difference: runs.map((r) => [r, "difference"]),
    }[$("graph-form").value];
    for (const [r, form] of parts) {
      const graph = data.runs[r].graph;
      const matrix = form === "difference"
        ? graph.data.map((row, i) => row.map((v, j) => v === null || graph.predicted[i][j] === null ? null : graph.predicted[i][j] - v))
        : graph[form];
      const wanted = new Set(shownClasses());
      const pairs = graph.pairs.filter(([i, j]) => wanted.has(i) || wanted.has(j));
      const [own, cells] = cut(classes, matrix, [...pairs.flatMap(([i, j]) => [i, j]), ...company(classes, graph)]);
      const who = form === "data" ? "Labels of the data" : form === "predicted" ? `${data.runs[r].name}: predictions` : `${data.runs[r].name}: predictions minus data`;
      const part = classes.length < data.classes.length ? `, the ${classes.length} classes with most company` : "";
      const numbers = { caption: "Pairs whose number of images differs most", head: ["pair", "in the data", "predicted"], rows: pairs.map(([i, j, a, b]) => [`${name(i)}, ${name(j)}`, a, b]) };
      const range = form === "difference" ? { zmin: -1, zmax: 1 } : { zmin: 0, zmax: 1 };
      if (own.length > 1) heat(box, `${who}${part}`, own, cells, form === "difference" ? "RdBu" : "Viridis", numbers, range);
      else box.append(el("figure", {}, el("figcaption", {}, `${who}: fewer than two of the ${classes.length} classes of the heat map are chosen`), details(numbers)));
    }
    if (!box.children.length) nothing(box, "No run is chosen.");
  }

  const value = (key) => getComputedStyle(document.documentElement).getPropertyValue(key).trim();
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon"];
  // [community, its classes], the largest first; those of one class together under -1, last.
  function groups() {
    const found = new Map();
    data.communities.forEach((group, c) => found.set(group, [...(found.get(group) ?? []), c]));
    const several = [...found].filter(([, own]) => own.length > 1).sort(([a], [b]) => a - b);
    const alone = [...found.values()].filter((own) => own.length === 1).flat();
    return alone.length ? [...several, [-1, alone]] : several;
  }
  // Where each name stands beside its point so that it covers few points and names; in pixels of a plot of this size.
  function textPlaces(classes, { x, y }, width, height) {
    const span = (values) => Math.max(...values) - Math.min(...values) || 1;
    const scale = Math.min(width / span(x), height / span(y));
    const boxes = classes.map((c) => [x[c] * scale - 5, x[c] * scale + 5, y[c] * scale - 5, y[c] * scale + 5]);
    const shared = (a, b) => Math.max(0, Math.min(a[1], b[1]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[2], b[2]));
    const found = new Map();
    classes.forEach((c) => {
      const wide = 6.2 * short(name(c)).length, high = 13, [px, py] = [x[c] * scale, y[c] * scale];
      const left = { left: px - wide - 6, center: px - wide / 2, right: px + 6 }, low = { top: py + 5, middle: py - high / 2, bottom: py - high - 5 };
      const spots = ["top center", "bottom center", "middle right", "middle left", "top right", "top left", "bottom right", "bottom left"].map((spot) => {
        const [v, h] = spot.split(" "), own = [left[h], left[h] + wide, low[v], low[v] + high];
        return [spot, own, boxes.reduce((sum, other) => sum + shared(own, other), 0)];
      });
      const [spot, own] = spots.reduce((a, b) => (b[2] < a[2] ? b : a));
      boxes.push(own);
      found.set(c, spot);
    });
    return found;
  }
  function drawEmbeddings() {
    const box = clear("plot-embeddings"), key = $("table").value;
    const colouring = $("colouring").value, text = value("--text");
    const classes = shownClasses(), named = classes.length <= 60, marked = new Set(classes);
    for (const r of shownRuns()) {
      const own = data.runs[r].embeddings[key];
      if (!own) continue;
      const places = named ? textPlaces(classes, own, Math.min(720, box.clientWidth) - 90, 330) : new Map();
      const trace = (members, marker, more) => ({
        x: members.map((c) => own.x[c]), y: members.map((c) => own.y[c]), mode: named ? "markers+text" : "markers", type: "scatter",
        text: members.map((c) => (marked.has(c) ? safe(short(name(c))) : "")), textposition: members.map((c) => places.get(c) ?? "top center"),
        textfont: { size: 11, color: text }, hoverinfo: "text",
        hovertext: members.map((c) => `${safe(name(c))}: AP ${percent(data.runs[r].AP[c])}, community ${data.communities[c] + 1}`),
        marker: { size: 9, opacity: members.map((c) => (marked.has(c) ? 1 : 0.25)), line: { width: 0.5, color: "#888" }, ...marker }, ...more,
      });
      const byAP = (all) => trace(all, { color: all.map((c) => (data.runs[r].AP[c] === null ? null : 100 * data.runs[r].AP[c])), colorscale: "Viridis", cmin: 0, cmax: 100, colorbar: { title: { text: "AP" }, thickness: 10, len: 0.7 } }, { showlegend: false });
      const traces = colouring === "AP" ? [byAP([...data.classes.keys()])] : groups().map(([group, members]) => group < 0
        ? trace(members, { color: "#8a8f96" }, { name: "alone" })
        : trace(members, { color: COLOURS[group % COLOURS.length], symbol: SYMBOLS[Math.floor(group / COLOURS.length + group) % SYMBOLS.length] },
          { name: safe(members.slice(0, 3).map((c) => short(name(c), 14)).join(", ") + (members.length > 3 ? ", …" : "")), showlegend: group < 8 }));
      const rows = classes.map((c) => [name(c), own.x[c], own.y[c], data.communities[c] + 1, percent(data.runs[r].AP[c])]);
      const label = `${data.runs[r].name}: ${key} (${own.caption})`;
      plot(box, label, traces,
        { height: 480, showlegend: colouring !== "AP", xaxis: { title: { text: "first direction" }, automargin: false }, yaxis: { title: { text: "second direction" }, automargin: false, scaleanchor: "x" } },
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
    const unit = data.runs[r].unit, image = data.runs[r].gallery.images[index], form = $("overlay").value, digits = unit === "logit" ? 1 : 2;
    const words = (labels) => labels.map(name).join(", ") || "none";
    const maps = { ...(image.maps || {}), ...((image.class_maps || {})[c] || {}) };
    const map = maps[form];
    const alt = `Photograph ${image.id}: labels ${words(image.truth)}; ${name(c)} ${kind}, ${unit} ${score}${map ? `; ${form}${where(map)}` : ""}`;
    const box = el("li", { class: "card" });
    if (image.src) box.append(photo(image.src, alt, map));
    box.append(el("p", {}, el("strong", {}, `${image.id}`), ` ${name(c)}, ${unit} ${score.toFixed(digits)}`));
    box.append(el("p", {}, "labels: ", words(image.truth)));
    for (const [title, kept] of [["predicted: ", 1], ["next: ", 0]]) {
      const own = image.top.filter(([, , predicted]) => predicted === kept);
      if (own.length || kept) box.append(el("p", {}, title, own.length ? own.flatMap(([label, value, predicted, truth], i) => [i ? ", " : "",
        el("span", { class: truth === 1 && predicted ? "right" : truth >= 0 && truth !== predicted ? "wrong" : "plain" }, `${name(label)} ${value.toFixed(digits)} ${["✗", "✓"][truth] ?? "?"}`)]) : "none"));
    }
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
