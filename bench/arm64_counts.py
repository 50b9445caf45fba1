#!/usr/bin/env python3
"""Count the instructions that the core executes on arm64, under qemu, and print a table.

    bench/arm64_counts.py FOLDER ROOT [TOP]

FOLDER is where `make check-neon` builds for arm64, ROOT its arm64 libraries; with TOP, so many functions that
take the most stand below each row. `trikv-bench work` does one thing twice, then six times; qemu logs each
block of instructions that it executes and what is in it; a quarter of the difference is what doing it once
takes. Counted is what lies in core/, libc is not.

The time is an estimate of a lower bound: the longest of what the front end decodes, of what the vector
pipes and the load pipes can begin, per cycle (the numbers of pipes are those of Arm's software
optimisation guides for Cortex-A76 and Cortex-A72), as if nothing ever waited for a result or for memory.
"""
import bisect
import os
import re
import subprocess
import sys

TOKENS = 1024
NEW = 128
# A piece of work, per what its numbers are, and which functions of it count.
WORKS = (
    ("attend, 1 query head", ["--work", "attend", "--group", "1"], "token and KV head", TOKENS, ""),
    ("attend, 4 query heads", ["--work", "attend", "--group", "4"], "token and KV head", TOKENS, ""),
    ("encode", ["--work", "encode"], "vector", 2 * NEW, ""),
    ("round: score, select, rebuild, 4 query heads", ["--work", "round", "--group", "4"], "key",
     TOKENS + NEW, "_dots|moments|fold|count_from|select|fused|dot_block|scale_row|turn|f16_to_f32|"
     "pick|gather|place_of"),
)
# Instructions decoded, vector instructions and vector multiplications begun, loads begun, each cycle; GHz.
CORES = {"cortex-a76": (4, 2, 2, 2, 2.4), "cortex-a72": (3, 2, 1, 1, 1.8)}
KINDS = ("vector", "product", "load", "store", "branch", "other")


def symbols(nm, path):
    """Functions of the binary, and which of them the core defines."""
    text = subprocess.check_output([nm, "-n", path], text=True)
    table = [(int(a, 16), name) for a, kind, name in
             (line.split() for line in text.splitlines() if len(line.split()) == 3) if kind in "tT"]
    return [a for a, _ in table], [name for _, name in table]


def kind_of(word):
    """What an instruction occupies, by the top of its encoding (Arm ARM, C4.1)."""
    op = word >> 25 & 15
    if op & 5 == 4:
        return "load" if word >> 22 & 1 or word >> 28 & 3 == 1 else "store"
    if op & 7 == 7:
        return "product" if is_product(word) else "vector"
    return "branch" if op >> 1 == 5 else "other"


def is_product(word):
    """Multiplications of whole vectors, which an A72 does on one pipe: SDOT, SMULL, FMUL, FMLA, MLA."""
    if word & 0x9F000400 == 0x0F000000:
        return True  # by one element of a vector: nothing but multiplications
    if word & 0x9F200400 == 0x0E000400 and word >> 11 & 0x1F == 0x12:
        return True  # three registers, extra: SDOT, UDOT
    three_different = word & 0x9F200C00 == 0x0E200000
    if three_different:
        return word >> 12 & 15 in (8, 10, 12)
    three_same = word & 0x9F200400 == 0x0E200400
    return three_same and word >> 11 & 0x1F in (0x12, 0x13, 0x19, 0x1B)


def run(qemu, root, binary, cpu, options, first, size):
    """A dictionary of instructions executed by (function, kind)."""
    command = [qemu, "-L", root, "-cpu", cpu, "-d", "in_asm,exec,nochain", "-dfilter",
               f"0x{first:x}+0x{size:x}", "-D", "/dev/stderr", binary, "work", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    blocks, counts, at = {}, {}, None
    for line in process.stderr:
        if line.startswith("Trace"):
            pc = int(line.split("/")[1], 16)
            counts[pc] = counts.get(pc, 0) + 1
        elif m := re.match(r"0x([0-9a-f]+):\s+([0-9a-f]{8})\b", line):
            if at is None:
                at = int(m.group(1), 16)
                blocks[at] = []
            blocks[at].append(int(m.group(2), 16))
        else:
            at = None
    if process.wait() != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return blocks, counts


def count(qemu, root, binary, cpu, options, table, base, span):
    addresses, names = table
    total = {}
    for times, sign in ((2, -1), (6, 1)):
        blocks, counts = run(qemu, root, binary, cpu, [*options, "--times", str(times)],
                             base + span[0], span[1] - span[0])
        for pc, n in counts.items():
            for i, word in enumerate(blocks[pc]):
                name = names[bisect.bisect_right(addresses, pc + 4 * i - base) - 1]
                key = (name, kind_of(word))
                total[key] = total.get(key, 0) + sign * n
    return {key: n / 4 for key, n in total.items()}


def cycles(sums, cpu):
    decode, vector, product, load, _ = CORES[cpu]
    return max(sum(sums.values()) / decode, (sums["vector"] + sums["product"]) / vector,
               sums["product"] / product, sums["load"] / load)


def print_row(cpu, work, total, top):
    title, _, unit, per, only = work
    sums, functions = dict.fromkeys(KINDS, 0.0), {}
    for (name, kind), n in total.items():
        if re.search(only, name):
            sums[kind] += n / per
            functions[name] = functions.get(name, 0) + n / per
    print(f"| {cpu} | {title} | {unit} | {sum(sums.values()):.0f} | "
          f"{sums['vector'] + sums['product']:.0f} | {sums['product']:.0f} | {sums['load']:.0f} | "
          f"{cycles(sums, cpu) / CORES[cpu][4]:.0f} |")
    for name, n in sorted(functions.items(), key=lambda f: -f[1])[:top]:
        print(f"    {n:8.1f} {name}")


def main():
    folder, root = sys.argv[1:3]
    top = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    binary = os.path.join(folder, "bin/trikv-bench")
    qemu = os.environ.get("QEMU", "qemu-aarch64-static")
    table = symbols("aarch64-linux-gnu-nm", binary)
    core = subprocess.check_output(["aarch64-linux-gnu-nm", os.path.join(folder, "lib/core.a")],
                                   text=True)
    defined = {line.split()[2] for line in core.splitlines() if re.match(r"[0-9a-f]+ T ", line)}
    inside = [i for i, name in enumerate(table[1]) if name in defined]
    span = (table[0][inside[0]], table[0][inside[-1] + 1])
    base = 0x5500000000  # where qemu puts a position-independent program
    print("| core | work | per | instructions | on vectors | multiplications | loads | ns at least |\n"
          "|---|---|---|---|---|---|---|---|")
    for cpu in CORES:
        for work in WORKS:
            total = count(qemu, root, binary, cpu, [*work[1], "--tokens", str(TOKENS)], table, base,
                          span)
            print_row(cpu, work, total, top)


if __name__ == "__main__":
    main()
