"""Counts the words of 11 letters in a FASTA file and its reverse complement, and writes a table: a small job."""

import sys
from collections import Counter

LENGTH = 11
COMPLEMENT = str.maketrans("ACGT", "TGCA")


def main(source: str, target: str) -> None:
    """Read ``source``, write ``target``."""
    counts: Counter[str] = Counter()
    with open(source, encoding="ascii") as file:
        for line in file:
            if line.startswith(">"):
                continue
            for text in (line.strip(), line.strip()[::-1].translate(COMPLEMENT)):
                counts.update(text[start : start + LENGTH] for start in range(len(text) - LENGTH + 1))
    with open(target, "w", encoding="ascii") as file:
        for word, count in sorted(counts.items(), key=lambda row: (-row[1], row[0])):
            file.write(f"{word}\t{count}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
