"""Small packages in the formats of those that `make corpora` takes from Debian, and an archive."""

import hashlib
import shutil
import struct
import subprocess
import zlib

from support.catalogues import catalogue

from experiments.tasks.text.sources import austen, debian

HELP = '<html><p id="par_id{0}" class="x">{1} <b>und</b> so.</p><p>no name</p></html>'
PAGE = """<page xmlns="http://projectmallard.org/1.0/"><title>{}</title>
<section><p>{} <gui>{}</gui>.</p></section></page>"""
DING = """# a dictionary
Haus {n} [arch.] | das große Haus (am See) :: house | the big house (by the lake)
Wir gehen heute nach Hause.; Wir gehen heim. :: We are going home today.
zwei :: Seiten :: two sides
ein Wort {n} | noch ein Wort :: only one side
"""


def unpacked(folder):
    """Write the content of all packages below `folder/<package>/`."""
    help_ = "usr/share/libreoffice/help/{}/text/a.html"
    novels = database([novel(1), novel(2)])
    files = {
        f"libreoffice-help-de/{help_.format('de')}": HELP.format(7, "Öffnet alle Dateien"),
        f"libreoffice-help-en-us/{help_.format('en-US')}": HELP.format(7, "Opens all files"),
        f"libreoffice-help-de/{help_.format('de').replace('a.', 'b.')}": "nothing beside it",
        "trans-de-en/usr/share/trans/de-en": DING,
        "gnome-user-docs/usr/share/help/de/gnome-help/a.page": PAGE.format(
            "Farben wählen", "Klicken Sie auf", "Farben"),
        "gnome-user-docs/usr/share/help/C/gnome-help/a.page": PAGE.format(
            "Choose colors", "Click on", "Colors"),
        "libreoffice-l10n-de/usr/lib/libreoffice/program/resource/de/LC_MESSAGES/x.mo": catalogue(
            {"~Print all": "Alles ~drucken"}),
        austen.FILE: novels,
    }  # fmt: skip
    for place, content in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def novel(number):
    """Lines of a novel of ten chapters, each with two paragraphs."""
    lines = ["A NOVEL", "", "by somebody", "", "VOLUME I", "", ""]
    for chapter in range(1, 11):
        lines += [f"CHAPTER {chapter}", "", f"It was chapter {chapter}, as the",
                  f"reader of novel {number} knows.", "", "“Indeed,” she said.", ""]  # fmt: skip
    return lines


def database(vectors):
    """R's file of vectors of strings, after R Internals."""
    content = b""
    for lines in vectors:
        block = b"X\n" + struct.pack(">iii", 3, 0x40201, 0x30500)
        block += struct.pack(">i", 5) + b"UTF-8" + struct.pack(">ii", 16, len(lines))
        for line in map(str.encode, lines):
            block += struct.pack(">ii", 0x40009, len(line)) + line
        content += struct.pack(">I", len(block)) + zlib.compress(block)
    return content


def archive(folder, monkeypatch):
    """Let apt-get know an archive of these packages alone; nothing of the machine's is changed."""
    trees, place = unpacked(folder / "trees"), folder / "archive"
    place.mkdir()
    entries = []
    for name in (*debian.PACKAGES.names, *austen.PACKAGES.names):
        control = f"Package: {name}\nVersion: 2:1.0-1\nArchitecture: all\n"
        control += "Maintainer: nobody <nobody@example.org>\nDescription: a test\n"
        (trees / name / "DEBIAN").mkdir()
        (trees / name / "DEBIAN" / "control").write_text(control, encoding="utf-8")
        path = place / f"{name}_1.0-1_all.deb"
        subprocess.run(["dpkg-deb", "--build", trees / name, path], check=True,
                       capture_output=True)  # fmt: skip
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(f"{control}Filename: ./{path.name}\nSize: {path.stat().st_size}\n"
                       f"SHA256: {digest}\n")  # fmt: skip
    (place / "Packages").write_text("\n".join(entries), encoding="utf-8")
    configure(folder, f"deb [trusted=yes] file:{place} ./\n", monkeypatch)
    subprocess.run(["apt-get", "-qq", "update"], check=True, capture_output=True)
    return place


def configure(folder, sources, monkeypatch):
    """Give apt-get lists of its own."""
    state = folder / "apt"
    shutil.rmtree(state, ignore_errors=True)
    (state / "lists" / "partial").mkdir(parents=True)
    (state / "archives" / "partial").mkdir(parents=True)
    (state / "status").write_text("", encoding="utf-8")
    (state / "sources.list").write_text(sources, encoding="utf-8")
    (state / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{state}/sources.list";\nDir::Etc::sourceparts "-";\n'
        f'Dir::State "{state}";\nDir::State::lists "{state}/lists";\n'
        f'Dir::State::status "{state}/status";\nDir::Cache "{state}";\n'
        f'Dir::Cache::archives "{state}/archives";\nAPT::Sandbox::User "";\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("APT_CONFIG", str(state / "apt.conf"))
