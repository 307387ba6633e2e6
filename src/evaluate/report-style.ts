/** The report's one style sheet: system fonts, ink on paper, copper for the distilled student; light and dark. */
export const reportStyle = `
:root {
  color-scheme: light dark;
  --paper: #fdfcfa; --panel: #ffffff; --ink: #22211f; --muted: #66625c; --grid: #e6e2dc; --accent: #a34a1f;
  --tint: #faf1ea; --series-0: #a34a1f; --series-1: #2f6690; --series-2: #3c7a57; --series-3: #7a5195;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #191817; --panel: #211f1e; --ink: #ebe7e1; --muted: #a39d94; --grid: #3a3733; --accent: #e8925f;
    --tint: #2e241d; --series-0: #e8925f; --series-1: #7fb2dc; --series-2: #83c29d; --series-3: #c09bd8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif;
  font-variant-numeric: tabular-nums;
}
h1 { margin: 0 0 .25rem; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.015em; text-wrap: balance; }
h2 { margin: 3rem 0 .75rem; font-size: 1.2rem; letter-spacing: -.005em; }
h3 { margin: 0 0 .5rem; font-size: 1rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 46rem; }
.muted, .lead, .note, figcaption, th, dt { color: var(--muted); }
.note { font-size: .88rem; }
.sentence::first-letter { text-transform: uppercase; }
time { white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0 0; }
.figures div { padding: .8rem 1rem; background: var(--panel); border: 1px solid var(--grid); border-radius: .5rem; }
.figures dt { font-size: .8rem; }
.figures dd { margin: .1rem 0 0; font-size: 1.5rem; line-height: 1.25; letter-spacing: -.01em; }
.figures small { display: block; font-size: .78rem; letter-spacing: 0; color: var(--muted); }
.scroll { overflow-x: auto; margin: .75rem 0; border: 1px solid var(--grid); border-radius: .5rem; background: var(--panel); }
table { width: 100%; border-collapse: collapse; font-size: .92rem; }
th, td { padding: .5rem .9rem; text-align: right; vertical-align: top; border-top: 1px solid var(--grid); }
thead th { border-top: 0; }
th { font-weight: 500; font-size: .82rem; }
th[scope='col'] { white-space: nowrap; }
tbody th, td.text, thead th:first-child, th.text { text-align: left; }
tbody th { font-size: .92rem; color: var(--ink); min-width: 9rem; }
td small, th small { display: block; white-space: nowrap; color: var(--muted); font-size: .76rem; font-weight: 400; }
td.number { white-space: nowrap; }
b { font-weight: 700; }
tr.distilled { background: var(--tint); }
tr.distilled th { color: var(--accent); font-weight: 600; }
tbody.group + tbody.group tr:first-child > * { border-top: 2px solid var(--grid); }
.steps { list-style: none; margin: 0; padding: 0; counter-reset: step; }
.steps li {
  counter-increment: step; display: grid; grid-template-columns: 2rem 13rem 1fr; gap: 0 .75rem;
  padding: .6rem 0; border-top: 1px solid var(--grid);
}
.steps li:last-child { border-bottom: 1px solid var(--grid); }
.steps li::before { content: counter(step); color: var(--accent); font-weight: 600; }
.steps .name { font-weight: 600; }
.steps .time { display: block; font-weight: 400; font-size: .85rem; color: var(--muted); }
.facts { display: flex; flex-wrap: wrap; gap: .1rem 1.5rem; margin: 0; font-size: .9rem; }
.facts div { display: flex; gap: .4rem; min-width: 0; overflow-wrap: anywhere; }
.facts dd { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .9rem 1rem .6rem; background: var(--panel); border: 1px solid var(--grid); border-radius: .5rem; }
figcaption { font-size: .88rem; margin-bottom: .4rem; overflow-wrap: anywhere; }
.wide { max-width: 33rem; margin-top: .75rem; }
svg { display: block; width: 100%; height: auto; font-size: 12px; font-family: inherit; }
svg text { fill: var(--ink); }
svg .tick, svg .label { fill: var(--muted); }
svg .grid { stroke: var(--grid); }
svg .axis { stroke: var(--muted); }
svg .line, svg .key { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .bar { fill: var(--series-1); }
svg .mark { stroke: var(--accent); stroke-dasharray: 3 3; }
.examples { display: grid; gap: 1rem; }
.example { padding: 1rem 1.1rem; background: var(--panel); border: 1px solid var(--grid); border-radius: .5rem; }
.example .columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem 2rem; }
.example h4 { margin: 0 0 .25rem; font-size: .82rem; font-weight: 500; color: var(--muted); }
.example ol { margin: 0; padding-left: 1.6rem; font-size: .92rem; overflow-wrap: anywhere; }
.example ol ::marker { color: var(--muted); }
.example .id, .example .score { color: var(--muted); font-size: .8rem; }
.example .next { margin-top: .75rem; font-size: .92rem; overflow-wrap: anywhere; }
.hit { background: var(--tint); font-weight: 600; border-radius: .25rem; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre {
  overflow: auto; max-height: 40rem; padding: 1rem; background: var(--panel); border: 1px solid var(--grid); border-radius: .5rem;
  font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
@media (max-width: 40rem) {
  body { padding-top: 1.5rem; }
  .steps li { grid-template-columns: 1.5rem 1fr; }
  .steps .facts { grid-column: 2; margin-top: .2rem; }
  th, td { padding: .45rem .6rem; }
  /* The names stay while the numbers scroll. */
  tbody th[scope='row'], thead th:first-child { position: sticky; left: 0; min-width: 7rem; background: var(--panel); }
  tr.distilled th { background: var(--tint); }
  .figures { grid-template-columns: 1fr 1fr; }
  svg { font-size: 13px; }
  figure { padding: .6rem .5rem .3rem; }
  figcaption { padding: .1rem .4rem 0; }
}
@media print {
  body { max-width: none; padding: 0; }
  figure, .example, .steps li { break-inside: avoid; }
}
`;
