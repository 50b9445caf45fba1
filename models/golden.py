#!/usr/bin/env python3
"""Write the golden outputs that the tests compare with.

    golden.py MODEL.gguf TOKENIZER.model TEXT.txt OUTDIR

heldout-300.txt  "id loss top1" for each of TEXT's first 300 tokens with <s> in front: its id, its
    loss in nats by the float64 forward pass, and the id that the model thought likeliest,
tokenizer.tsv    text TAB token ids, from sentencepiece; in the text \\n, \\t, \\r and \\\\ stand
                 for newline, tab, carriage return and backslash
"""
import sys
import numpy as np
import sentencepiece
import reference

TOKENS = 300
CASES = [
    "Call me Ishmael.", "hello world", " leading space", "  two leading spaces", "trailing space ",
    "many     spaces   inside", "\n", "\n\n\n", "line one\nline two\r\n", "tab\tinside\t\t",
    "1234567890", "The number of Ada Fisher is 48213.", "3.14159 and -2e10",
    "price: $9.99 (10% off)",
    "na\u00efve caf\u00e9 \u2014 \u201cquoted\u201d \u2026", "\u4f60\u597d\uff0c\u4e16\u754c",
    "\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439",
    "\u03b1\u03b2\u03b3 \u2202x/\u2202t",
    "\U0001f600\U0001f680 rocket", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "e\u0301 is not \u00e9", "zero\u200bwidth \u00a0nbsp",
    "def f(x):\n    return x ** 2\n",
    "back\\slash and \"quotes\" and 'ticks'", "ALL CAPS AND mIxEd",
    "supercalifragilisticexpialidocious", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<s> </s> <unk> <0x41>",
    "\u2581already escaped\u2581", "_Three invalids.--Sufferings of George and Harris._", "a", "",
]
ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"})


def write_losses(model, sp, text, out):
    ids = np.array([sp.bos_id()] + sp.encode(text)[:TOKENS])
    logits = model.forward(ids[:-1])
    loss, top1 = reference.losses(logits, ids[1:]), logits.argmax(-1)
    out.writelines(f"{token} {nats:.9f} {best}\n" for token, nats, best in zip(ids[1:], loss, top1))


def write_cases(sp, out):
    for case in CASES:
        out.write(case.translate(ESCAPES) + "\t" + " ".join(map(str, sp.encode(case))) + "\n")


def main():
    model, tokenizer, text, outdir = sys.argv[1:]
    sp = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
    with open(f"{outdir}/heldout-{TOKENS}.txt", "w") as out:
        held_out = open(text, encoding="utf8", newline="").read()
        write_losses(reference.Model(model), sp, held_out, out)
    with open(f"{outdir}/tokenizer.tsv", "w", encoding="utf8", newline="\n") as out:
        write_cases(sp, out)


if __name__ == "__main__":
    main()
