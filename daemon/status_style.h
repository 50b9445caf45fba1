/* The style sheet of the status page. Tier colours are from the Okabe-Ito set, which people who see
 * few colours can tell apart. */
#ifndef TKV_DAEMON_STATUS_STYLE_H
#define TKV_DAEMON_STATUS_STYLE_H

static const char status_style[] =
    ":root{--bg:#f6f7f9;--card:#fff;--ink:#1a2029;--dim:#667085;--line:#e4e7ec;--accent:#0072b2;"
    "--good:#027a48;--bad:#b42318;--t0:#cc79a7;--t1:#e69f00;--t2:#0072b2;--t3:#56b4e9;--t4:#009e73;"
    "--t5:#c3c9d2}"
    "@media(prefers-color-scheme:dark){:root{--bg:#0f1318;--card:#181d24;--ink:#e7ebf0;"
    "--dim:#8d98a8;--line:#2a313b;--accent:#56b4e9;--good:#32d583;--bad:#f97066;--t5:#4a5361}}"
    "*{box-sizing:border-box}"
    "body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.45 system-ui,-apple-system,"
    "'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-variant-numeric:tabular-nums}"
    "main{max-width:1180px;margin:0 auto;padding:28px 24px 40px}"
    "header{display:flex;align-items:baseline;gap:14px;flex-wrap:wrap;margin-bottom:22px}"
    "h1{font-size:26px;margin:0;letter-spacing:-.02em}h1 b{color:var(--accent)}"
    "h2{font-size:13px;font-weight:600;margin:0 0 12px;color:var(--dim);"
    "text-transform:uppercase;letter-spacing:.06em}"
    ".dim{color:var(--dim)}.grow{flex:1}"
    ".pill{font-size:13px;font-weight:600;padding:2px 11px;border-radius:99px;color:var(--good);"
    "border:1px solid currentColor}.pill.bad{color:var(--bad)}"
    ".grid{display:grid;gap:16px;grid-template-columns:repeat(4,1fr);margin-bottom:16px}"
    ".card{background:var(--card);border:1px solid var(--line);border-radius:12px;"
    "padding:18px 20px;min-width:0}.grid .card{display:flex;flex-direction:column}"
    ".grid .bar,.grid svg{margin-top:auto}.grid p+div{margin-top:auto}"
    ".card p{margin:0}.big{font-size:30px;font-weight:650;letter-spacing:-.02em;line-height:1.2}"
    ".big small{font-size:15px;font-weight:500;color:var(--dim);letter-spacing:0}"
    ".bar{display:flex;height:10px;border-radius:5px;overflow:hidden;background:var(--line)}"
    ".grid p.dim{padding-bottom:14px}.bar i{display:block;height:100%}"
    "svg{display:block;width:100%;height:34px;margin-top:8px;overflow:visible}"
    "svg path{fill:none;stroke:var(--accent);stroke-width:1.8;vector-effect:non-scaling-stroke;"
    "stroke-linejoin:round}svg path.a{fill:var(--accent);opacity:.13;stroke:none}"
    ".k0{background:var(--t0)}.k1{background:var(--t1)}.k2{background:var(--t2)}"
    ".k3{background:var(--t3)}.k4{background:var(--t4)}.k5{background:var(--t5)}"
    ".key{display:flex;flex-wrap:wrap;gap:6px 22px;margin-top:14px;font-size:14px}"
    ".key i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:7px}"
    "table{width:100%;border-collapse:collapse;font-size:14px}"
    "th{font-weight:500;color:var(--dim);text-align:right;padding:0 0 8px 16px;white-space:nowrap}"
    "td{text-align:right;padding:9px 0 9px 16px;border-top:1px solid var(--line);"
    "white-space:nowrap}th.l,td.l{text-align:left}th:first-child,td:first-child{padding-left:0}"
    "td.name{max-width:240px;overflow:hidden;text-overflow:ellipsis}"
    "td.tiers{width:26%;min-width:120px}.wide{margin-bottom:16px;overflow-x:auto}"
    ".two{display:grid;gap:16px;grid-template-columns:3fr 2fr}"
    "code{font:13px ui-monospace,'DejaVu Sans Mono',monospace}"
    "@media(max-width:860px){.grid{grid-template-columns:1fr 1fr}.two{grid-template-columns:1fr}}";

#endif /* TKV_DAEMON_STATUS_STYLE_H */
