"""Training and evaluation sequences: plain prose, and prose with something to look back for.

A cache compressor can only be judged by a model that really looks back, so a share of the sequences
holds one of these, at random depths:
  repeat  a passage comes again, verbatim; half of them random tokens, which only copying predicts
  number  "The number of <Name> is <digits>." among prose, asked again later; other wordings too
  word    the same with ordinary words as answers: where someone was born, what someone carried
  list    a list of word pairs, "river: candle", asked again later
"""
import numpy as np
import sentencepiece

FIRST = ("Ada Ben Cora Dan Ella Finn Grace Hugh Iris Jack Kate Liam Mary Noah Olga Paul Rosa Sam "
         "Tess Tom Emma Fred Jane John Lucy Mark Nora Owen Ruth Will").split()
LAST = ("Abbot Baker Carter Draper Ellis Fisher Grant Hunter Irwin Jones King Lane Mason Norris "
        "Osborn Parker Quick Reeve Smith Taylor Usher Vane Walker Young Archer Bishop Cooper "
        "Fuller Turner Porter").split()
PLACES = ("London Paris Rome Vienna Dublin Berlin Boston Venice Athens Cairo Lisbon Madrid Oxford "
          "York Naples Moscow Chester Geneva Canton Bombay").split()
COLOURS = ("red blue green white black brown yellow grey purple golden silver scarlet "
           "crimson").split()
THINGS = ("river candle table window garden letter bridge horse mirror forest hammer basket "
          "feather castle ribbon anchor pepper lantern barrel saddle kettle needle pillow "
          "button carpet ladder engine violin orange butter copper marble silver velvet "
          "pocket finger shadow winter summer morning evening doctor captain soldier farmer "
          "teacher sailor widow brother island desert meadow valley mountain village market "
          "church prison temple harbour knife spoon bottle glass paper pencil coffee sugar "
          "bread apple lemon cherry flower tree stone wheel chain sword arrow shield crown "
          "ring coin purse coat hat boot glove shirt dog cat bird fish sheep wolf fox bear "
          "lion eagle").split()

# how a fact is told and how it is asked; {} takes the name, the answer follows each
NUMBERS = [
    ("The number of {} is", "What is the number of {}? It is"),
    ("{} lives in house", "In which house does {} live? In house"),
    ("The ticket of {} had the number", "Which ticket had {}? Number"),
    ("{} kept the secret code", "Say the secret code of {}:"),
    ("They paid {} exactly", "How much was paid to {}? Exactly"),
]
WORDS = [
    (PLACES, "{} was born in", "Where was {} born? In"),
    (PLACES, "The family of {} came from", "From which town came the family of {}? From"),
    (COLOURS, "The favourite colour of {} is", "What is the favourite colour of {}? It is"),
    (COLOURS, "{} always wore", "Which colour did {} always wear? It was"),
    (THINGS, "{} always carried a", "What did {} always carry? A"),
    (THINGS, "The present for {} was a", "What was the present for {}? A"),
]
SPACE = "▁"


class Tasks:
    def __init__(self, tokenizer, most_facts=8):
        self.most_facts = most_facts
        self.sp = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
        self.vocab = self.sp.vocab_size()

    # Each of these makes n tokens: (ids, mask of the answer tokens).

    def prose(self, rng, source, n):
        start = rng.randint(0, len(source) - n)
        return np.array(source[start:start + n], np.int64), np.zeros(n, bool)  # a copy: callers write

    def repeat(self, rng, source, n):
        ids, mask = self.prose(rng, source, n)
        if rng.rand() < 0.5:
            ids = rng.randint(3, self.vocab, n)
        length = rng.randint(min(48, n // 4), n // 2)
        src = rng.randint(0, n - 2 * length + 1)
        dst = rng.randint(src + length, n - length + 1)
        ids[dst:dst + length] = ids[src:src + length]
        mask[dst + 16:dst + length] = True  # before that, nothing says that it comes again
        return ids, mask

    def halves(self, rng, source, n):
        """The second half is the first again; the mask leaves out the first 32 tokens of it."""
        ids, mask = self.prose(rng, source, n)
        half = (n - 1) // 2
        ids[half + 1:2 * half + 1] = ids[1:half + 1]
        mask[half + 33:2 * half + 1] = True
        return ids, mask

    def original(self, rng, source, n):
        return self.number(rng, source, n, NUMBERS[:1])

    def number(self, rng, source, n, templates=NUMBERS):
        names = self.names(rng)
        told, asked = templates[rng.randint(len(templates))]
        pairs = [(name, str(rng.randint(10000, 100000))) for name in names]
        return self.facts(rng, source, n, told, asked, pairs)

    def word(self, rng, source, n):
        answers, told, asked = WORDS[rng.randint(len(WORDS))]
        pairs = [(name, answers[rng.randint(len(answers))])
                 for name in self.names(rng)]
        return self.facts(rng, source, n, told, asked, pairs)

    def list(self, rng, source, n):
        words = [THINGS[j] for j in rng.permutation(len(THINGS))]
        pairs = list(zip(words[::2], words[1::2]))[:rng.randint(6, 25)]
        told = [self.line("\n" + "\n".join(f"{a}: {b}" for a, b in pairs) + "\n")]
        picks = [pairs[j] for j in rng.permutation(len(pairs))[:self.most_facts]]
        asked = [self.line(f"\n{a}:", f" {b}", "\n") for a, b in picks]
        return self.scatter(rng, source, n, told, asked)

    def names(self, rng):
        count = rng.randint(2, self.most_facts + 1)
        picks = rng.permutation(len(FIRST) * len(LAST))[:count]
        return [f"{FIRST[j % len(FIRST)]} {LAST[j // len(FIRST)]}" for j in picks]

    def facts(self, rng, source, n, told, asked, pairs):
        tell = [self.line(f"\n{told.format(name)} {answer}.\n") for name, answer in pairs]
        ask = [self.line(f"\n{asked.format(name)}", f" {answer}", ".\n") for name, answer in pairs]
        return self.scatter(rng, source, n, tell, [ask[j] for j in rng.permutation(len(ask))])

    def line(self, prompt, answer="", tail=""):
        """Tokens of a line, and which of them are the answer (a lone space is not)."""
        parts = [self.sp.encode(part) for part in (prompt, answer, tail)]
        lone = self.sp.piece_to_id(SPACE)
        mask = [False] * len(parts[0]) + [t != lone for t in parts[1]] + [False] * len(parts[2])
        return np.array(sum(parts, []), np.int64), np.array(mask)

    def scatter(self, rng, source, n, tell, ask):
        """Lines of tell at random places of the first 3/4 of the prose, ask over the rest."""
        lines = tell + ask
        free = n - sum(len(ids) for ids, _ in lines)
        text, none = self.prose(rng, source, free)
        first = free * 3 // 4
        cuts = [0, *np.sort(rng.randint(0, first, len(tell))),
                *np.sort(rng.randint(first, free, len(ask))), free]
        ids, mask = [], []
        for i, (line, answer) in enumerate(lines + [(text[:0], none[:0])]):
            ids += [text[cuts[i]:cuts[i + 1]], line]
            mask += [none[cuts[i]:cuts[i + 1]], answer]
        return np.concatenate(ids), np.concatenate(mask)


def score(kind, losses, mask):
    """Mean loss of prose, or of the second showing; for facts, in percent, the answer tokens given
    more than half of the probability, and the answers (runs of such tokens) wholly right."""
    if kind in ("prose", "halves"):
        chosen = [loss if kind == "prose" else loss[m] for loss, m in zip(losses, mask)]
        return {"nats": float(np.mean(np.concatenate(chosen)))}
    hits, whole = [], []
    for loss, m in zip(losses, mask):
        hit = loss < np.log(2)
        starts = np.flatnonzero(np.diff(np.r_[0, m]) == 1)
        ends = np.flatnonzero(np.diff(np.r_[m, 0]) == -1) + 1
        hits += [hit[m]]
        whole += [hit[a:b].all() for a, b in zip(starts, ends)]
    return {"tokens": 100 * float(np.mean(np.concatenate(hits))),
            "answers": 100 * float(np.mean(whole)), "count": len(whole)}
