"""Writes the report: figures/report.md, report-tables.md and report.html.

    python figures/report/build.py                       of figures/results
    python figures/report/build.py --results DIR         of another run's results, into DIR
    python figures/report/build.py --readme              also renews the blocks of README.md
    python figures/report/build.py --check               writes nothing; exit 1 if out of date

The text stands in report.md.in and report-tables.md.in, beside this script. A person edits it. In
double braces stands what is put in:

    {{table NAME}}                      a table, of tables.py
    {{figure NAME | caption}}           results/NAME.png
    {{FILE PATH | percent 1}}           a number of results/FILE.json; lib/resolve.py has paths
    {{FILE PATH | percent 1 interval}}  with the interval at PATH_ci
    {{QUANTITY | number 0}}             a number that tables.py computes
    {{player}}                          the episode as a film, in report.html only

Formats: percent N, points N and number N with N decimals, list (N), count.
A paragraph with a number that has not been measured gives way to the command that measures it. A
conclusion that is not true of the numbers (claims.py) is marked.

The page needs one package more: pip install -r figures/requirements-report.txt. Without it only the
Markdown files are written.
"""
import argparse
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parent
ROOT = FIGURES.parent
for folder in (ROOT, FIGURES, HERE):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import claims                                                             # noqa: E402
import page                                                               # noqa: E402
import readme                                                             # noqa: E402
import tables                                                             # noqa: E402
import tables_studies                                                     # noqa: E402,F401
from lib.resolve import Missing, ResultFiles                              # noqa: E402

PAGES = ("report", "report-tables")             # NAME.md.in -> NAME.md and NAME.html
DIRECTIVE = re.compile(r"\{\{(.*?)\}\}", re.S)
BLOCKS = re.compile(r"(\n{2,})")                # between paragraphs
NOT_TRUE = " **[not so here]**"
WARNING = ("*The text was written about the results in figures/results. Sentences marked "
           "**[not so here]** do not hold for those shown on this page.*")


def formatted(value, form, ci=None):
    """A value and 'percent 1' -> text. ValueError for a format that does not exist."""
    name, *digits = form.split()
    digits = int(digits[0]) if digits else 0
    if name == "list":
        return tables.listed([f"{item:.{digits}f}" if digits else f"{item:g}" for item in value])
    if name == "count":
        words = ("no", "one", "two", "three", "four", "five", "six")
        return words[len(value)] if len(value) < len(words) else f"{len(value):,}"
    if name not in ("percent", "points", "number"):
        raise ValueError(f"{form}: no such format")
    return getattr(tables, name)(value, ci, digits=digits)


class Writer:
    """Fills in the text of one page. results: ResultFiles. out: the folder of the page."""

    def __init__(self, results, out):
        self.results = results
        self.pictures = Path(os.path.relpath(results.folder, out)).as_posix()
        self.untrue = []                        # claims that were marked

    def page(self, source):
        """The text of NAME.md.in -> Markdown."""
        parts = BLOCKS.split(source.strip())
        for place in range(0, len(parts), 2):
            parts[place] = self.block(parts[place])
        text = without_repeats(parts)
        if self.untrue:
            title, rest = text.split("\n", 1)
            text = f"{title}\n\n{WARNING}\n{rest}"
        return numbered(text) + "\n"

    def block(self, text):
        """One paragraph, filled in; or a note, if a number is not there."""
        try:
            filled = DIRECTIVE.sub(lambda match: self.directive(" ".join(match[1].split())), text)
            return self.judged(filled)
        except Missing as missing:
            if missing.file is None:
                return "*Not measured: these results have too few goals or films for it.*"
            return f"*Not measured yet: `{tables.command(missing.file)}`*"

    def directive(self, text):
        """What stands in braces -> what is put there."""
        if text == "player":
            self.results.arrays("episode")
            return page.PLAYER
        asked, _, form = [part.strip() for part in text.partition("|")]
        if asked.startswith("table "):
            return self.table(asked.removeprefix("table "))
        if asked.startswith("figure "):
            return self.figure(asked.removeprefix("figure "), form)
        if asked in tables.QUANTITIES:
            return formatted(tables.QUANTITIES[asked](self.results), form)
        ci = None
        if form.endswith("interval"):
            form = form.removesuffix("interval")
            ci = self.results.value(f"{asked}_ci")
        return formatted(self.results.value(asked), form, ci)

    def table(self, name):
        """A table, and the line under it that says where it comes from."""
        table = tables.TABLES[name]
        return f"{table(self.results)}\n\n{self.source(table.files)}"

    def source(self, files):
        """*From plan.json: n = 200, seed 0, 300 epochs, float32.*"""
        names = [f"[{file}.json]({self.pictures}/{file}.json)" for file in files]
        content = self.results[files[0]]
        told = [f"n = {content['n']:,}", f"seed {tables.listed(content['seeds'])}",
                f"{content['epochs']} epochs"]
        told += precision(files[0], content)
        return f"*From {tables.listed(names)}: {', '.join(told)}.*"

    def figure(self, name, caption):
        """A picture and its caption, which `numbered` will number."""
        if not (self.results.folder / f"{name}.png").exists():
            raise Missing(name)
        return f"![{name}]({self.pictures}/{name}.png)\n\n*Figure: {caption}*"

    def judged(self, text):
        """A paragraph -> the same; conclusions that are not true of these results are marked."""
        for phrase, holds in claims.REPORT.items():
            pattern = phrase_pattern(phrase)
            if not pattern.search(text):
                continue
            try:
                true = holds(self.results)
            except Missing:
                raise
            except LookupError:                 # such as a share of no goals at all
                raise Missing(None, "nothing to compare") from None
            if not true:
                self.untrue.append(phrase)
                text = pattern.sub(lambda match: match[0] + NOT_TRUE, text)
        return text


def phrase_pattern(phrase):
    """A phrase -> a pattern that finds it, however its lines are broken."""
    return re.compile(r"\s+".join(re.escape(word) for word in phrase.split()))


def precision(file, content):
    """['float32'], where a file says in which precision it was measured, or trained."""
    if "precision" not in content:
        return []
    words = tables.PRECISION[content["precision"]]
    return [f"trained with {words}" if file == "curves" else words]


def without_repeats(parts):
    """Paragraphs and what is between them -> the text; a note that is repeated stands once."""
    kept = []
    for place in range(0, len(parts), 2):
        if parts[place].startswith("*Not measured") and parts[place] in kept[-2:]:
            continue
        kept += parts[place:place + 2]
    return "".join(kept).strip()


def numbered(text):
    """Numbers headings of levels 2 and 3, if the page has figures to refer to, and the figures."""
    chapter = section = figures = 0
    lines = text.split("\n")
    appendix = lines[0].startswith("# Tables")
    for place, line in enumerate(lines):
        if line.startswith("*Figure: "):
            figures += 1
            lines[place] = f"*Figure {'T' if appendix else ''}{figures}: {line[9:]}"
        elif line.startswith("## ") and not appendix:
            chapter, section = chapter + 1, 0
            lines[place] = f"## {chapter}. {line[3:]}"
        elif line.startswith("### ") and not appendix:
            section += 1
            lines[place] = f"### {chapter}.{section} {line[4:]}"
    return "\n".join(lines)


def build(results, out):
    """ResultFiles, folder -> dict of file name -> text, list of claims that are not true here."""
    texts, untrue = {}, []
    for name in PAGES:
        writer = Writer(results, out)
        texts[f"{name}.md"] = writer.page((HERE / f"{name}.md.in").read_text())
        untrue += writer.untrue
    film = ""
    if "episode" in results:
        with tables.blaming("episode"):
            film = page.player(results)
    for name in PAGES:
        html = page.whole(texts[f"{name}.md"], out, film)
        if html is not None:
            texts[f"{name}.html"] = html
    return texts, untrue


def differing(files):
    """dict of path -> text: the paths that hold something else. Pictures inside a page do not
    count: their bytes depend on the version of the library that packs them."""
    def plain(text):
        return re.sub(r"data:image/png;base64,[^\"]*", "", text)
    changed = []
    for path, text in files.items():
        if not path.exists() or plain(path.read_text()) != plain(text):
            changed.append(path)
    return changed


def write(path, text):
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    print(f"wrote {path}")


def make_parser():
    parser = argparse.ArgumentParser(prog="figures/report/build.py", allow_abbrev=False,
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="folder of results (figures/results)")
    parser.add_argument("--out", type=Path, help="where the report goes (figures, or --results)")
    parser.add_argument("--readme", action="store_true", help="renew the blocks of README.md too")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    return parser


def run(args):
    """-> exit code."""
    results = ResultFiles(args.results or FIGURES / "results")
    out = args.out or args.results or FIGURES
    if not results.folder.is_dir():
        raise ValueError(f"{results.folder} is not a folder of results")
    if args.readme and args.results:
        raise ValueError("--readme goes without --results: README.md shows figures/results")
    texts, untrue = build(results, out)
    files = {out / name: text for name, text in texts.items()}
    if args.readme or args.check and not args.results:
        path = ROOT / "README.md"
        files[path] = readme.renew(path.read_text(), results, ROOT)
    for phrase in untrue:
        print(f"not true of these results: {phrase}", file=sys.stderr)

    if args.check:
        changed = differing(files)
        for path in changed:
            print(f"out of date: {path}: run figures/report/build.py --readme", file=sys.stderr)
        return 1 if changed or untrue else 0
    for path, text in files.items():
        write(path, text)
    if "report.html" not in texts:
        print("no report.html: it needs pip install -r figures/requirements-report.txt")
    return 0


def main(argv=None):
    """-> exit code: 0 done, 1 out of date (--check), 2 something to mend (one line says what)."""
    args = make_parser().parse_args(argv)
    try:
        return run(args)
    except (OSError, ValueError, TypeError, LookupError) as error:
        print(f"build.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
