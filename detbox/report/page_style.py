"""The style sheet of the page: plain, readable, and dark where the reader's screen is."""

STYLE = """
:root { --back: #fff; --text: #1c2024; --soft: #60666c; --line: #dfe3e6; --panel: #f6f8f9; --good: #18794e;
  --bad: #c62a2f; --left: #fdeceb; --right: #e6f6eb; --mark-left: #f8b9b5; --mark-right: #a4deb8; --warn: #ad5700; }
@media (prefers-color-scheme: dark) { :root { --back: #151718; --text: #e6e8ea; --soft: #9ba1a6; --line: #31363a;
  --panel: #1d2022; --good: #4cc38a; --bad: #ff6369; --left: #351b1d; --right: #10291d; --mark-left: #7b2b30;
  --mark-right: #1b6141; --warn: #f1a10d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 60px; }
code, pre, .sides td { font: 12.5px/1.55 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
header { position: relative; border-bottom: 1px solid var(--line); padding-bottom: 8px; margin-bottom: 20px; }
.tool { margin: 0; color: var(--soft); font-size: 13px; letter-spacing: .04em; }
h1 { margin: 2px 0 12px; font-size: 20px; font-weight: 600; overflow-wrap: anywhere; }
h1 code { font-size: 19px; }
h2 { font-size: 17px; margin: 36px 0 10px; padding-bottom: 4px; border-bottom: 1px solid var(--line); }
h3 { font-size: 14px; margin: 18px 0 6px; }
.verdict { display: inline-block; margin: 0 0 4px; padding: 3px 14px; border-radius: 14px; color: var(--back);
  font-weight: 600; }
.verdict.good { background: var(--good); } .verdict.bad { background: var(--bad); }
b.good { color: var(--good); font-weight: 500; }
.note { color: var(--soft); margin: 6px 0; } .warn { color: var(--warn); font-weight: 600; }
.cards { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
.card { background: var(--panel); border: 1px solid var(--line); border-left: 4px solid; border-radius: 6px;
  padding: 12px 18px; min-width: 0; }
.card.good { border-left-color: var(--good); } .card.bad { border-left-color: var(--bad); }
.card h3 { margin: 0; color: var(--soft); font-weight: 500; }
.card ul { margin: 4px 0 0; padding-left: 18px; overflow-wrap: anywhere; }
.count { margin: 0; font-size: 22px; font-weight: 600; }
.card.good .count { color: var(--good); } .card.bad .count { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
.grid th { text-align: left; font-weight: 500; color: var(--soft); font-size: 13px; }
.grid th, .grid td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
.grid.hosts td { font-size: 13.5px; min-width: 72px; } .grid.hosts td:nth-child(1) { white-space: nowrap; }
.grid.hosts td:nth-child(2) { min-width: 240px; } .grid.hosts { overflow-wrap: normal; }
.grid.fields td:first-child { font-weight: 500; }
code.left { background: var(--left); } code.right { background: var(--right); }
details { border: 1px solid var(--line); border-radius: 6px; margin: 10px 0; overflow: hidden; }
summary { cursor: pointer; padding: 6px 12px; background: var(--panel); font-weight: 600; overflow-wrap: anywhere; }
details .note { padding: 0 12px; }
.sides { table-layout: fixed; }
.sides th { font-size: 12px; font-weight: 500; color: var(--soft); text-align: left; padding: 2px 8px; }
.sides th:nth-child(odd) { width: 44px; } .sides.hex th:nth-child(odd) { width: 84px; }
.sides td { padding: 0 8px; white-space: pre-wrap; overflow-wrap: anywhere; vertical-align: top; }
.sides.hex td { white-space: pre; overflow-wrap: normal; font-size: 11px; padding: 0 5px; }
.sides.hex { table-layout: auto; }
.sides .at { color: var(--soft); text-align: right; user-select: none; }
.changed .left { background: var(--left); } .changed .right { background: var(--right); }
.left mark { background: var(--mark-left); color: inherit; }
.right mark { background: var(--mark-right); color: inherit; }
.gap td { color: var(--soft); background: var(--panel); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 8px 0 14px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; overflow-x: auto;
  margin: 6px 0; }
.stack { margin: 4px 0; padding-left: 22px; } .stack b { font-weight: 600; margin-right: 8px; }
.graph { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: 8px; }
footer { margin-top: 44px; color: var(--soft); font-size: 13px; }
.grid th, .grid td:first-child { overflow-wrap: break-word; }
@media (max-width: 700px) { .grid th, .grid td { padding-right: 8px; font-size: 13.5px; } td code { font-size: 11.5px; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: 6px; }
  .cards { grid-template-columns: 1fr; } main { padding: 16px 12px; } }
@media print { details { break-inside: avoid; } }
"""
