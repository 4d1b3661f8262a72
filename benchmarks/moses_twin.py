"""Lowercased, normalised, tokenised twins of text files, as papers score Multi30k on.

    pip install sacremoses
    python -m benchmarks.moses_twin en FILE... -o FOLDER

Apostrophes and quotation marks are not escaped; in files that other people have tokenised, ``&apos;`` and its like
are put back first.
"""

import argparse
import html
from pathlib import Path

from sacremoses import MosesPunctNormalizer, MosesTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("language", help="like en or fr")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--unescape", action="store_true", help="the files are tokenised: only unescape them")
    options = parser.parse_args()
    normaliser, tokenizer = MosesPunctNormalizer(options.language), MosesTokenizer(options.language)
    options.output.mkdir(parents=True, exist_ok=True)
    for path in options.files:
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if options.unescape:
                lines.append(html.unescape(line))
            else:
                lines.append(
                    tokenizer.tokenize(normaliser.normalize(line.strip().lower()), return_str=True, escape=False)
                )
        (options.output / path.name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
