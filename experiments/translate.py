"""Use a finished run on text: `python -m experiments.translate RUN TEXT...`.

RUN is the directory of a run. Of a translation each TEXT is translated, one line each, with the
weights and the beam search with which its BLEU was measured; that of an empty one is empty. Of a
language model the perplexity of all TEXTs together, each a line, is printed. `--file FILE` takes
the lines of a text file instead (`-`: of stdin). They are written as the corpus of the run is:
without doubled blanks, and in Unicode's composed form where that has it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import cli
from experiments.errors import UserError
from experiments.runtime.progress import say
from experiments.tasks.language_modeling.task import LanguageModeling
from experiments.tasks.text.sources.files import lines_of, read_lines
from experiments.tasks.text.task import TextTask
from experiments.tasks.text.vocabulary import UNKNOWN
from experiments.tasks.translation.task import Translation
from experiments.training.restore import restore


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.translate", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the directory of a run")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a sentence, in quotes")
    parser.add_argument("--file", metavar="FILE", help="a text file, UTF-8, a sentence a line")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return cli.execute(parser, _translate, arguments)


def _translate(parsed: argparse.Namespace) -> None:
    directory = Path(parsed.run)
    if not (directory / "config.yaml").is_file():
        raise UserError(f"{directory} is no run's directory: it has no config.yaml")
    for text in parsed.texts:
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise UserError(f"the text {text!r} is not UTF-8")
    texts = [*parsed.texts, *(_lines(parsed.file) if parsed.file else ())]
    if not texts:
        raise UserError("no text: write it behind the run, in quotes, or name a --file")
    task, model, epoch = restore(directory, parsed.device)
    model.eval()
    if isinstance(task, TextTask):
        texts = task.corpus.as_its_own(texts)
        _say_unknown(task.vocabulary.encode(texts))
    if isinstance(task, Translation):
        for line in task.translate(model, texts):
            print(line)
    elif isinstance(task, LanguageModeling):
        measured, tokens = task.measure_text(model, texts)
        print(f"perplexity {measured['perplexity']:.2f} over {tokens} tokens, after epoch {epoch}")
    else:
        raise UserError(f"{directory} is a run of {task.config.task}: there is nothing to read")


def _say_unknown(numbers: Sequence[Sequence[int]]) -> None:
    """Say that texts have what the vocabulary has not: of that a model knows nothing."""
    tokens = [token for line in numbers for token in line]
    if unknown := tokens.count(UNKNOWN):
        say(f"{unknown} of {len(tokens)} tokens are unknown to the run's vocabulary")


def _lines(name: str) -> list[str]:
    if name != "-":
        return read_lines(Path(name))
    return lines_of(sys.stdin.buffer.read(), "stdin")


if __name__ == "__main__":
    sys.exit(main())
