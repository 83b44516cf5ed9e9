"""README.md: its generated blocks, and the numbers in its text.

A block stands between two markers and is written by build.py --readme:

    <!-- table goals: made by figures/report/build.py -->
    ...
    <!-- end -->

A number in running text stands there as a person wrote it. readme.toml says for each phrase where
its numbers come from; `wrong` compares, and `unlisted` finds percentages and decimals that are
neither generated nor listed.
"""
import re
import tomllib
from pathlib import Path

import tables


HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- table (\w+): made by figures/report/build\.py -->\n)(.*?)(<!-- end -->)",
                   re.S)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
SHARE = re.compile(r"\d[\d,]*(?:\.\d+)? ?%|\d+\.\d+")             # a percentage or a decimal
BANNER = re.compile(r"^# ((?:\d+\. [A-Z ]+|APPENDIX) - .*)\n#{40,}$", re.M)


# The blocks: functions of the result files and of the repository.

def goals(results, root):
    """What planning.json says of the planners that README shows."""
    content = results["planning"]
    return (tables.TABLES["goals"](results) + f"\n\n{content['n']} goals in test worlds, "
            f"{content['epochs']} epochs, {len(content['seeds'])} training seed, float32. "
            "Brackets: 95 % intervals over goals. "
            "Protocol: [report](figures/report.md#4-protocol).")


def expect(results, root):
    """What a training gives, by the machine one has."""
    quick, full = results["quick/curves"], results["curves"]
    best = tables.one(results["seeds/planning"]["rows"], planner="replanned from guess")
    reaches = (f"{tables.percent(best['mean_body'])} of goals by the mean body, "
               f"{tables.percent(best['success'])} by the worst (mean of three seeds)")
    rows = [
        ["one CPU core", "`train --preset quick`", f"{quick['minutes']:.0f} minutes", reaches],
        ["one or two cores", "`train`", f"{full['minutes'] / 60:.1f} hours, with other work "
         "beside it", "the table above"]]
    return tables.grid(["you have", "python hjepa.py", "time", "expect"], rows)


def sections(results, root):
    """What hjepa.py holds, and where."""
    text = (root / "hjepa.py").read_text()
    banners = list(BANNER.finditer(text))
    starts = [text.count("\n", 0, banner.start()) + 1 for banner in banners]
    ends = [start - 1 for start in starts[1:]] + [text.count("\n")]
    rows = []
    for banner, start, end in zip(banners, starts, ends):
        name, about = banner[1].split(" - ", 1)
        rows.append([name.title(), about, f"{start} to {end}"])
    return tables.grid(["section of `hjepa.py`", "what it holds", "lines"], rows)


BLOCKS = {"goals": goals, "expect": expect, "sections": sections}


def renew(text, results, root):
    """README's text -> the same with each block as the files say."""
    def block(match):
        begin, name, _, end = match.groups()
        return f"{begin}{BLOCKS[name](results, root)}\n{end}"
    return BLOCK.sub(block, text)


# The numbers in running text.

def running_text(text):
    """README without blocks, code and addresses; white space is one space."""
    text = BLOCK.sub("", text)
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>", " ", text)
    return " ".join(text.split())


def listed(path=HERE / "readme.toml"):
    """readme.toml -> dict of phrase -> list of (address, format), dict of allowed settings."""
    content = tomllib.loads(path.read_text())
    phrases = {}
    for phrase, sources in content["numbers"].items():
        phrases[phrase] = [tuple(part.strip() for part in source.split("|")) for source in sources]
    return phrases, content["settings"]["allowed"]


def wrong(text, phrases, results, formatted):
    """Complaints: a phrase that is not there exactly once, a number that is not its file's.
    formatted(value, format) -> text."""
    plain, complaints = running_text(text), []
    for phrase, sources in phrases.items():
        if plain.count(phrase) != 1:
            complaints.append(f"'{phrase}' is {plain.count(phrase)} times in README, not once")
        said = [number.replace(",", "") for number in NUMBER.findall(phrase)]
        true = []
        for address, form in sources:
            shown = formatted(results.value(address), form)
            true += [number.replace(",", "") for number in NUMBER.findall(shown)]
        if said != true:
            complaints.append(f"'{phrase}': the files say {', '.join(true)}")
    return complaints


def unlisted(text, phrases, allowed):
    """Percentages and decimals of running text that are neither listed nor settings."""
    plain = running_text(text)
    for phrase in phrases:
        plain = plain.replace(phrase, " ")
    return [found for found in SHARE.findall(plain) if found not in allowed]
