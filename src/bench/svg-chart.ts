// Line charts as SVG text: panels side by side, a legend, ticks that fit the values. Only what the figures of measurements need; it reads
// nothing and writes nothing.

export interface Point {
  readonly x: number;
  readonly y: number;
  /** A whisker. */
  readonly low?: number;
  readonly high?: number;
}

export interface Series {
  readonly name: string;
  readonly points: readonly Point[];
  readonly isDashed?: boolean;
}

export interface Panel {
  readonly title: string;
  readonly xLabel: string;
  readonly yLabel: string;
  readonly xScale: "log" | "linear";
  readonly yScale: "log" | "linear";
  /** Lower end of a linear y axis; the least value otherwise. */
  readonly yMin?: number;
  readonly yMax?: number;
  readonly formatY?: (value: number) => string;
  readonly series: readonly Series[];
}

/** Okabe and Ito's, told apart by colour-blind readers too. */
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
const PANEL = { width: 380, height: 250, left: 58, right: 14, top: 30, bottom: 42 };
const TITLE_HEIGHT = 34;
const LEGEND_ROW = 20;
const FONT = "font-family='system-ui, sans-serif'";

const escape = (text: string) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
const at = (value: number) => value.toFixed(1).replace(/\.0$/, "");

/** 1, 2 and 5 times powers of ten within [low, high], every second or third of them where they would crowd. */
export function logTicks(low: number, high: number): number[] {
  const collect = (steps: readonly number[]) => {
    const found: number[] = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const step of steps) {
        const tick = Number((step * 10 ** power).toPrecision(3));
        if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
      }
    }
    return found;
  };
  const fine = collect([1, 2, 5]);
  return fine.length <= 8 ? fine : collect([1]);
}

/** About five round values from low to high. */
export function linearTicks(low: number, high: number): number[] {
  const raw = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= raw) ?? 10);
  const ticks: number[] = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-6; tick += step) {
    ticks.push(Number(tick.toPrecision(10)));
  }
  return ticks;
}

export function formatNumber(value: number): string {
  if (value >= 1e6) return `${at(value / 1e6)}M`;
  if (value >= 1e4) return `${at(value / 1e3)}k`;
  return value >= 10 || Number.isInteger(value)
    ? String(Number(value.toFixed(0)))
    : String(Number(value.toPrecision(2)));
}

interface Axis {
  readonly ticks: readonly number[];
  /** 0 to 1. */
  readonly place: (value: number) => number;
}

function logAxis(values: readonly number[], ticksOf: (low: number, high: number) => number[]): Axis {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [from, to] = [Math.log(low) - 0.06, Math.log(high) + 0.06];
  return { ticks: ticksOf(low, high), place: (value) => (Math.log(value) - from) / (to - from) };
}

function linearAxis(low: number, high: number): Axis {
  const span = high - low || 1;
  return { ticks: linearTicks(low, high), place: (value) => (value - low) / span };
}

/** On a logarithmic x axis the values themselves are the ticks, as many as there is room for. */
function xAxis(panel: Panel): Axis {
  const values = [...new Set(panel.series.flatMap((series) => series.points.map((point) => point.x)))].sort(
    (a, b) => a - b,
  );
  if (panel.xScale === "log") return logAxis(values, () => values);
  return linearAxis(Math.min(...values), Math.max(...values));
}

function yAxis(panel: Panel): Axis {
  const values = panel.series.flatMap((series) =>
    series.points.flatMap(({ y, low, high }) => [y, low ?? y, high ?? y]),
  );
  if (panel.yScale === "log") return logAxis(values, logTicks);
  return linearAxis(panel.yMin ?? Math.min(...values), panel.yMax ?? Math.max(...values) * 1.05);
}

function renderPanel(panel: Panel, left: number, top: number, colourOf: (name: string) => string): string {
  const { width, height } = PANEL;
  const plot = {
    left: left + PANEL.left,
    right: left + width - PANEL.right,
    top: top + PANEL.top,
    bottom: top + height - PANEL.bottom,
  };
  const [x, y] = [xAxis(panel), yAxis(panel)];
  const px = (value: number) => at(plot.left + x.place(value) * (plot.right - plot.left));
  const py = (value: number) => at(plot.bottom - y.place(value) * (plot.bottom - plot.top));
  const formatY = panel.formatY ?? formatNumber;
  const parts = [
    `<text x='${at((plot.left + plot.right) / 2)}' y='${top + 18}' text-anchor='middle' font-weight='600'>${escape(panel.title)}</text>`,
  ];
  for (const tick of y.ticks) {
    parts.push(
      `<line x1='${plot.left}' x2='${plot.right}' y1='${py(tick)}' y2='${py(tick)}' stroke='#e3e3e3'/>`,
      `<text x='${plot.left - 6}' y='${py(tick)}' dy='4' text-anchor='end'>${escape(formatY(tick))}</text>`,
    );
  }
  for (const tick of x.ticks) {
    parts.push(
      `<line x1='${px(tick)}' x2='${px(tick)}' y1='${plot.bottom}' y2='${plot.bottom + 4}' stroke='#888'/>`,
      `<text x='${px(tick)}' y='${plot.bottom + 17}' text-anchor='middle'>${formatNumber(tick)}</text>`,
    );
  }
  parts.push(
    `<path d='M${plot.left} ${plot.top}V${plot.bottom}H${plot.right}' fill='none' stroke='#888'/>`,
    `<text x='${at((plot.left + plot.right) / 2)}' y='${plot.bottom + 34}' text-anchor='middle' fill='#555'>${escape(panel.xLabel)}</text>`,
    `<text x='${left + 12}' y='${at((plot.top + plot.bottom) / 2)}' text-anchor='middle' fill='#555' ` +
      `transform='rotate(-90 ${left + 12} ${at((plot.top + plot.bottom) / 2)})'>${escape(panel.yLabel)}</text>`,
  );
  for (const series of panel.series) {
    const colour = colourOf(series.name);
    const line = series.points
      .map((point, index) => `${index === 0 ? "M" : "L"}${px(point.x)} ${py(point.y)}`)
      .join("");
    const dash = series.isDashed === true ? " stroke-dasharray='5 4'" : "";
    for (const { x: value, low, high } of series.points) {
      if (low === undefined || high === undefined) continue;
      parts.push(
        `<path d='M${px(value)} ${py(low)}V${py(high)}' stroke='${colour}' stroke-opacity='0.45' fill='none'/>`,
      );
    }
    parts.push(`<path d='${line}' fill='none' stroke='${colour}' stroke-width='2'${dash}/>`);
    if (series.isDashed === true) continue;
    for (const point of series.points) {
      parts.push(`<circle cx='${px(point.x)}' cy='${py(point.y)}' r='3' fill='${colour}'/>`);
    }
  }
  return parts.join("\n");
}

/** A figure of panels, `columns` in a row, with one legend for all. Panels without points are left out. */
export function renderChart(title: string, allPanels: readonly Panel[], columns: number): string {
  const panels = allPanels
    .map((panel) => ({ ...panel, series: panel.series.filter((series) => series.points.length > 0) }))
    .filter((panel) => panel.series.length > 0);
  const isDrawn = new Set(panels.flatMap((panel) => panel.series.map((series) => series.name)));
  const named = new Map(allPanels.flatMap((panel) => panel.series.map((series) => [series.name, series] as const)));
  const names = [...named.values()].filter((series) => isDrawn.has(series.name));
  const colourOf = (name: string) =>
    COLOURS[names.findIndex((series) => series.name === name) % COLOURS.length] ?? "#000";
  const columnCount = Math.max(1, Math.min(columns, panels.length));
  const width = columnCount * PANEL.width + 20;
  const legend: string[] = [];
  let [legendX, legendRows] = [20, 1];
  for (const series of names) {
    const entryWidth = 44 + series.name.length * 7;
    if (legendX + entryWidth > width && legendX > 20) [legendX, legendRows] = [20, legendRows + 1];
    const y = TITLE_HEIGHT + (legendRows - 1) * LEGEND_ROW + 6;
    const dash = series.isDashed === true ? " stroke-dasharray='5 4'" : "";
    legend.push(
      `<line x1='${legendX}' x2='${legendX + 22}' y1='${y}' y2='${y}' stroke='${colourOf(series.name)}' stroke-width='2'${dash}/>`,
      `<text x='${legendX + 28}' y='${y}' dy='4'>${escape(series.name)}</text>`,
    );
    legendX += entryWidth;
  }
  const top = TITLE_HEIGHT + legendRows * LEGEND_ROW;
  const height = top + Math.ceil(panels.length / columnCount) * PANEL.height + 8;
  const drawn = panels.map((panel, index) =>
    renderPanel(
      panel,
      10 + (index % columnCount) * PANEL.width,
      top + Math.floor(index / columnCount) * PANEL.height,
      colourOf,
    ),
  );
  return [
    `<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 ${width} ${height}' width='${width}' height='${height}' role='img' ${FONT} font-size='12' fill='#222'>`,
    `<title>${escape(title)}</title>`,
    `<rect width='${width}' height='${height}' rx='6' fill='#fff'/>`,
    `<text x='20' y='22' font-size='15' font-weight='600'>${escape(title)}</text>`,
    ...legend,
    ...drawn,
    "</svg>",
    "",
  ].join("\n");
}
