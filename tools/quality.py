#!/usr/bin/env python3
"""Write a page of measurements from its template.

    quality.py TEMPLATE PAGE

What stands in the template is copied. In it

    @date, @machine            are replaced, anywhere in a line
    @run NAME COMMAND...       runs a command; {json} and {html} in it are files in build/quality.
                               What it wrote is kept, and used again as long as the run began after
                               programs and model were made: a page that was stopped goes on where
                               it was
    @output NAME               its standard output
    @table NAME,... COLUMN... [KEY=VALUE,...]   the rows of their JSON that have these values, fp16
                               once; COLUMN is NAME, NAME:FORMAT or NAME:FORMAT:TITLE
    @plot FILE NAME,... POLICY,... TITLE:COLUMN:LOW:HIGH...   a picture of the rows beside the page

A number that has a spread is followed by it. Nothing is written unless everything could be.
"""
import datetime
import glob
import json
import os
import platform
import shlex
import subprocess
import sys
import time

import quality_plot

KEPT = "build/quality"
INPUTS = ["build/bin/trikvd", "build/bin/trikv-eval", *glob.glob("models/*.gguf")]


def machine():
    """Processor, cores, system: what speeds depend on."""
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
    with open("/etc/os-release", encoding="utf-8") as f:
        system = dict(line.rstrip().split("=", 1) for line in f if "=" in line)
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {system['PRETTY_NAME'].strip(chr(34))}"


def is_fresh(path):
    return os.path.exists(path) and all(
        os.path.getmtime(path) > os.path.getmtime(i) for i in INPUTS)


def run(name, command):
    """Runs the command unless its output is there. It may fail with rows that could not be run."""
    path = {kind: f"{KEPT}/{name}.{kind}" for kind in ("json", "html", "txt")}
    if is_fresh(path["txt"]):
        print(f"kept: {path['txt']}", file=sys.stderr)
        return
    for old in path.values():
        if os.path.exists(old):
            os.remove(old)
    start = time.time()
    words = [w.format(**path) for w in command]
    print(shlex.join(words), file=sys.stderr)
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode and not os.path.exists(path["json"]):
        sys.exit(f"{shlex.join(words)} failed with status {done.returncode}")
    with open(path["txt"], "w", encoding="utf-8") as f:
        f.write(done.stdout)
    os.utime(path["txt"], (start, start))


def cell(row, name, form):
    value = row.get(name)
    if value is None:
        return "-"
    text = format(value, form)
    spread = row.get("spread", {}).get(name)
    return text if spread is None else f"{text} ± {format(spread, form.lstrip('+'))}"


def rows_of(names):
    """The rows of all these runs. fp16 takes part in each of them, and must come out the same: runs
    over different texts do not belong in one table."""
    rows = []
    for name in names.split(","):
        with open(f"{KEPT}/{name}.json", encoding="utf-8") as f:
            new = json.load(f)["rows"]
        if rows and new[0].get("windows") != rows[0].get("windows"):
            sys.exit(f"{name}: its fp16 row is not that of {names.split(',')[0]}; delete {KEPT}")
        rows += new[1:] if rows else new
    return rows


def table(names, words):
    """The lines of a table; a row without numbers says why."""
    rows = rows_of(names)
    wanted = dict(w.split("=", 1) for w in words if "=" in w)
    columns = [(w.split(":", 2) + ["", ""])[:3] for w in words if "=" not in w]
    titles = [title.replace("_", " ") or column for column, _, title in columns]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        if any(str(row[key]) not in values.split(",") for key, values in wanted.items()):
            continue
        cells = [cell(row, column, form) for column, form, _ in columns]
        if "error" in row:
            cells[-1] = row["error"]
        lines.append("| " + " | ".join(cells) + " |")
    if len(lines) == 2:
        sys.exit(f"@table {names}: no row has {wanted}")
    return lines


def plot(folder, words):
    """The line that shows a picture, and the picture."""
    file, names, policies, *panels = words
    panels = [(title.replace("_", " "), column, float(low), float(high))
              for title, column, low, high in (panel.split(":") for panel in panels)]
    with open(f"{folder}/{file}", "w", encoding="utf-8") as f:
        f.write(quality_plot.draw(rows_of(names), policies.split(","), panels))
    return [f"![{', '.join(panel[0] for panel in panels)}]({file})"]


def fill(line, folder):
    words = shlex.split(line) if line.startswith("@") else [""]
    if words[0] == "@run":
        run(words[1], words[2:])
        return []
    if words[0] == "@output":
        with open(f"{KEPT}/{words[1]}.txt", encoding="utf-8") as f:
            return ["```", *f.read().strip("\n").split("\n"), "```"]
    if words[0] == "@table":
        return table(words[1], words[2:])
    if words[0] == "@plot":
        return plot(folder, words[1:])
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    return [line.replace("@date", today).replace("@machine", machine())]


def main():
    template, page = sys.argv[1:]
    os.makedirs(KEPT, exist_ok=True)
    with open(template, encoding="utf-8") as f:
        lines = [out for line in f.read().splitlines()
                 for out in fill(line, os.path.dirname(page) or ".")]
    with open(page, "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
