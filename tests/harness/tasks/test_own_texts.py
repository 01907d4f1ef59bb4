"""A folder of texts of one's own, for both tasks."""

import os
from dataclasses import replace

import pytest
from support.harness import REPOSITORY
from support.training import train_here

from experiments import evaluate, translate
from experiments.errors import UserError
from experiments.plans.load import load, resolve
from experiments.runs.metrics import read_metrics
from experiments.tasks.text.prepared import Recipe, find, prepare
from experiments.training import session

TEXT = Recipe("novels", ("en",), "words", None, "novels")
PAIRS = Recipe("tales", ("fr", "pt-BR"), "words", None, "tales")
FILES = {TEXT: [["txt"]], PAIRS: [["fr"], ["pt-BR"]]}


def write(root, recipe, **texts):
    """Each text into a file for each language: the n-th of them ends in the language's name."""
    folder = root / recipe.own
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        for (ending,) in FILES[recipe]:
            marked = text.replace("*", ending)
            (folder / f"{name}.{ending}").write_text(marked, encoding="utf-8")
    return folder


@pytest.mark.parametrize("recipe", FILES, ids=lambda recipe: recipe.corpus)
def test_three_files_are_taken_as_they_are(recipe, tmp_path):
    """But for blanks, the ends of lines of Windows, and the mark with which it begins a file."""
    write(tmp_path, recipe, train="\ufeffone  *\r\n\r\none *\n", val="two *", test="three *\n")
    corpus = prepare(recipe, tmp_path)
    for language, (ending,) in zip(recipe.languages, FILES[recipe], strict=True):
        assert corpus.texts("train", language) == [f"one {ending}", "", f"one {ending}"]
        assert corpus.texts("val", language) == [f"two {ending}"]
        assert corpus.texts("test", language) == [f"three {ending}"]


def test_an_unsplit_text_stays_one_piece(tmp_path):
    lines = [f"line {number}" for number in range(1000)]
    write(tmp_path, TEXT, all="\n".join(lines))
    corpus = prepare(TEXT, tmp_path)
    parts = [corpus.texts(split, "en") for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [900, 50, 50] and sum(parts, []) == lines


def test_unsplit_pairs_never_change_sides_and_are_there_once(tmp_path):
    def sides(count):
        lines = [f"word {number} of *" for number in range(count)]
        write(tmp_path, PAIRS, all="\n".join(["", *lines, lines[0]]))
        corpus = prepare(PAIRS, tmp_path)
        found = {}
        for split in ("train", "val", "test"):
            ours, theirs = (corpus.texts(split, language) for language in PAIRS.languages)
            assert [line[:-2] for line in ours] == [line[:-5] for line in theirs]
            found |= dict.fromkeys(ours, split)
        assert len(found) == count and set(found.values()) == {"train", "val", "test"}
        assert corpus.meta["dropped"] == {"duplicates": 1, "empty": 1}
        return found

    few, many = sides(300), sides(500)
    assert few.items() <= many.items()


def test_languages_without_blanks_and_with_marks_for_vowels_are_kept(tmp_path):
    folder = write(tmp_path, PAIRS, all="")
    pairs = [
        (f"le chat numéro {n} voit une souris grise dans la cour", f"猫{n}नमस्ते") for n in range(99)
    ]
    for place, ending in enumerate(PAIRS.languages):
        text = "\n".join(pair[place] for pair in pairs)
        (folder / f"all.{ending}").write_text(text, encoding="utf-8")
    examples = prepare(PAIRS, tmp_path).meta["examples"]
    assert sum(examples.values()) == 99


def test_texts_that_differ_in_their_vowels_alone_are_not_the_same(tmp_path):
    """Marks, for Unicode: no letters."""
    folder = write(tmp_path, PAIRS, all="".join(f"number {n} of *\n" for n in range(99)))
    for ending, texts in (("fr", "लड़का लड़की"), ("pt-BR", "กา กี")):
        with (folder / f"all.{ending}").open("a", encoding="utf-8") as file:
            file.write(texts.replace(" ", "\n"))
    meta = prepare(PAIRS, tmp_path).meta
    assert sum(meta["examples"].values()) == 101 and not meta["dropped"]


def test_other_files_are_other_data(tmp_path):
    folder = write(tmp_path, TEXT, train="a b", val="c", test="d")
    first = prepare(TEXT, tmp_path)
    (folder / "test.txt").write_text("e e")
    second = prepare(TEXT, tmp_path)
    assert first.folder != second.folder and first.meta["sha256"] != second.meta["sha256"]


@pytest.mark.parametrize("recipe", FILES, ids=lambda recipe: recipe.corpus)
def test_what_is_missing_is_named_with_what_to_do(recipe, tmp_path):
    ending = FILES[recipe][-1][0]
    (tmp_path / recipe.own / f"val.{ending}").mkdir(parents=True)  # a folder is no file
    assert find(recipe, tmp_path) is None
    with pytest.raises(UserError) as caught:
        prepare(recipe, tmp_path)
    message = str(caught.value)
    assert str(tmp_path / recipe.own) in message and f"all.{ending}" in message
    assert f"val.{ending}" in message and "\n" not in message
    (tmp_path / recipe.own / f"val.{ending}").rmdir()
    write(tmp_path, recipe, train="a *", val="b *", test="c *")
    (tmp_path / recipe.own / f"test.{ending}").unlink()
    with pytest.raises(UserError, match=rf"\(test.{ending} missing\)"):
        prepare(recipe, tmp_path)


def test_bad_files_are_named(tmp_path):
    folder = write(tmp_path, PAIRS, all="a *\nb *\n")
    (folder / "all.fr").write_text("a\n")
    with pytest.raises(UserError, match="all.fr 1 and all.pt-BR 2"):
        prepare(PAIRS, tmp_path)
    (folder / "all.fr").write_bytes("é\nè\n".encode("latin-1"))
    with pytest.raises(UserError, match="all.fr is not UTF-8"):
        prepare(PAIRS, tmp_path)
    write(tmp_path, TEXT, all="all in one line")
    with pytest.raises(UserError, match=r"all.txt has 1 lines, too few .* train.txt"):
        prepare(TEXT, tmp_path)
    if os.geteuid():  # root reads everything
        (folder / "all.fr").chmod(0)
        with pytest.raises(UserError, match="all.fr cannot be read: Permission denied"):
            prepare(PAIRS, tmp_path)


@pytest.mark.parametrize(
    ("recipe", "text", "message"),
    [
        (TEXT, "\n", "has no train set: nothing was left of it$"),
        (PAIRS, "the same {} on both sides\n", r"nothing was left of it \(60 identical sides\)"),
        (PAIRS, "\n", r"nothing was left of it \(60 empty\)"),
        (replace(TEXT, kind="pieces", size=4), "a text\n", "= 4: 4 of them are special pieces"),
        (replace(TEXT, kind="pieces", size=8), "a text\n", r"= 8: at least \d+, the characters"),
    ],
)
def test_why_nothing_can_be_made_of_a_text(recipe, text, message, tmp_path):
    (tmp_path / recipe.own).mkdir()
    lines = "".join(text.format(number) for number in range(60))
    names = ["train.txt", "val.txt", "test.txt"] if recipe != PAIRS else ["all.fr", "all.pt-BR"]
    for name in names:
        (tmp_path / recipe.own / name).write_text(lines, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        prepare(recipe, tmp_path)


# ----------------------------------------------------------------------------------------- training

OWN = {
    "kjv": ["dataset.name=novels", "dataset.vocabulary=80", "model.width=16", "model.layers=1",
            "dataset.length=8"],
    "cldr": ["dataset.name=tales", "dataset.vocabulary=60", "model.width=16",
             "dataset.source=fr", "dataset.target=pt-BR"],
}  # fmt: skip


def config(name, root, *more, optimizer="adamw"):
    settings = [*OWN[name], f"dataset.root={root}", "dataset.sha256=null", "epochs=2",
                "dataset.steps_per_epoch=4", "schedule={name: constant}", *more]  # fmt: skip
    return resolve(load(REPOSITORY / f"configs/{name}/transformer.yaml", settings), optimizer, 1)


@pytest.mark.parametrize(("name", "recipe"), [("kjv", TEXT), ("cldr", PAIRS)])
def test_it_is_trained_on(name, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    lines = "".join(f"the * number {n % 17} sees {n % 13} of {n % 11}\n" for n in range(400))
    folder = write(tmp_path, recipe, all=lines)
    directory = train_here(tmp_path, config(name, folder))
    rows = read_metrics(directory.metrics_path)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert directory.path.relative_to(tmp_path).parts[0] == recipe.corpus
    if name == "cldr":
        assert translate.main([str(directory.path), "the fr number 3"]) == 0
        assert capsys.readouterr().out.strip()


def test_a_model_is_measured_on_other_texts_by_its_own_vocabulary(tmp_path, monkeypatch, capsys):
    """With others in the place of its own it is not measured at all, prepared already or not."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    texts = {
        split: "".join(f"the * number {n % 17} sees {n % 13} of {n % 11}\n" for n in range(count))
        for split, count in (("train", 300), ("val", 30), ("test", 30))
    }
    folder = write(tmp_path, PAIRS, **texts)
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    run = str(train_here(tmp_path, config("cldr", folder)).path)

    def measured(*words, code=0):
        capsys.readouterr()
        assert evaluate.main([run, *words]) == code
        return capsys.readouterr().out if code == 0 else capsys.readouterr().err

    own = measured()
    (tmp_path / "elsewhere").mkdir()
    other = write(tmp_path / "elsewhere", PAIRS, **texts | {"test": "number 3 of *\n" * 20})
    assert own.splitlines()[:2] == measured("--data", str(other)).splitlines()[:2]
    assert own != measured("--data", str(other))
    write(tmp_path / "elsewhere", PAIRS, **texts | {"train": texts["train"].replace("sees", "y")})
    assert "makes another vocabulary" in measured("--data", str(other), code=2)

    write(tmp_path, PAIRS, **texts | {"train": texts["train"].replace("sees", "y")})
    with pytest.raises(UserError, match="was trained on other data"):  # done is not done on these
        session.train_unless_done(config("cldr", folder))
    for _ in range(2):
        assert translate.main([run, "the fr number 3"]) == 2
        assert "was trained on other data" in capsys.readouterr().err
    write(tmp_path / "elsewhere", PAIRS, **texts)
    assert "texts of the run are not in" in measured("--data", str(other), code=2)


def test_weights_of_another_vocabulary_of_the_same_size_are_refused(tmp_path, monkeypatch):
    """Their shapes fit, and every number stands for another word; also where texts are gone."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    lines = "".join(f"the * number {n % 17} sees {n % 13} of {n % 11}\n" for n in range(400))
    folders = {}
    for name, text in (("one", lines), ("like", lines + "of 3\n" * 9), ("other", lines[::-1])):
        (tmp_path / name).mkdir()
        folders[name] = write(tmp_path / name, TEXT, all=text.replace("*", "txt"))
    run = train_here(tmp_path, config("kjv", folders["one"], "epochs=1")).path
    begin = ("epochs=1", f"init_from.path={run}")
    train_here(tmp_path, config("kjv", folders["one"], *begin, "batch_size=2"))
    with pytest.raises(UserError, match="init_from: .*makes another vocabulary.*init_from.skip"):
        train_here(tmp_path, config("kjv", folders["other"], *begin))
    train_here(tmp_path, config("kjv", folders["other"], *begin, "init_from.skip=['embedding.*']"))
    write(tmp_path / "one", TEXT, all=lines * 2 + "now\n")
    with pytest.raises(UserError, match="init_from: .*the texts of the run are not in"):
        train_here(tmp_path, config("kjv", folders["like"], *begin))


@pytest.mark.parametrize("optimizer", ["adamw", "adahessian"])
def test_the_file_for_ones_own_text_is_trained_small(optimizer, tmp_path):
    write(
        tmp_path, TEXT, all="".join(f"number {n % 17} sees {n % 13} of {n}\n" for n in range(400))
    )
    small = {
        "dataset.root": "novels", "dataset.vocabulary": 60, "dataset.length": 8,
        "dataset.steps_per_epoch": 4, "model.width": 16, "model.ffn": 32, "model.heads": 2,
        "model.layers": 1, "batch_size": 60, "micro_batches": 3, "epochs": 2,
        "schedule": {"name": "constant"},
    }  # fmt: skip
    settings = resolve(load(REPOSITORY / "configs/own-text/gpt2-small.yaml", small), optimizer, 1)
    rows = read_metrics(train_here(tmp_path, settings).metrics_path)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cldr", ["dataset.name=cldr"], "cldr has a place of its own: root is for texts under"),
        (
            "cldr",
            ["dataset.root=''"],
            "no corpus is called 'tales', and root, .* is not set; did",
        ),
        ("cldr", ["dataset.root=''", "dataset.name=cldd"], "did you mean 'cldr'"),
        ("cldr", ["dataset.root=''", "dataset.name=cldr"], "language '.*': cldr has de and en"),
        ("cldr", ["dataset.source=../x"], "dataset.source"),
        ("cldr", ["dataset.source=pt-BR"], "source and target are both 'pt-BR'"),
        ("kjv", ["dataset.name=cldr", "dataset.root=''"], "no corpus is called 'cldr'"),
    ],
)
def test_a_name_without_a_folder_is_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        config(name, "/there", *settings)
