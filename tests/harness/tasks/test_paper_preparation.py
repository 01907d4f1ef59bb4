"""The paper's corpora from archives in the formats in which they are published."""

import io
import tarfile
import zipfile

import pytest

from experiments import corpora
from experiments.errors import UserError
from experiments.tasks.text.prepared import Recipe, prepare
from experiments.tasks.text.sources.paper_preparation import (
    byte_pairs,
    filtered,
    prepare_paper,
    segments,
)
from experiments.tasks.text.sources.raw_archives import RawArchives

NAMES = ["Anna", "Bert", "Cora", "Dora", "Emil", "Fritz", "Gerda", "Hans"]
# 56 pairs; in each English side an apostrophe, which Moses escapes.
PAIRS = [(f"{a} sieht {b} im großen Haus.", f"{a} sees {b} in Dora's big house.")
         for a in NAMES for b in NAMES if a != b]  # fmt: skip


def tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            content = text if isinstance(text, bytes) else text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def column(side, pairs=PAIRS):
    return "".join(f"{pair[side]}\n" for pair in pairs)


def xml(side, pairs, quote="’"):
    rows = [f'<seg id="{i}"> {pair[side]} </seg>' for i, pair in enumerate(pairs, 1)]
    return f"<doc>\n<title>Not this</title>\n{chr(10).join(rows)}\n</doc>\n".replace("'", quote)


def iwslt14(path, pairs=PAIRS):
    """The archive of the evaluation's training and test sets, German and English."""
    head = ("<url>http://x</url>\n<keywords>k, e, y</keywords>\n<title>Der Name hier</title>\n"
            "<description>Ein Satz, und mehr</description>\n")  # fmt: skip
    long = ["wort " * 176, "kurz", ""], ["word " * 176, "much too long for it", "empty"]
    files = {}
    for side, language in enumerate(("de", "en")):
        text = head + column(side, pairs) + "".join(f"{line}\n" for line in long[side])
        files[f"de-en/train.tags.de-en.{language}"] = text
        for part in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"):
            rows = PAIRS[:3] if part == "TED.dev2010" else [(f"{part} Wort", f"{part} word")]
            files[f"de-en/IWSLT14.{part}.de-en.{language}.xml"] = xml(side, rows)
    return tar(path, files)


def lines(folder, name):
    return (folder / name).read_text(encoding="utf-8").split("\n")[:-1]


def tokens(line):
    return line.replace("'s", " &apos;s").replace(".", " .")


def joined(line):
    return line.replace("@@ ", "")


def test_iwslt14_is_split_and_filtered_as_by_the_script(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sacremoses"), pytest.importorskip("subword_nmt")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    archive = iwslt14(tmp_path / "de-en.tgz")
    assert corpora.main(["iwslt14", "--from", str(archive)]) == 0
    assert "train 56 pairs, valid 2 pairs, test 7 pairs" in capsys.readouterr().out
    folder = tmp_path / "iwslt14.tokenized.de-en"
    train, valid = lines(folder, "train.en"), lines(folder, "valid.en")
    # Title and description are 1 and 2, so the 23rd and the 46th are the pairs 20 and 43.
    assert [joined(x) for x in valid] == [tokens(PAIRS[i][1]).lower() for i in (20, 43)]
    assert joined(lines(folder, "train.de")[1]) == "ein satz , und mehr"
    assert joined(train[2]) == "anna sees bert in dora &apos;s big house ."
    test = [joined(x) for x in lines(folder, "test.en")]
    parts = ["tedx.dev2012", "ted.tst2010", "ted.tst2011", "ted.tst2012"]
    assert test[0] == joined(train[2]) and test[3:] == [f"{part} word" for part in parts]
    corpus = prepare(Recipe("iwslt14", ("de", "en"), "words", None), tmp_path)
    assert corpus.meta["examples"] == {"train": 56, "val": 2, "test": 7}
    assert corpora.main(["iwslt14", "--from", str(archive)]) == 2
    assert "is there already; remove it" in capsys.readouterr().err


def test_wmt14_has_the_papers_splits(tmp_path):
    pytest.importorskip("sacremoses"), pytest.importorskip("subword_nmt")
    unequal = [("kurz", "this is much too long for it, as anybody can see")]
    news = [("Das „Haus-Boot“\u00a0hier", "The “house-boat” here")]
    sets = {"europarl-v7": PAIRS[:30], "commoncrawl": PAIRS[30:40] + unequal,
            "news-commentary-v9": news}  # fmt: skip
    archives = [tar(tmp_path / f"{part}.tgz", {f"training/{part}.de-en.{language}":
                    column(side, pairs) for side, language in enumerate(("de", "en"))})
                for part, pairs in sets.items()]  # fmt: skip
    held_out = {f"dev/newstest2013.{x}": column(i, PAIRS[:4]) for i, x in enumerate(("de", "en"))}
    held_out["test-full/newstest2014-deen-ref.de.sgm"] = xml(0, PAIRS[:3], "'")
    held_out["test-full/newstest2014-deen-src.en.sgm"] = xml(1, PAIRS[:3], "'")
    archives.append(tar(tmp_path / "dev.tgz", held_out))
    said = prepare_paper("wmt14", archives, tmp_path)
    assert said.startswith("train 41 pairs, valid 4 pairs, test 3 pairs")
    folder = tmp_path / "wmt14_en_de"
    assert joined(lines(folder, "train.de")[-1]) == "Das &quot; Haus @-@ Boot &quot; hier"
    assert joined(lines(folder, "test.en")[0]) == tokens(PAIRS[0][1])


def test_pieces_are_learned_from_both_sides_of_the_training_set():
    pytest.importorskip("subword_nmt")
    splits = {"train": PAIRS, "valid": [("Häuser", "houses")], "test": []}
    cut = byte_pairs(splits, 30)
    assert [tuple(map(joined, pair)) for pair in cut["train"]] == PAIRS
    german, english = (" ".join(pair[side] for pair in cut["train"]).split() for side in (0, 1))
    assert "sieht" in german and "sees" in english and "Gerda" not in english
    assert "@@" in cut["valid"][0][0] and cut["test"] == []


@pytest.mark.parametrize(
    ("name", "member", "ending"),
    [
        ("ptb", "simple-examples/data/ptb.{}.txt", "txt"),
        ("wikitext103", "wikitext-103/wiki.{}.tokens", "tokens"),
    ],
)
def test_texts_of_words_are_kept_as_they_are(name, member, ending, tmp_path):
    texts = {
        split: f" {split} of <unk> \n\n = A title = \n" for split in ("train", "valid", "test")
    }
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split, text in texts.items():
            archive.writestr(member.format(split), text)
    said = prepare_paper(name, [path], tmp_path)
    (folder,) = [one for one in tmp_path.iterdir() if one.is_dir()]
    assert said == f"train 3 lines, valid 3 lines, test 3 lines in {folder}"
    found = {one.name: one.read_text(encoding="utf-8") for one in folder.iterdir()}
    assert found == {f"{split}.{ending}": text for split, text in texts.items()}
    assert prepare(Recipe(name, ("en",), "words", None), tmp_path).texts("val", "en")[1] == ""


def test_pairs_are_filtered_as_by_moses():
    pairs = [("a b", "a b c"), ("a b", "a b c d"), ("", "a"), ("a", ""), ("a " * 5, "b " * 5)]
    assert filtered(pairs, 1, 4) == pairs[:1]
    assert filtered(pairs, 1, 5) == [pairs[0], pairs[4]]
    found = segments(["<seg id='1'> It’s so. </seg>", "<p>", "<seg>no</seg>"])
    assert found == ["It's so."]


def broken(path):
    whole = iwslt14(path).read_bytes()
    yield whole[: len(whole) // 2], "cannot be read"
    yield b"no archive", "cannot be read"
    yield tar(path, {"x/train.tags.de-en.de": "a\n"}).read_bytes(), "en is not in"
    twice = {f"{x}/train.tags.de-en.{y}": "a\n" for x in "ab" for y in ("de", "en")}
    yield tar(path, twice).read_bytes(), "de is 2 times in"
    unequal = {"train.tags.de-en.de": "a\n", "train.tags.de-en.en": "a\nb\n"}
    yield tar(path, unequal).read_bytes(), "1 German lines and 2 English ones"
    latin = {"train.tags.de-en.de": "für\n".encode("latin-1")}
    yield tar(path, latin).read_bytes(), "is not UTF-8: .* at byte 1"


def test_what_is_wrong_with_an_archive_is_said(tmp_path):
    pytest.importorskip("sacremoses")
    for content, message in broken(tmp_path / "made.tgz"):
        path = tmp_path / "de-en.tgz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            prepare_paper("iwslt14", [path], tmp_path)
        assert "\n" not in str(caught.value)
    assert not [one for one in tmp_path.iterdir() if one.is_dir()]
    with pytest.raises(UserError, match="iwslt14: no file .*nowhere"):
        prepare_paper("iwslt14", [tmp_path / "nowhere"], tmp_path)


def test_files_are_found_in_folders_too(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.txt").write_text("one\ntwo", encoding="utf-8")
    assert RawArchives([tmp_path / "a"], "ptb").lines("x.txt") == ["one", "two"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["iwslt14"],
            "cannot be downloaded here; `pip install -c constraints.txt -e "
            "'.[paper-corpora]' && python -m experiments.corpora iwslt14 --from de-en.tgz`",
        ),
        (
            ["ptb"],
            "downloaded here; `python -m experiments.corpora ptb --from simple-examples.tgz`",
        ),
        (["iwslt14", "ptb", "--from", "x"], "name one of iwslt14, wmt14, ptb, wikitext103"),
        (["debian", "--from", "x"], "name one of iwslt14"),
    ],
)
def test_what_does_not_go_together_is_refused(words, message, capsys):
    assert corpora.main(words) == 2
    assert message in capsys.readouterr().err
