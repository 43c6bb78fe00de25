// Draws the pictures, filters the findings, switches the colours. Text out of files is only ever set as text.
"use strict";
(() => {
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));
  const root = document.documentElement;
  const told = document.getElementById("told");
  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");

  // ---- colours

  const themeButton = document.getElementById("theme");
  let printing = false;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const showTheme = () => themeButton.setAttribute("aria-pressed", String(isDark()));
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
    drawAgain();
  });
  prefersDark.addEventListener("change", () => {
    showTheme();
    drawAgain();
  });
  showTheme();

  // ---- pictures

  const SIDE = { left: 64, right: 16, top: 12 };
  const NARROWEST = 13; // pixels of a layer whose name is shown
  const CROWDED = 6; // where there are too many layers for every name
  const MANY = 100;
  const WIDEST = 260;
  const COLOUR_BAR = 70;
  const SMALL = 11; // pixels of the letters of a name
  const drawn = new Map(); // the element of a picture that was drawn → its picture
  let wanted = ""; // part of a layer's name

  const number = (value) => (value === null ? "not a number" : String(Number(value.toPrecision(4))));
  // plotly.js reads a few HTML tags and entities in texts: https://plotly.com/chart-studio-help/adding-HTML-and-links-to-charts/
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const hover = (...lines) => lines.map(plain).join("<br>");
  const folded = (text) => (text.length <= 60 ? [text] : text.match(/.{1,60}/gsu));
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  const chosen = (picture) => {
    const places = picture.names.map((_, place) => place);
    const fitting = places.filter((place) => picture.names[place].toLowerCase().includes(wanted));
    return fitting.length ? fitting : places;
  };

  const axis = (title) => ({
    title: { text: title, font: { size: 12 }, standoff: 8 },
    gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, fixedrange: true, tickfont: { size: 11 }, ticks: "",
    ticklabeloverflow: "allow", // they fit, and measuring each of them is slow
    exponentformat: "power", automargin: false, nticks: 6,
  });

  const tick = (value) => (value >= 1e-3 && value <= 1e4 ? String(value) : `10<sup>${Math.round(Math.log10(value))}</sup>`);

  // Ticks of a logarithmic axis that spans some powers of ten, or less than one.
  const logarithmic = (values) => {
    const known = values.filter((value) => value > 0);
    if (!known.length) return { type: "linear", range: [0, 1], showticklabels: false };
    const low = Math.log10(Math.min(...known));
    const high = Math.log10(Math.max(...known));
    const air = Math.max(0.04 * (high - low), 0.03);
    const range = { type: "log", range: [low - air, high + air] };
    if (high - low < 0.3) return { type: "linear", range: range.range.map((end) => 10 ** end), tickformat: ".3~g" };
    const step = Math.max(1, Math.ceil((high - low) / 6));
    const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, at) => Math.floor(low) + at);
    const ticks = high - low < 1.8
      ? powers.flatMap((power) => [1, 2, 5].map((digit) => Number(`${digit}e${power}`)))
      : powers.filter((power) => power % step === 0).map((power) => Number(`1e${power}`));
    return { ...range, tickvals: ticks, ticktext: ticks.map(tick) };
  };

  const pen = document.createElement("canvas").getContext("2d");
  const lengthOf = (label) => {
    pen.font = `${SMALL}px ${getComputedStyle(document.body).fontFamily}`;
    return pen.measureText(label).width;
  };

  const common = (picture, places, room, height) => {
    const least = places.length > MANY ? CROWDED : NARROWEST;
    const inside = room - SIDE.left - SIDE.right;
    const width = Math.min(Math.max(inside, places.length * least), Math.max(places.length * WIDEST, 240));
    const column = width / places.length;
    const labels = places.map((place) => picture.labels[place]);
    const longest = Math.max(...labels.map(lengthOf));
    const flat = longest < column - 8;
    const step = Math.ceil(NARROWEST / column);
    const foot = (flat ? 18 : longest) + 14;
    return {
      width: Math.round(width + SIDE.left + SIDE.right),
      height: Math.round(height + SIDE.top + foot),
      margin: { l: SIDE.left, r: SIDE.right, t: SIDE.top, b: Math.round(foot), pad: 0 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: false,
      hovermode: "closest", hoverdistance: 30,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("dim"), font: { color: colour("ink"), size: 12 }, align: "left" },
      xaxis: {
        range: [-0.5, places.length - 0.5], fixedrange: true, showgrid: false, zeroline: false, ticks: "",
        linecolor: colour("line"), tickangle: flat ? 0 : -90, tickfont: { size: SMALL, color: colour("dim") },
        ticklabeloverflow: "allow",
        tickvals: labels.map((_, index) => index).filter((index) => index % step === 0),
        ticktext: labels.filter((_, index) => index % step === 0).map(plain),
      },
    };
  };

  const line = (y, panel, dash, name) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, yref: panel, y0: y, y1: y, layer: "below",
    line: { color: colour(name), width: 1, dash },
  });

  const between = (middle, low, high) => ({
    type: "data", symmetric: false, width: 0,
    array: middle.map((value, at) => high[at] - value), arrayminus: middle.map((value, at) => value - low[at]),
  });

  const SYMBOLS = { none: "circle", warning: "triangle-up", error: "diamond" };
  const FLOOR = 1e-3; // of a logarithmic axis for what may be 0
  const depth = (picture, places, room) => {
    const layout = { ...common(picture, places, room, 380), shapes: [] };
    const traces = picture.panels.flatMap((panel, index) => {
      const suffix = index ? "2" : "";
      const pick = (list) => places.map((place) => list[place]);
      const values = pick(panel.values);
      const wide = Math.max(...values.filter((value) => value !== null)) > 10;
      const log = panel.logarithmic || wide;
      const held = (value) => (value === null || !log ? value : Math.max(value, panel.logarithmic ? value : FLOOR));
      const thick = panel.lower.length > 0;
      const [shown, low, high, lower, upper] = [values, ...[panel.low, panel.high, panel.lower, panel.upper].map((list) => (list.length ? pick(list) : []))].map((list) => list.map(held));
      const limits = panel.limits.map(({ value }) => value);
      const inRange = [...shown, ...low, ...high, ...lower, ...upper, ...limits, ...(log && !panel.logarithmic ? [] : [panel.reference])].filter((value) => value !== null);
      const spread = log ? logarithmic(inRange) : { rangemode: "tozero", range: [0, Math.max(...inRange) * 1.06 || 1] };
      layout[`yaxis${suffix}`] = { ...axis(panel.title), ...spread, domain: index ? [0, 0.46] : [0.54, 1] };
      if (index || !log) layout.shapes.push(line(panel.reference, `y${suffix}`, "solid", "dim"));
      for (const { value, mark } of panel.limits) layout.shapes.push(line(value, `y${suffix}`, "dash", `mark-${mark}`));
      const marks = pick(picture.marks);
      const x = places.map((_, at) => at);
      const dots = {
        type: "scatter", mode: "markers", x, y: shown, yaxis: `y${suffix}`,
        marker: {
          size: marks.map((mark) => (places.length > MANY ? 6 : 8) + (mark === "warning" ? 2 : 0)), symbol: marks.map((mark) => SYMBOLS[mark]),
          color: marks.map((mark) => colour(`mark-${mark}`)), opacity: 1, line: { width: 0 },
        },
        error_y: {
          ...between(shown, low, high), thickness: 1.2, color: colour("dim"),
        },
        hoverinfo: "text",
        hovertext: places.map((place) => hover(
          ...folded(picture.names[place]),
          `${panel.unit} ${number(panel.values[place])}; thin bar ${number(panel.low[place])} to ${number(panel.high[place])}`,
          ...(thick ? [`half of the channels ${number(panel.lower[place])} to ${number(panel.upper[place])}`] : []),
          `layer ${place + 1} of ${picture.names.length}`,
        )),
      };
      const halves = {
        type: "scatter", mode: "markers", x, y: shown, yaxis: `y${suffix}`, hoverinfo: "skip", opacity: 0.4,
        marker: { size: 1, color: colour("mark-none") },
        error_y: { ...between(shown, lower, upper), thickness: places.length > MANY ? 3 : 6, color: colour("mark-none") },
      };
      return thick ? [halves, dots] : [dots];
    });
    layout.xaxis.anchor = "y2";
    return { traces, layout };
  };

  const heat = (picture, places, room) => {
    const rows = Math.max(...places.map((place) => picture.cells[place].length));
    const z = [];
    const text = [];
    const names = places.map((place) => hover(...folded(picture.names[place]))); // once: there are many cells
    for (let row = 0; row < rows; row += 1) {
      const cells = places.map((place) => Math.floor((row * picture.cells[place].length) / rows));
      z.push(places.map((place, at) => picture.cells[place][cells[at]] ?? null));
      text.push(places.map((place, at) => {
        const edge = (cell) => Math.floor((cell * picture.channels[place]) / picture.cells[place].length);
        const [first, last] = [edge(cells[at]), edge(cells[at] + 1) - 1];
        const where = last > first ? `channels ${first} to ${last}, the farthest` : `channel ${first}`;
        return `${names[at]}<br>${where}: ${picture.unit} ${number(picture.cells[place][cells[at]] ?? null)}`;
      }));
    }
    const layout = common(picture, places, room - COLOUR_BAR, 320);
    layout.margin.r += COLOUR_BAR;
    layout.width += COLOUR_BAR;
    layout.yaxis = {
      ...axis("channel"), autorange: false, range: [rows - 0.5, -0.5], showgrid: false,
      tickvals: [-0.5, rows / 2 - 0.5, rows - 0.5], ticktext: ["first", "middle", "last"],
    };
    const colours = ["below", "below-half", "middle", "above-half", "above"];
    const trace = {
      type: "heatmap", z, text, hoverinfo: "text", zmin: -picture.end, zmax: picture.end, zsmooth: false,
      x: places.map((_, at) => at), xgap: places.length > MANY ? 0 : 1,
      colorscale: colours.map((name, at) => [at / (colours.length - 1), colour(name)]),
      colorbar: { title: { text: picture.unit, side: "top" }, thickness: 12, outlinewidth: 0, len: 1, nticks: 5, tickfont: { size: 11 }, x: 1, xpad: 14 },
    };
    return { traces: [trace], layout };
  };

  const spread = (picture, places, room) => {
    const layout = common(picture, places, room, 300);
    const several = picture.series.length > 1;
    const values = picture.series.flatMap((series) => places.flatMap((place) => series.quantiles[place]));
    layout.yaxis = { ...axis("variance"), ...logarithmic(values) };
    layout.shapes = [];
    const [bottom] = layout.yaxis.range;
    const floor = layout.yaxis.type === "log" ? 10 ** bottom : bottom;
    const column = (layout.width - SIDE.left - SIDE.right) / places.length;
    const aside = several ? Math.min(0.18, 12 / column) : 0;
    const traces = picture.series.flatMap((series, index) => {
      const paint = colour(several && index === 0 ? "before" : "mark-none");
      const x = places.map((_, at) => at + (index ? aside : -aside));
      const [low, lower, middle, upper, high] = [0, 1, 2, 3, 4].map((which) => places.map((place) => series.quantiles[place][which]));
      const bars = (from, to, thickness, opacity) => ({
        type: "scatter", mode: "markers", x, y: middle, hoverinfo: "skip", opacity, marker: { size: 1, color: paint },
        error_y: { ...between(middle, from, to), thickness, color: paint },
      });
      const dots = {
        type: "scatter", mode: "markers", x, y: middle,
        marker: { size: several ? 6 : 7, color: colour("card"), line: { color: paint, width: 2 } }, hoverinfo: "text",
        hovertext: places.map((place) => hover(
          ...folded(picture.names[place]),
          ...(several ? [series.name] : []),
          `median ${number(series.quantiles[place][2])}`,
          `half between ${number(series.quantiles[place][1])} and ${number(series.quantiles[place][3])}`,
          `all between ${number(series.quantiles[place][0])} and ${number(series.quantiles[place][4])}`,
          `${series.channels[place]} channels`,
          ...(series.left_out[place] ? [`${series.left_out[place]} not drawn: zero, negative or not finite`] : []),
        )),
      };
      const broken = places.map((place, at) => [place, x[at]]).filter(([place]) => series.left_out[place]);
      const crosses = {
        type: "scatter", mode: "markers", x: broken.map(([, where]) => where), y: broken.map(() => floor),
        cliponaxis: false, marker: { symbol: "x", size: 9, color: colour("mark-error") }, hoverinfo: "text",
        hovertext: broken.map(([place]) => hover(
          ...folded(picture.names[place]), `${series.left_out[place]} channels are zero, negative or not finite`,
        )),
      };
      const thick = Math.max(3, Math.min(several ? 6 : 9, column * (several ? 0.25 : 0.5)));
      return [bars(low, high, 1.2, 1), bars(lower, upper, thick, 0.55), dots, ...(broken.length ? [crosses] : [])];
    });
    return { traces, layout };
  };

  const KINDS = { depth, heat, spread };
  const CONFIG = { displayModeBar: false, responsive: false, doubleClick: false, scrollZoom: false, showTips: false };
  const PAPER = 680; // pixels that fit a printed page

  const draw = (figure) => {
    const picture = pictures[Number(figure.dataset.picture)];
    const box = figure.querySelector(".scroll");
    const element = figure.querySelector(".plot");
    const { traces, layout } = KINDS[picture.kind](picture, chosen(picture), printing ? PAPER : box.clientWidth);
    if (!drawn.has(figure)) element.replaceChildren();
    element.style.width = `${layout.width}px`;
    element.style.height = `${layout.height}px`;
    window.Plotly.react(element, traces, layout, CONFIG);
    drawn.set(figure, box.clientWidth);
    const wide = layout.width > box.clientWidth;
    if (wide) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", `${figure.querySelector("h3").textContent}: scrolls sideways`);
    } else {
      ["tabindex", "role", "aria-label"].forEach((name) => box.removeAttribute(name));
    }
  };
  const drawAgain = () => drawn.forEach((_, figure) => draw(figure));

  const unpacked = async (text) => {
    const characters = atob(text);
    const bytes = new Uint8Array(characters.length);
    for (let at = 0; at < bytes.length; at += 1) bytes[at] = characters.charCodeAt(at);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).text();
  };

  const startDrawing = async () => {
    const figures = all("figure[data-picture]");
    if (!figures.length) return;
    const script = document.createElement("script");
    script.textContent = await unpacked(document.getElementById("plotly").textContent);
    document.head.append(script); // the page's policy knows its hash
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries.filter(({ isIntersecting }) => isIntersecting)) {
        seen.unobserve(entry.target);
        if (!drawn.has(entry.target)) draw(entry.target);
      }
    }, { rootMargin: "400px" });
    figures.forEach((figure) => seen.observe(figure));
    const resized = new ResizeObserver(() => drawn.forEach((width, figure) => {
      if (!printing && figure.querySelector(".scroll").clientWidth !== width) draw(figure);
    }));
    resized.observe(document.getElementById("main"));
    const theme = { before: undefined };
    window.addEventListener("beforeprint", () => {
      theme.before = root.dataset.theme;
      printing = true;
      root.dataset.theme = "light";
      figures.forEach(draw);
    });
    window.addEventListener("afterprint", () => {
      printing = false;
      if (theme.before === undefined) delete root.dataset.theme;
      else root.dataset.theme = theme.before;
      drawAgain();
    });
  };
  startDrawing();

  // ---- filter

  const form = document.querySelector("form.filter");
  const nameOf = (element) => (element.title || element.textContent).toLowerCase();
  const fits = (finding, severities, rule) => {
    const names = all(".names code", finding);
    const hits = names.filter((name) => nameOf(name).includes(wanted));
    names.forEach((name) => name.classList.toggle("hit", wanted !== "" && hits.includes(name)));
    for (const rest of all(".rest", finding)) if (wanted !== "" && rest.querySelector(".hit")) rest.open = true;
    return severities.has(finding.dataset.severity) && (!rule || finding.dataset.rule === rule) && (!wanted || hits.length > 0);
  };
  const filter = () => {
    const severities = new Set(all('input[name="severity"]:checked', form).map((input) => input.value));
    wanted = form.elements.layer.value.trim().toLowerCase();
    const findings = all(".finding");
    for (const finding of findings) finding.hidden = !fits(finding, severities, form.elements.rule.value);
    for (const row of all(".layer-table tbody tr")) row.hidden = !nameOf(row.querySelector("th")).includes(wanted);
    for (const group of all(".findings")) group.querySelector(".none-shown").hidden = all(".finding", group).some((finding) => !finding.hidden);
    form.querySelector(".shown").textContent = `${findings.filter((finding) => !finding.hidden).length} of ${findings.length} findings`;
  };
  if (form) {
    form.hidden = false;
    let waiting = 0;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.elements.rule.addEventListener("change", filter); // not every driver of a browser fires "input" here
    form.addEventListener("input", (event) => {
      filter();
      window.clearTimeout(waiting);
      if (event.target.name === "layer") waiting = window.setTimeout(drawAgain, 200);
    });
    filter();
  }

  // ---- copying

  const copy = async (button) => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      window.getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    told.textContent = "Copied";
    window.setTimeout(() => { button.textContent = "Copy"; told.textContent = ""; }, 1500);
  };
  for (const button of all("button.copy")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
  }
})();
