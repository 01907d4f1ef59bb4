"""`experiments.translate` on finished runs."""

import io

import pytest
from support.harness import small_config
from support.text import small_home
from support.training import train_here

from experiments import translate
from experiments.plans.load import load, resolve
from experiments.runs.metrics import read_metrics
from experiments.training import loop
from experiments.training.restore import restore


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return small_home(tmp_path_factory)


@pytest.fixture
def trained(home, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(home))

    def trained(name):
        config = resolve(load(home / f"{name}.yaml", ["epochs=2"]), "sgd", 1)
        directory = loop.RunDirectory(home / "runs", config)
        if not directory.done:
            with directory.locked():
                loop.train(config, directory, home)
        return directory

    return trained


def test_texts_are_translated_in_their_order(trained, tmp_path, capsys, monkeypatch):
    directory = str(trained("translation").path)
    lines = ["ein sehr langer Satz über 5 Tage und 3 Wochen", "5 Tage", "", "Syrien 漢"]
    task, model, _ = restore(trained("translation").path, "cpu")
    expected = [task.translate(model.eval(), [line])[0] for line in lines]
    assert translate.main([directory, *lines, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == expected
    (tmp_path / "lines.txt").write_text("\n".join(lines[:2]) + "\n", encoding="utf-8")
    assert translate.main([directory, "--file", str(tmp_path / "lines.txt")]) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == expected[:2]
    stdin = io.TextIOWrapper(io.BytesIO(lines[1].encode()), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    assert translate.main([directory, "--file", "-"]) == 0
    assert capsys.readouterr().out == f"{expected[1]}\n"


def test_a_language_models_perplexity_is_printed(trained, home, tmp_path, capsys):
    directory = trained("language")
    (prepared,) = (home / "kjv").iterdir()
    assert translate.main([str(directory.path), "--file", str(prepared / "test.en")]) == 0
    measured = read_metrics(directory.metrics_path)[-1]["test/perplexity"]
    assert capsys.readouterr().out.startswith(f"perplexity {measured:.2f} over ")


@pytest.mark.parametrize("name", ["translation", "language"])
def test_a_file_is_read_as_the_corpus_is(name, trained, tmp_path, capsys):
    """Mark at the beginning, ends of lines, doubled blanks, letters in two parts; a blank line."""
    directory, said = str(trained(name).path), []
    for text in (
        "vor 5 Tagen\n\nfür zwölf Wochen\n",
        "\ufeffvor  5\tTagen\r\n\r\nfu\u0308r zwo\u0308lf Wochen",
    ):
        (tmp_path / "lines.txt").write_text(text, encoding="utf-8", newline="")
        assert translate.main([directory, "--file", str(tmp_path / "lines.txt")]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    if name == "translation":
        first, blank, second, _ = said[0].split("\n")
        assert first and not blank and second
        assert translate.main([directory, ""]) == 0
        assert capsys.readouterr().out == "\n"


def test_what_the_vocabulary_has_not_is_said(trained, capsys):
    directory = str(trained("translation").path)
    assert translate.main([directory, "Syrien 漢"]) == 0
    assert "1 of " in (said := capsys.readouterr().err) and "are unknown to the run's" in said


def test_what_cannot_be_translated_is_refused(trained, home, tmp_path, capsys):
    digits = train_here(tmp_path, small_config("epochs=1", "model.name=convnet", "model.depth=2"))
    directory = str(trained("translation").path)
    (tmp_path / "latin").write_bytes(b"\xe4hnlich")
    (tmp_path / "empty").touch()
    for words, message in (
        ([str(home), "hello"], "is no run's directory"),
        ([directory], "no text: write it behind the run"),
        ([directory, "--file", str(tmp_path / "none")], "none cannot be read"),
        ([directory, "--file", str(tmp_path / "empty")], "no text: write it behind the run"),
        ([directory, "kurz", "5 Tage " * 400], "text 2, '5 Tage 5 Tage 5 Tage 5 Tage 5 ...', has"),
        ([directory, "\udce4hnlich"], r"the text '\udce4hnlich' is not UTF-8"),
        ([directory, "--file", str(tmp_path / "latin")], "is not UTF-8"),
        ([str(digits.path), "hello"], "a run of image_classification: there is nothing to read"),
    ):
        assert translate.main(words) == 2
        assert message in capsys.readouterr().err
