"""The report as one HTML page: build.py calls `whole` when the Markdown is written.

The page needs no other file and no network: pictures and the frames of the episode are inside it,
as data. It can be read on a screen and printed; on paper the film strip stands for the player.
"""
import base64
import html
import io
import os
import re

PLAYER = "<!-- player -->"                      # stands in the Markdown where the player goes
LINK = re.compile(r'href="(report(?:-tables)?)\.md')
PICTURE = re.compile(r'<p><img alt="([^"]*)" src="([^"]+)" ?/></p>\s*<p><em>(Figure .*?)</em></p>',
                     re.S)
SOURCE = re.compile(r"<p><em>(From <a .*?)</em></p>", re.S)
TABLE = re.compile(r"<table>.*?</table>", re.S)
TOGETHER = re.compile(r"(?<=\d) (?=%|to [+-]?\d)|(?<=\d to) (?=[+-]?\d)")   # spaces not to break at

STYLE = """
body { font: 17px/1.5 Charter, Georgia, "Liberation Serif", "Times New Roman", serif; color: #222; }
body { max-width: 52em; margin: 2em auto; padding: 0 1em; overflow-wrap: break-word; }
h1, h2, h3, th, nav, .player { font-family: Helvetica, Arial, "Liberation Sans", sans-serif; }
h1, h2, h3 { line-height: 1.25; }
h1 { font-size: 1.7em; }
h2 { font-size: 1.35em; margin-top: 2em; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.1em; margin-top: 1.6em; }
a { color: #2166ac; text-decoration: none; }
nav { font-size: 0.85em; background: #f5f6f8; padding: 0.3em 1em; border-radius: 4px; }
nav ul { list-style: none; padding-left: 1.2em; margin: 0.2em 0; }
nav > div > ul { padding-left: 0; columns: 2; }
nav > div > ul > li { break-inside: avoid; }
code { font: 0.85em Menlo, Consolas, "Liberation Mono", monospace; background: #f5f6f8; }
pre { background: #f5f6f8; padding: 0.7em 1em; overflow-x: auto; line-height: 1.35; }
.wide { overflow-x: auto; margin: 0.8em 0 0.3em; }
table { border-collapse: collapse; font-size: 0.8em; line-height: 1.3; }
th, td { padding: 0.25em 0.6em; border-bottom: 1px solid #ddd; text-align: left; }
th { border-bottom: 1px solid #888; vertical-align: bottom; }
td { vertical-align: top; }
figure { margin: 1.2em 0; }
figure img { display: block; margin: 0 auto; max-width: 100%; max-height: 60em; }
figcaption, .source { font-size: 0.82em; color: #555; }
.source { margin: 0 0 1.2em; }
.player { text-align: center; font-size: 0.85em; }
.player .animation, .player .anim-controls { margin: auto; max-width: 100%; }
.player img { max-width: 100%; }
@media (max-width: 600px) {
  body { margin: 1em auto; font-size: 16px; }
  nav > div > ul { columns: 1; }
}
@page { size: A4; margin: 13mm; }
@media print {
  body { font-size: 9.4pt; line-height: 1.3; max-width: none; margin: 0; padding: 0; }
  p { margin: 0.6em 0; }
  h2 { margin-top: 1em; }
  h3 { margin: 0.8em 0 0.4em; }
  h2, h3 { break-after: avoid; }
  tr, figure, pre { break-inside: avoid; }
  thead { display: table-header-group; }
  table { font-size: 0.74em; }
  th, td { padding: 0.1em 0.4em; }
  .wide { overflow: visible; margin: 0.5em 0 0.2em; }
  .source { font-size: 0.72em; margin-bottom: 0.8em; }
  figure { margin: 0.6em 0; }
  figure img { max-height: 7.5cm; }
  .player { display: none; }
  a { color: inherit; }
}
"""

BUTTONS = {                                     # icons of matplotlib's player -> signs of a font
    "fa-minus": "\u2212",
    "fa-fast-backward": "|\u25c0",
    "fa-step-backward": "\u2039",
    "fa-pause": "||",
    "fa-play fa-flip-horizontal": "\u25c0",
    "fa-play": "\u25b6",
    "fa-step-forward": "\u203a",
    "fa-fast-forward": "\u25b6|",
    "fa-plus": "+",
}


def embedded(path):
    """A picture file -> its data, as an address. 256 colours are enough for a chart, at a third of
    the size."""
    from PIL import Image                       # matplotlib brings it
    small = io.BytesIO()
    with Image.open(path) as image:
        reduced = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        reduced.save(small, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()


def player(results):
    """ResultFiles -> HTML in which the episode plays, with buttons and a slider."""
    import hjepa
    import numpy as np
    from matplotlib.animation import FuncAnimation

    content, arrays = results["episode"], results.arrays("episode")
    world = hjepa.World(content["world"]["masses"], content["world"]["radius"])
    path = np.concatenate([arrays["start"][None], arrays["states"]])
    last = len(arrays["states"])
    figure, axes = hjepa.new_figure(1, 1, 3.5, 3.75)

    def show(t):
        force = arrays["forces"][t // content["clip_frames"]] if t < last else None
        hjepa.draw_frame(axes[0, 0], world, path[:t + 1], arrays["goal"], force)
        axes[0, 0].set_title(f"frame {t} of {last}", fontsize=10)

    film = FuncAnimation(figure, show, frames=last + 1).to_jshtml(fps=12, default_mode="loop")
    film = re.sub(r"<link\b[^>]*>", "", film)                             # icons from the network
    for icon, sign in BUTTONS.items():
        film = film.replace(f'<i class="fa {icon}"></i>', sign)
    random_name = re.search(r'id="_anim_img(\w+)"', film)[1]
    return f'<div class="player">{film.replace(random_name, "_episode")}</div>'


def framed(match):
    """A table -> its frame, which scrolls on a small screen; intervals stay on one line."""
    return f'<div class="wide">{TOGETHER.sub("&nbsp;", match[0])}</div>'


def whole(text, folder, film):
    """Markdown, the folder its links start from, the player's HTML -> the page, or None without
    the package `markdown`."""
    try:
        import markdown
    except ImportError:
        return None
    converter = markdown.Markdown(extensions=["tables", "toc"],
                                  extension_configs={"toc": {"toc_depth": "2-3"}})
    body = converter.convert(text)

    def figure(match):
        alt, name, caption = match.groups()
        picture = embedded(os.path.normpath(folder / html.unescape(name)))
        return (f'<figure><img alt="{alt}" src="{picture}"><figcaption>{caption}</figcaption>'
                "</figure>")

    body = PICTURE.sub(figure, body)
    body = SOURCE.sub(r'<p class="source">\1</p>', body)
    body = TABLE.sub(framed, body)
    body = LINK.sub(r'href="\1.html', body)
    body = body.replace("<h2", f"<nav>{converter.toc}</nav>\n<h2", 1)
    body = body.replace(PLAYER, film)
    title = re.search(r"<h1[^>]*>(.*?)</h1>", body)[1]
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
            "</body>\n</html>\n")
