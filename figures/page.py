"""The report as one HTML page: what report.py calls once its Markdown is written.

The page needs no other file and no network: pictures and the frames of the episode are inside it, as data. It is
made to be read on a screen and to be printed; on paper the film strip stands for the player.
"""
import base64
import html
import io
import re

PLAYER = "<!-- player -->"                      # what Markdown holds in the player's place
STYLE = """
body { font: 17px/1.5 Charter, Georgia, "Liberation Serif", "Times New Roman", serif; color: #222; }
body { max-width: 54em; margin: 2em auto; padding: 0 1em; }
h1, h2, h3, th, nav, .player { font-family: Helvetica, Arial, "Liberation Sans", sans-serif; line-height: 1.25; }
h1 { font-size: 1.7em; } h3 { font-size: 1.1em; margin-top: 1.6em; }
h2 { font-size: 1.35em; margin-top: 2em; border-bottom: 1px solid #ccc; }
nav { font-size: 0.85em; background: #f5f6f8; padding: 0.3em 1em; border-radius: 4px; }
nav ul { list-style: none; padding-left: 1.2em; margin: 0.2em 0; } nav > div > ul { padding-left: 0; columns: 2; }
nav > div > ul > li { break-inside: avoid; } a { color: #2166ac; text-decoration: none; }
code { font: 0.85em Menlo, Consolas, "Liberation Mono", monospace; background: #f5f6f8; overflow-wrap: anywhere; }
pre { background: #f5f6f8; padding: 0.7em 1em; overflow-x: auto; line-height: 1.35; }
pre code { background: none; overflow-wrap: normal; }
.wide { overflow-x: auto; margin: 0.8em 0; }
table { border-collapse: collapse; font-size: 0.8em; line-height: 1.3; }
th, td { padding: 0.25em 0.6em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #888; }
figure { margin: 1.2em 0; } figure img { display: block; margin: 0 auto; max-width: 100%; max-height: 60em; }
figcaption, .source { font-size: 0.82em; color: #555; }
.player { text-align: center; font-size: 0.85em; } .player .animation { margin: auto; }
.player .anim-controls { margin: auto; }
@page { size: A4; margin: 13mm; }
@media print {
  body { font-size: 9.2pt; line-height: 1.25; max-width: none; margin: 0; padding: 0; }
  p { margin: 0.6em 0; } h2 { margin-top: 1em; } h3 { margin: 0.8em 0 0.4em; }
  h2, h3 { break-after: avoid; } tr, figure, pre { break-inside: avoid; }
  thead { display: table-header-group; } table { font-size: 0.72em; } th, td { padding: 0.1em 0.4em; }
  .wide { overflow: visible; margin: 0.5em 0; } .long { columns: 2; } .long td { white-space: nowrap; }
  figure { margin: 0.6em 0; } figure img { max-height: 9.4cm; }
  .player { display: none; } a { color: inherit; } .source { font-size: 0.72em; }
}
"""
BUTTONS = {"fa-minus": "\u2212", "fa-fast-backward": "|\u25c0", "fa-step-backward": "\u2039", "fa-pause": "||",
           "fa-play fa-flip-horizontal": "\u25c0", "fa-play": "\u25b6", "fa-step-forward": "\u203a",
           "fa-fast-forward": "\u25b6|", "fa-plus": "+"}


def embedded(path):
    """A picture file -> its data, as an address. 256 colours are enough for a chart, at a third of the size."""
    from PIL import Image                       # matplotlib brings it
    small = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()


def player(content):
    """episode.json -> HTML in which the episode plays, with buttons and a slider."""
    import hjepa
    import numpy as np
    from matplotlib.animation import FuncAnimation
    world = hjepa.World(content["world"]["masses"], content["world"]["radius"])
    path, goal = np.array([content["start"], *content["states"]]), np.array(content["goal"])
    forces, hold, last = np.array(content["forces"]), content["hold"], len(content["states"])
    figure, axes = hjepa.canvas(1, 1, 3.5, 3.75)

    def show(t):
        hjepa.draw_frame(axes[0, 0], world, path[:t + 1], goal, forces[t // hold] if t < last else None)
        axes[0, 0].set_title(f"frame {t} of {last}", fontsize=10)
    text = FuncAnimation(figure, show, frames=last + 1).to_jshtml(fps=12, default_mode="loop")
    text = re.sub(r"<link\b[^>]*>", "", text)                             # its icons would come from the network
    for icon, sign in BUTTONS.items():
        text = text.replace(f'<i class="fa {icon}"></i>', sign)
    drawn = re.search(r'id="_anim_img(\w+)"', text)[1]                    # a random name; ours does not change
    return f'<div class="player">{text.replace(drawn, "_episode")}</div>'


def framed(match):
    """A table -> its frame: wide ones scroll on a small screen, long narrow ones have two columns on paper."""
    rows, cells = match[1].count("<tr>"), match[1].count("<th>")
    return f'<div class="wide{" long" if rows > 15 and cells < 7 else ""}">{match[1]}</div>'


def whole(text, title, folder, film):
    """Markdown, title, folder of its pictures, the player's HTML -> the page. ImportError without `markdown`."""
    import markdown
    converter = markdown.Markdown(extensions=["tables", "toc"], extension_configs={"toc": {"toc_depth": "2-3"}})
    body = converter.convert(text)

    def figure(match):
        alt, name, caption = match.groups()
        path = folder / html.unescape(name)
        seen = (f'<img alt="{alt}" src="{embedded(path)}">' if path.exists() else
                f"<p><strong>{name} is missing: run its command again.</strong></p>")
        return f"<figure>{seen}<figcaption>{caption}</figcaption></figure>"
    body = re.sub(r'<p><img alt="([^"]*)" src="([^"]+)" ?/></p>\s*<p><em>(Figure .*?)</em></p>', figure, body,
                  flags=re.S)
    body = re.sub(r"<p><em>(<code>python .*?)</em></p>", r'<p class="source">\1</p>', body, flags=re.S)
    body = re.sub(r"(<table>.*?</table>)", framed, body, flags=re.S)
    body = body.replace("<h2", f"<nav>{converter.toc}</nav>\n<h2", 1).replace(PLAYER, film)
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" '
            f'content="width=device-width">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n'
            "</body>\n</html>\n")
