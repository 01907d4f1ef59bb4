"""Use a finished run on text: `python -m experiments.translate RUN TEXT...`.

RUN is the directory of a run. Of a translation each TEXT is translated, one line each, with the
weights and the beam search with which its BLEU was measured. Of a language model the perplexity of
each TEXT is printed. `--file FILE` takes the lines of a text file instead (`-`: of stdin).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import cli
from experiments.errors import UserError
from experiments.tasks.language_modeling.task import LanguageModeling
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
    texts = [*parsed.texts, *(_lines(parsed.file) if parsed.file else ())]
    if not texts:
        raise UserError("no text: write it behind the run, in quotes, or name a --file")
    task, model, epoch = restore(directory, parsed.device)
    model.eval()
    if isinstance(task, Translation):
        for line in task.translate(model, texts):
            print(line)
    elif isinstance(task, LanguageModeling):
        measured, tokens = task.measure_text(model, texts)
        print(f"perplexity {measured['perplexity']:.2f} over {tokens} tokens, after epoch {epoch}")
    else:
        raise UserError(f"{directory} is a run of {task.config.task}: there is nothing to read")


def _lines(name: str) -> list[str]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from None
    return text.split("\n")[: -1 if text.endswith("\n") else None]


if __name__ == "__main__":
    sys.exit(main())
