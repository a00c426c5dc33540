"""The reports' style sheet: light and dark by the reader's own setting."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --page: #f6f6f3; --card: #ffffff; --text: #1c1c1a; --muted: #62615c;
  --grid: #e5e4df; --one: #2a6fc4; --two: #1b8a6b; --before: #d9631e; --some: #a87400; --bad: #c0392b;
  --good: #1d7a46; }
@media (prefers-color-scheme: dark) { :root { --page: #141413; --card: #1f1f1d; --text: #f1f0ec;
  --muted: #a9a7a0; --grid: #383733; --one: #6ba5ec; --two: #4cc3a0; --before: #f39a5b; --some: #e0b04a;
  --bad: #f08377; --good: #6cc893; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 0 0 2px; } h3 { font-size: 16px; margin: 0; }
main > h2 { margin-top: 32px; }
small, .muted { color: var(--muted); } h3 small { font-weight: normal; }
p { margin: 2px 0 10px; } code { font-size: 13px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; padding: 0;
  margin: 18px 0; list-style: none; }
.tile, .card { background: var(--card); border: 1px solid var(--grid); border-radius: 10px; }
.tile { padding: 12px 16px; } .tile span, .tile small { display: block; }
.tile span { color: var(--muted); } .tile strong { font-size: 28px; line-height: 1.2; }
.tile.bad strong, .badge.bad { color: var(--bad); } .tile.good strong { color: var(--good); }
.card { padding: 16px 18px; margin: 14px 0; } .attention ul { margin: 6px 0 0; padding-left: 20px; }
.pair { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 24px; align-items: start; }
@media (max-width: 760px) { .pair { grid-template-columns: minmax(0, 1fr); } }
figure { margin: 0; } figure.narrow { max-width: 680px; } svg { width: 100%; height: auto; display: block; }
.scroll { max-height: 320px; overflow: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 8px; text-align: right; border-bottom: 1px solid var(--grid); overflow-wrap: anywhere; }
th:first-child { text-align: left; } th { font-weight: 500; } thead th { color: var(--muted); }
details { margin-top: 8px; } summary { cursor: pointer; color: var(--muted); font-size: 13.5px; }
.badge { font-size: 12.5px; font-weight: 500; border: 1px solid currentColor; border-radius: 20px;
  padding: 1px 9px; margin-left: 6px; } .badge.one { color: var(--muted); }
.badge.some { color: var(--some); }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; margin: 0 5px 3px 8px;
  background: var(--before); } .key.one::before { background: var(--one); }
.key.two::before { background: var(--two); }
svg text { fill: var(--text); font: 12.5px system-ui, sans-serif; } svg text.axis { fill: var(--muted); }
svg rect.one { fill: var(--one); } svg rect.some { fill: var(--some); } svg rect.bad { fill: var(--bad); }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .mark { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 4 4; fill: none; }
svg .whisker { stroke: var(--text); stroke-width: 1.5; fill: none; } svg rect.muted { fill: var(--muted); }
svg .before { stroke: var(--before); stroke-width: 2.5; }
svg .line { fill: none; stroke-width: 2.5; } svg .line.one { stroke: var(--one); }
svg .line.two { stroke: var(--two); }
@media print { .scroll { max-height: none; } .card { break-inside: avoid; } }
"""
