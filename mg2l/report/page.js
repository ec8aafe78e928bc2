const dark = matchMedia("(prefers-color-scheme: dark)");
const buttons = [...document.querySelectorAll("#chips button")];
const axis = document.querySelector("#axis");
const plots = () => document.querySelectorAll(".js-plotly-plot");

// What is held compressed in an element.
async function unpacked(id) {
  const text = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

// Colours of everything but the curves.
function colours() {
  const [ink, line] = dark.matches ? ["#e4e4e4", "#363a42"] : ["#222222", "#e8e8e8"];
  const look = { "font.color": ink };
  for (const name of ["xaxis", "yaxis"]) {
    look[`${name}.gridcolor`] = line;
    look[`${name}.zerolinecolor`] = line;
  }
  return look;
}

// Which algorithms are shown, in all figures at once: a click toggles one, a double click shows it alone.
function show() {
  const hidden = new Set(
    buttons.filter((b) => b.getAttribute("aria-pressed") === "false").map((b) => b.dataset.algo),
  );
  for (const plot of plots()) {
    const own = [...plot.data.keys()].filter((index) => plot.data[index].meta);
    if (own.length) {
      const shown = new Set(own.map((index) => plot.data[index].meta).filter((algo) => !hidden.has(algo)));
      const visible = own.map((index) => {
        const { meta, fill } = plot.data[index];
        return !hidden.has(meta) && (fill !== "toself" || shown.size <= BANDS);
      });
      Plotly.restyle(plot, { visible }, own);
    }
  }
}

// The mean run's iteration, or minute, at environment steps.
function at(steps, clock) {
  const from = clock["environment steps"], to = clock[axis.value];
  if (steps === null || !to) return null;
  const after = from.findIndex((value) => value >= steps);
  if (after <= 0) return after ? to[to.length - 1] : to[0];
  const part = (steps - from[after - 1]) / (from[after] - from[after - 1]);
  return to[after - 1] + part * (to[after] - to[after - 1]);
}

function turn() {
  for (const plot of plots()) {
    const clocks = plot.clocks;
    if (!clocks) continue;
    plot.steps ??= plot.data.map((trace) => trace.x);
    const x = plot.data.map(({ meta }, index) =>
      clocks[meta] ? plot.steps[index].map((steps) => at(steps, clocks[meta])) : plot.steps[index],
    );
    Plotly.update(plot, { x }, { "xaxis.title.text": axis.value, "xaxis.autorange": true });
  }
}

// Tables, as files.
const cells = (table) =>
  [...table.rows].map((row) => [...row.cells].flatMap((c) => [c.textContent, ...Array(c.colSpan - 1).fill("")]));
const csv = (rows) => rows.map((row) => row.map((t) => `"${t.replaceAll('"', '""')}"`).join(",")).join("\r\n") + "\r\n";
const SIGNS = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$", "²": "$^2$" };
const tex = (text) => text.replace(/[\\~^±²&%$#_{}]/g, (sign) => SIGNS[sign] ?? `\\${sign}`);
function latex(rows) {
  const [head, ...body] = rows.map((row) => `${row.map(tex).join(" & ")} \\\\`);
  const columns = `l${"r".repeat(Math.max(...rows.map((row) => row.length)) - 1)}`;
  return [`\\begin{tabular}{${columns}}`, "\\toprule", head, "\\midrule", ...body, "\\bottomrule", "\\end{tabular}", ""].join("\n");
}

for (const [index, table] of document.querySelectorAll("table").entries()) {
  for (const [name, ending, write] of [["CSV", "csv", csv], ["LaTeX", "tex", latex]]) {
    const button = document.createElement("button");
    button.textContent = name;
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([write(cells(table))], { type: "text/plain" }));
      link.download = `table-${index + 1}.${ending}`;
      link.click();
      URL.revokeObjectURL(link.href);
    });
    table.parentElement.append(button);
  }
}

for (const button of buttons) {
  button.title = "click: show or hide; double click: show alone";
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
    show();
  });
  button.addEventListener("dblclick", () => {
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    show();
  });
}
axis.addEventListener("change", turn);
dark.addEventListener("change", () => plots().forEach((plot) => Plotly.relayout(plot, colours())));

async function draw() {
  const script = document.createElement("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);
  const figures = JSON.parse(await unpacked("figures"));
  for (const [index, place] of document.querySelectorAll(".plot").entries()) {
    const { env, drawn: { data, layout } } = figures[index];
    if (layout.xaxis.title?.text === axis.options[0].text) place.clocks = CLOCKS[env];
    for (const [path, value] of Object.entries(colours())) {
      const [part, name] = path.split(".");
      layout[part] = { ...layout[part], [name]: value };
    }
    await Plotly.newPlot(place, data, layout, CONFIG);
  }
  if (served) resume();
  document.documentElement.dataset.drawn = "true";
}

// What the reader has chosen, kept over a reload.
function leave() {
  const hidden = buttons.filter((b) => b.getAttribute("aria-pressed") === "false").map((b) => b.dataset.algo);
  sessionStorage.setItem("view", JSON.stringify({ axis: axis.value, hidden, y: scrollY }));
  location.reload();
}

function resume() {
  const view = JSON.parse(sessionStorage.getItem("view"));
  if (!view) return;
  axis.value = view.axis;
  turn();
  for (const button of buttons) button.setAttribute("aria-pressed", String(!view.hidden.includes(button.dataset.algo)));
  show();
  scrollTo(0, view.y);
}

// A page that is served follows its runs.
const served = location.protocol === "http:";
draw();
if (served) {
  let seen = null;
  setInterval(async () => {
    const found = await fetch("version").catch(() => null);
    const version = found?.ok ? await found.text() : seen;
    if (seen !== null && version !== seen) leave();
    seen = version;
  }, 2000);
}
