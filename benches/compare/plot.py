"""The plot of the README: speed by size, one line a peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compare.measure import binary
from compare.stats import spread

PANELS = (("put", "warm"), ("get", "fresh"))
TICKS = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)
COLOURS = {
    "sira": "#d1495b",
    "sira-rust": "#8d1b3d",
    "sira-native": "#f0894a",
    "arrow": "#2e6f9e",
    "canned": "#9aa5b1",
    "raw": "#444444",
    "redis": "#3d8b5f",
    "mooncake": "#7d5ba6",
}
LABELS = {
    "sira": "Sira, pyarrow",
    "sira-rust": "Sira, Rust",
    "sira-native": "Sira, Python extension",
    "arrow": "Arrow C++ Flight, pyarrow",
    "canned": "ceiling of the pyarrow client",
    "raw": "raw TCP",
    "redis": "Redis",
    "mooncake": "Mooncake, TCP",
}


def draw(document: dict[str, Any], path: Path) -> None:
    """Puts and gets of one client; the shade is the middle half of the rounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    # Text stays text, and the same figures give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sira", "font.size": 9})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(9, 3.6), sharey=True)
    for axes, (operation, memory) in zip(panels, PANELS, strict=True):
        for peer, colour in COLOURS.items():
            line(axes, document, peer, colour, operation, memory)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(f"{operation}, one client")
        axes.grid(visible=True, alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        low, high = axes.get_ylim()
        sizes = sorted({cell["size"] for cell in document["cells"]})
        axes.set_xticks(sizes, [binary(size) for size in sizes])
        axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axes.set_ylim(low, high)
        axes.minorticks_off()
    panels[0].set_ylabel("GB/s")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.set_layout_engine("constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def line(axes: Any, document: dict[str, Any], peer: str, colour: str, operation: str, memory: str) -> None:
    points = sorted(
        (cell["size"], spread(cell["gb_per_s"]))
        for cell in document["cells"]
        if (cell["peer"], cell["operation"], cell["memory"], cell["clients"]) == (peer, operation, memory, 1)
        and "error" not in cell
    )
    if not points:
        return
    sizes, rates = [size for size, _ in points], [rate for _, rate in points]
    style = {"color": colour, "linewidth": 2.2 if peer.startswith("sira") else 1.3}
    style["linestyle"] = "--" if peer in ("canned", "raw") else "-"
    axes.plot(sizes, [rate.median for rate in rates], marker="o", markersize=3, label=LABELS[peer], **style)
    axes.fill_between(
        sizes,
        [rate.low for rate in rates],
        [rate.high for rate in rates],
        color=colour,
        alpha=0.12,
        linewidth=0,
    )
