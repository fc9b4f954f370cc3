"""The style sheet of a report, for screens of any width, light or dark."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       background: Canvas; color: CanvasText; }
h1 { font-size: 1.5rem; margin-bottom: .8rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
details { margin-top: 2.2rem; } summary { font-weight: 600; font-size: 1.15rem; cursor: pointer; }

/* A table wider than the screen scrolls, with a shadow at the cut-off edge; its first column stays. */
.wide { overflow-x: auto;
        background: linear-gradient(to left, Canvas 2rem, transparent) right / 4rem 100% no-repeat local,
                    linear-gradient(to left, #8888, transparent) right / .9rem 100% no-repeat scroll; }
.wide::-webkit-scrollbar { height: .5rem; }
.wide::-webkit-scrollbar-track { background: var(--faint); }
.wide::-webkit-scrollbar-thumb { background: GrayText; border-radius: .25rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right;
         white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; min-width: 5.5rem;
                                   max-width: 40vw; padding-right: .8rem; }
table.figures th, table.figures td:first-child, td.long { white-space: normal; }
td.long:not(:first-child) { min-width: 14rem; }
th:first-child, td:first-child, table.text th, table.text td { text-align: left; }
table.text td { white-space: normal; overflow-wrap: anywhere; }

.pictures { display: grid; gap: 1.5rem; align-items: start;
            grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; } figure svg { width: 100%; height: auto; }
figcaption, .note { color: GrayText; font-size: .9rem; }
code { background: var(--faint); padding: .1rem .3rem; }
"""
