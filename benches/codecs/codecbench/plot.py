"""The plots of docs/codecs.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compare.stats import spread

OURS, OTHERS = "#d1495b", "#2e6f9e"
FAMILIES = (
    ("kvtc-plain", "plain KVTC", "#3d8b5f"),
    ("kivi", "KIVI", "#7d5ba6"),
    ("cachegen", "CacheGen, LMCache's bins", "#f0894a"),
    ("int4/32", "int4", "#9aa5b1"),
    ("int8", "int8", "#444444"),
    ("fp8", "fp8 e4m3", "#2e6f9e"),
)
SHADES = ("#d1495b", "#8d1b3d", "#e88b98", "#b5651d", "#5c0f26")


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """Those that there are figures for."""
    import matplotlib as mpl

    mpl.use("Agg")
    # Text stays text, and the same figures give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sira", "font.size": 9})
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    if document.get("speed"):
        figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True)
        found = next(iter(document["speed"].values()))
        for axes, side in zip(panels, ("encode", "decode"), strict=True):
            speed(axes, found, side)
        panels[0].set_ylabel("times smaller")
        drawn.append(saved(figure, folder / "codecs-speed.svg"))
    if document.get("damage", {}).get("results"):
        results = document["damage"]["results"]
        names = list(dict.fromkeys(entry["document"] for entry in results))
        figure, panels = pyplot.subplots(
            1, len(names), figsize=(4.5 * len(names) + 1.5, 3.8), sharey=True, squeeze=False
        )
        for axes, name in zip(panels[0], names, strict=True):
            damage(axes, [entry for entry in results if entry["document"] == name])
            axes.set_title(name)
        panels[0][0].set_ylabel("KL, nats a token")
        handles, labels = panels[0][-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        drawn.append(saved(figure, folder / "codecs-damage.svg"))
    return drawn


def speed(axes: Any, found: dict[str, Any], side: str) -> None:
    """Ratio against speed; a bar is the middle half of the rounds."""
    for codec in found["codecs"]:
        if codec["error"] or codec["name"] == "copy":
            continue
        ours = codec["name"].startswith("sira ")
        rate, ratio = spread(codec[f"{side}_gb_s"]), found["bytes"] / codec["bytes"]
        apart = [[rate.median - rate.low], [rate.high - rate.median]]
        style = {"color": OURS if ours else OTHERS, "marker": "o", "markersize": 5 if ours else 3.5}
        axes.errorbar(rate.median, ratio, xerr=apart, linewidth=1, **style)
        label = codec["name"].removeprefix("sira ")
        axes.annotate(label, (rate.median, ratio), (4, 4), textcoords="offset points", color=style["color"])
    axes.set_xscale("log")
    axes.set_title(f"{side}, one core")
    axes.set_xlabel("GB/s")
    finish(axes)


def damage(axes: Any, results: list[dict[str, Any]]) -> None:
    """KL against bits a value, one line a family."""
    ours = dict.fromkeys(family(entry["codec"]) for entry in results if entry["codec"].startswith("sira "))
    lines = [(f"sira {name}", f"Sira {name}", SHADES[at % len(SHADES)]) for at, name in enumerate(ours)]
    for prefix, label, colour in (*lines, *FAMILIES):
        mine = prefix.startswith("sira ")
        of_line = [
            entry
            for entry in results
            if (
                f"sira {family(entry['codec'])}" == prefix
                if entry["codec"].startswith("sira ")
                else not mine and entry["codec"].startswith(prefix)
            )
        ]
        points = sorted((entry["bits_per_value"], max(entry["kl"], 1e-6)) for entry in of_line)
        if points:
            axes.plot(
                *zip(*points, strict=True),
                marker="o",
                markersize=3.5,
                linewidth=2.2 if mine else 1.3,
                color=colour,
                label=label,
            )
    axes.set_yscale("log")
    axes.set_xlabel("bits a value, all bytes counted")
    finish(axes)


def family(codec: str) -> str:
    """`kvq` of `sira kvq:high`, `kvq calibrated` of `sira kvq:high@`."""
    name = codec.removeprefix("sira ").split(":")[0].rstrip("@")
    return f"{name} calibrated" if codec.endswith("@") and name != "kvtc" else name


def finish(axes: Any) -> None:
    axes.grid(visible=True, alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def saved(figure: Any, path: Path) -> Path:
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=120, metadata={"Date": None})
    return path
