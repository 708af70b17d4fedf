# SPDX-License-Identifier: Apache-2.0
"""A picture of rectangles, lines, circles and words: written as SVG by itself, as PNG through matplotlib.

Both come from the same list of shapes in the same coordinates (pixels, from the top left), so they look the same.

Owns: shapes and files. Must not know: what is drawn.
"""

from __future__ import annotations

from html import escape
from typing import Any, Literal

from .output import CommandError

__all__ = ["Canvas"]

Anchor = Literal["start", "middle", "end"]
_FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


class Canvas:
    """Shapes to be drawn, the first at the bottom.

    Args:
        width, height: pixels.
        title: for those who cannot see the picture.
    """

    def __init__(self, width: int, height: int, title: str, background: str = "#ffffff") -> None:
        self.width, self.height, self.title = width, height, title
        self._shapes: list[tuple[str, dict[str, Any]]] = []
        self.rect(0, 0, width, height, background)

    def rect(self, x: float, y: float, width: float, height: float, fill: str, *, radius: float = 0) -> None:
        """A filled rectangle."""
        self._shapes.append(("rect", {"x": x, "y": y, "width": width, "height": height, "fill": fill, "radius": radius}))

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dashed: bool = False) -> None:
        """A straight line."""
        self._shapes.append(("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "colour": colour, "width": width, "dashed": dashed}))

    def circle(self, x: float, y: float, radius: float, fill: str, edge: str = "", width: float = 1.5) -> None:
        """A disc, with an edge if it has a colour."""
        self._shapes.append(("circle", {"x": x, "y": y, "radius": radius, "fill": fill, "edge": edge, "width": width}))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 12,
        colour: str = "#1f2933",
        anchor: Anchor = "start",
        bold: bool = False,
    ) -> None:
        """Words with their baseline at `y`."""
        self._shapes.append(
            ("text", {"x": x, "y": y, "words": words, "size": size, "colour": colour, "anchor": anchor, "bold": bold})
        )

    def svg(self) -> str:
        """The picture as SVG."""
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" role="img" font-family="{escape(_FONT)}">',
            f"<title>{escape(self.title)}</title>",
        ]
        for kind, s in self._shapes:
            if kind == "rect":
                round_ = f' rx="{s["radius"]:g}"' if s["radius"] else ""
                out.append(
                    f'<rect x="{s["x"]:.1f}" y="{s["y"]:.1f}" width="{s["width"]:.1f}" height="{s["height"]:.1f}"{round_} '
                    f'fill="{s["fill"]}"/>'
                )
            elif kind == "line":
                dash = ' stroke-dasharray="3 3"' if s["dashed"] else ""
                out.append(
                    f'<line x1="{s["x1"]:.1f}" y1="{s["y1"]:.1f}" x2="{s["x2"]:.1f}" y2="{s["y2"]:.1f}" '
                    f'stroke="{s["colour"]}" stroke-width="{s["width"]:g}"{dash}/>'
                )
            elif kind == "circle":
                edge = f' stroke="{s["edge"]}" stroke-width="{s["width"]:g}"' if s["edge"] else ""
                out.append(f'<circle cx="{s["x"]:.1f}" cy="{s["y"]:.1f}" r="{s["radius"]:g}" fill="{s["fill"]}"{edge}/>')
            else:
                bold = ' font-weight="bold"' if s["bold"] else ""
                anchor = f' text-anchor="{s["anchor"]}"' if s["anchor"] != "start" else ""
                out.append(
                    f'<text x="{s["x"]:.1f}" y="{s["y"]:.1f}" font-size="{s["size"]:g}" fill="{s["colour"]}"{anchor}{bold}>'
                    f"{escape(s['words'])}</text>"
                )
        return "\n".join([*out, "</svg>"]) + "\n"

    def save(self, path: str) -> None:
        """Write the file; its ending says which kind.

        Raises:
            CommandError: it ends neither in .svg nor in .png, or a PNG is wanted and matplotlib is not installed.
        """
        if path.endswith(".svg"):
            with open(path, "w", encoding="utf-8") as file:
                file.write(self.svg())
        elif path.endswith(".png"):
            self._png(path)
        else:
            raise CommandError(f"{path}: a picture's name ends in .svg or .png")

    def _png(self, path: str) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.lines import Line2D
            from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
        except ImportError:
            raise CommandError(
                f"{path}: PNG needs matplotlib", "pip install 'fabrex[plot]', or name the file .svg, which needs nothing"
            ) from None
        scale = 100.0
        figure = Figure(figsize=(self.width / scale, self.height / scale), dpi=2 * scale)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, self.width)
        axes.set_ylim(self.height, 0)
        axes.axis("off")
        points = 72 / scale  # of a pixel
        for order, (kind, s) in enumerate(self._shapes):
            if kind == "rect" and s["radius"]:
                style = f"round,pad=0,rounding_size={s['radius']}"
                axes.add_patch(
                    FancyBboxPatch((s["x"], s["y"]), s["width"], s["height"], style, fc=s["fill"], ec="none", zorder=order)
                )
            elif kind == "rect":
                axes.add_patch(Rectangle((s["x"], s["y"]), s["width"], s["height"], fc=s["fill"], ec="none", zorder=order))
            elif kind == "line":
                axes.add_line(Line2D([s["x1"], s["x2"]], [s["y1"], s["y2"]], color=s["colour"], lw=s["width"] * points,
                                     ls=(0, (3, 3)) if s["dashed"] else "-", zorder=order))  # fmt: skip
            elif kind == "circle":
                axes.add_patch(Circle((s["x"], s["y"]), s["radius"], fc=s["fill"], ec=s["edge"] or "none",
                                      lw=s["width"] * points, zorder=order))  # fmt: skip
            else:
                place = {"start": "left", "middle": "center", "end": "right"}[s["anchor"]]
                axes.text(s["x"], s["y"], s["words"].replace("$", r"\$"), fontsize=s["size"] * points, color=s["colour"], ha=place,
                          va="baseline", fontweight="bold" if s["bold"] else "normal", zorder=order)  # fmt: skip
        figure.savefig(path)
