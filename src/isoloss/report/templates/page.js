"use strict";
// Draws the scenes of the page. The numbers of each are in its figure, nothing is fetched.

const MANY = 8; // means of runs, from which on the legend does not name them
const SYMBOLS = ["diamond", "square", "circle", "cross"];
const MARK_COLORS = ["#D55E00", "#009E73", "#CC79A7", "#0072B2"];
const dark = window.matchMedia("(prefers-color-scheme: dark)");

// Runs plotly.js, which lies packed in the page, once.
let running;
function unpacked() {
  running ??= (async () => {
    const text = atob(document.getElementById("plotly").textContent.trim());
    const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    const code = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const script = document.createElement("script");
    script.textContent = await new Response(code).text();
    document.head.append(script);
  })();
  return running;
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function colorScale() {
  const colors = css("--ramp").split(",").map((color) => color.trim());
  return colors.map((color, k) => [k / (colors.length - 1), color]);
}

function figures(value) {
  if (value === null) return "not measured";
  return Number(value.toPrecision(5)).toString();
}

// Components first, first + 1 and first + 2 of rows of scores; zeros where there are no more.
function three(scores, first, rows) {
  const axis = (k) => scores[first - 1 + k] ?? rows.map(() => 0);
  const pick = (column) => rows.map((row) => column[row]);
  return { x: pick(axis(0)), y: pick(axis(1)), z: pick(axis(2)) };
}

function label(run, row) {
  const values = Object.entries(run.values).map(([name, list]) => `${name} ${figures(list[row])}`);
  return [`<b>${run.name}, step ${run.step[row]}</b>`, ...values].join("<br>");
}

// The row of the point nearest to a share of the walk's length.
function nearest(run, position) {
  const off = (row) => Math.abs(run.position[row] - position);
  return run.position.reduce((best, _, row) => (off(row) <= off(best) ? row : best), 0);
}

class Scene {
  constructor(element) {
    this.scene = JSON.parse(element.querySelector("script").textContent);
    this.plot = element.querySelector(".plot");
    this.view = element.querySelector("[name=view]");
    this.scaling = element.querySelector("[name=scaling]");
    this.position = element.querySelector("[name=position]");
    this.readout = element.querySelector(".readout");
    this.caption = element.querySelector("figcaption");
    this.offerViews();
    this.view.addEventListener("change", () => this.draw());
    this.scaling.addEventListener("change", () => { this.offerViews(); this.draw(); });
    this.position.addEventListener("input", () => { this.read(); this.move(); });
    dark.addEventListener("change", () => this.draw());
    this.read();
    const near = new IntersectionObserver((seen) => {
      if (seen.some((one) => one.isIntersecting)) {
        near.disconnect();
        unpacked().then(() => { this.ready = true; this.draw(); });
      }
    }, { rootMargin: "400px" });
    near.observe(this.plot);
  }

  offerViews() {
    const chosen = this.view.value;
    const ratios = this.scene.ratios[this.scaling.value];
    this.view.replaceChildren();
    for (const first of [1, 4]) {
      if (first > ratios.length) continue;
      const share = 100 * ratios.slice(first - 1, first + 2).reduce((a, b) => a + b, 0);
      const text = `${first} to ${first + 2} (${share.toPrecision(2)} % of the variance)`;
      this.view.add(new Option(text.replace("1.0e+2", "100"), first));
    }
    if ([...this.view.options].some((one) => one.value === chosen)) this.view.value = chosen;
    this.caption.textContent = this.scene.captions[this.scaling.value];
  }

  where(owner, rows) {
    return three(owner[this.scaling.value], Number(this.view.value), rows);
  }

  traces() {
    const line = { color: css("--soft"), width: 1.5 };
    const runs = this.scene.runs.map((run) => {
      const rows = run.step.map((_, row) => row);
      return {
        type: "scatter3d", mode: "lines+markers", name: run.name, showlegend: false, line,
        ...this.where(run, rows), text: rows.map((row) => label(run, row)), hoverinfo: "text",
        marker: {
          size: 3.5, color: run.position, colorscale: colorScale(), cmin: 0, cmax: 1,
        },
      };
    });
    const marks = this.scene.marks.map((mark, k) => {
      const mean = mark.name.startsWith("mean of run");
      return {
        type: "scatter3d", mode: "markers", name: mark.name, hoverinfo: "name",
        showlegend: !mean || this.scene.runs.length < MANY,
        ...three(mark[this.scaling.value].map((score) => [score]), Number(this.view.value), [0]),
        marker: {
          size: mean ? 5 : 8, symbol: mean ? "square-open" : SYMBOLS[k % SYMBOLS.length],
          color: mean ? css("--ink") : MARK_COLORS[k % MARK_COLORS.length],
        },
      };
    });
    return [...runs, ...marks, this.pointer()];
  }

  pointer() {
    const at = this.scene.runs.map((run) => [run, nearest(run, Number(this.position.value))]);
    const points = at.map(([run, row]) => this.where(run, [row]));
    return {
      type: "scatter3d", mode: "markers", name: "slider's position", hoverinfo: "text",
      text: at.map(([run, row]) => label(run, row)),
      x: points.map((point) => point.x[0]), y: points.map((point) => point.y[0]),
      z: points.map((point) => point.z[0]),
      marker: { size: 9, symbol: "circle-open", color: css("--ink"), line: { width: 2 } },
    };
  }

  layout() {
    const ink = css("--ink");
    const first = Number(this.view.value);
    const axis = (k) => ({
      title: { text: `component ${first + k}`, font: { size: 11 } }, color: ink, gridcolor: css("--rule"),
      zerolinecolor: css("--rule"), showbackground: false, nticks: 5, tickfont: { size: 10 },
    });
    return {
      margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: css("--paper"), font: { color: ink },
      scene: {
        xaxis: axis(0), yaxis: axis(1), zaxis: axis(2), aspectmode: "cube", dragmode: "orbit",
        camera: this.plot.layout?.scene?.camera ?? { eye: { x: 1.75, y: 1.75, z: 1 } },
      },
      legend: { orientation: "h", x: 0, y: 1, font: { size: 11 }, bgcolor: "rgba(0,0,0,0)" },
      hoverlabel: { align: "left" }, uirevision: "kept",
    };
  }

  draw() {
    if (!this.ready) return; // it will be drawn once it comes near
    const buttons = [["orbitRotation", "zoom3d", "pan3d", "resetCameraDefault3d"]];
    const config = { responsive: true, displaylogo: false, modeBarButtons: buttons };
    Plotly.react(this.plot, this.traces(), this.layout(), config);
  }

  move() {
    if (!this.plot.data) return;
    const { x, y, z, text } = this.pointer();
    Plotly.restyle(this.plot, { x: [x], y: [y], z: [z], text: [text] }, [this.plot.data.length - 1]);
  }

  read() {
    const names = Object.keys(this.scene.runs[0]?.values ?? {});
    const row = (tag, cells) => {
      const line = document.createElement("tr");
      cells.forEach((text, k) => {
        const cell = document.createElement(k === 0 || tag === "th" ? "th" : "td");
        cell.scope = tag === "th" ? "col" : "row";
        cell.textContent = text;
        line.append(cell);
      });
      return line;
    };
    const head = document.createElement("thead");
    head.append(row("th", ["run", "step", ...names]));
    const body = document.createElement("tbody");
    for (const run of this.scene.runs) {
      const at = nearest(run, Number(this.position.value));
      body.append(row("td", [run.name, run.step[at], ...names.map((name) => figures(run.values[name][at]))]));
    }
    this.readout.replaceChildren(head, body);
  }
}

for (const element of document.querySelectorAll(".scene")) new Scene(element);
