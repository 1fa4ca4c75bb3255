"""Results as one page that needs no network and no script, with figures for light and dark."""

import base64
import html
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ci import PROJECTS, is_there, verdict
from ci.results import ProjectResult, Results, difference, numbers, read_saved, save

MAX_PICTURES = 8
THEMES = {
    "light": {
        "page": "#ffffff",
        "box": "#f6f7f8",
        "ink": "#20242a",
        "soft": "#5f6771",
        "line": "#e2e5e8",
        "shown": "#1a7f4b",
        "unresolved": "#8a6a12",
        "contradicted": "#b3362b",
    },
    "dark": {
        "page": "#16191d",
        "box": "#1e2227",
        "ink": "#e4e6e9",
        "soft": "#9aa2ab",
        "line": "#30353b",
        "shown": "#5cc98d",
        "unresolved": "#d8b45a",
        "contradicted": "#f0857a",
    },
}
KINDS = {verdict.SHOWN: "shown", verdict.NOT_RESOLVED: "unresolved", verdict.CONTRADICTED: "contradicted"}
"""the colour of a verdict, a key of every theme and a class of the page"""
# Okabe and Ito's colours, told apart by colour-blind readers and on both backgrounds.
ARM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
METHOD = """
<section id="method"><h2>How a verdict is computed</h2>
<p>Every arm runs with the same seeds, through the same training and evaluation code that the commands above call. For a
comparison the difference <i>a − b</i> is taken seed by seed, and the mean of the differences gets a two-sided 95 %
Student t interval with one degree of freedom less than there are seeds.</p>
<dl>
<dt>direction</dt><dd><i>a</i> is better than <i>b</i>: shown when the interval excludes 0 on the claimed side,
contradicted when it excludes 0 on the other.</dd>
<dt>equivalence</dt><dd><i>a</i> is as good as <i>b</i>: shown when the interval lies inside a margin fixed beforehand,
contradicted when it lies wholly outside.</dd>
<dt>exact</dt><dd><i>a</i> equals <i>b</i>: shown when every pair is equal, contradicted when one differs.</dd>
</dl>
<p>Everything else is not resolved at this scale, also a comparison with fewer than two seeds (unless it is exact)
or with a run that gave no number. Differences without any spread have an interval of that one value. Intervals are not
widened for the number of comparisons.</p></section>
"""

Figures = list[tuple[str, dict[str, bytes]]]
"""(caption, PNG by theme)"""


def write(results: Results, pictures: dict[str, dict[str, list[Path]]], root: Path, out: Path) -> Path:
    """report.json, figures/*.png and report.html in the folder `out`; returns the page."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    save(results, out / "report.json")
    sections = []
    for name, project in results.projects.items():
        parts = [
            f'<section id="{name}"><h2>{name}</h2>{_paper(project.paper)}{_errors(project)}',
            _result("This run", project, figures(name, project, out / "figures")),
            _gallery(pictures.get(name, {})),
        ]
        if saved := read_saved(root, name):
            drawn = figures(f"{name}_saved", saved, out / "figures")
            parts.append(f'<div class="saved">{_result("Committed results", saved, drawn)}</div>')
        sections.append("".join(parts) + "</section>")
    missing = [name for name in PROJECTS if not is_there(root, name)]
    page = out / "report.html"
    page.write_text(_page(results, "".join(sections), missing), encoding="utf-8")
    return page


def figures(name: str, project: ProjectResult, folder: Path) -> Figures:
    """The figures of one result, also written to `folder` as NAME_PART.png and NAME_PART_dark.png."""
    drawings: list[tuple[str, str, Callable]] = []
    if any(c.mean is not None for c in project.comparisons):
        caption = "Paired differences a − b: seeds (small), their mean and its 95 % interval; in grey, an equal margin."
        drawings.append(("differences", caption, _draw_differences))
    for index, curve in enumerate(project.curves):
        if any(arm.curves[index] for arm in project.arms.values()):
            caption = f"{curve.quantity}, {curve.split} split, stage {curve.stage}: mean and range over seeds."
            part = f"curve_{index + 1}_{curve.quantity.replace('/', '_')}"
            drawings.append((part, caption, partial(_draw_curve, index)))
    made = []
    for part, caption, draw in drawings:
        paths = {theme: folder / f"{name}_{part}{'_dark' * (theme == 'dark')}.png" for theme in THEMES}
        for theme, path in paths.items():
            _draw(draw, project, THEMES[theme], path)
        made.append((caption, {theme: path.read_bytes() for theme, path in paths.items()}))
    return made


def _draw(draw: Callable, project: ProjectResult, theme: dict[str, str], path: Path) -> None:
    # Imported here because the worker processes, which draw nothing, import this module too.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, project, theme)
    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.tick_params(labelcolor=theme["ink"], labelsize=8, length=3, color=theme["soft"])
        axes.xaxis.label.set(color=theme["soft"], size=8.5)
        axes.spines[:].set_visible(False)
        axes.spines["bottom"].set(visible=True, color=theme["soft"])
        axes.tick_params(axis="y", length=0)
    figure.savefig(path, facecolor=theme["page"])


def _draw_differences(figure, project: ProjectResult, theme: dict[str, str]) -> None:
    """One panel a quantity, one row a comparison; the band is an equivalence's margin."""
    groups = {q: [c for c in project.comparisons if c.quantity == q] for q in project.quantities}
    groups = {quantity: rows for quantity, rows in groups.items() if rows}
    heights = [0.42 * len(rows) + 0.4 for rows in groups.values()]
    figure.set_size_inches(7.6, sum(heights) + 0.4 * len(heights))
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (quantity, rows) in zip(panels, groups.items()):
        axes.axvline(0, color=theme["ink"], lw=0.8)
        for y, row in enumerate(rows):
            colour = theme[KINDS[row.verdict]]
            if row.margin is not None:
                axes.barh(y, 2 * row.margin, left=-row.margin, height=0.7, color=theme["line"], zorder=0)
            seeds = [d for d in row.differences if d is not None]
            axes.plot(seeds, [y + 0.22] * len(seeds), "o", ms=3.5, mew=0, color=colour, alpha=0.5)
            if row.interval:
                axes.plot(row.interval, [y, y], lw=2, color=colour, solid_capstyle="round")
            if row.mean is not None:
                axes.plot([row.mean], [y], "o", ms=6.5, color=colour)
        axes.set_yticks(range(len(rows)), [f"{row.a} − {row.b}" for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        side = "right" if project.quantities[quantity].higher_is_better else "left"
        axes.set_xlabel(f"{_label(project, quantity)}, to the {side}: a is better")
        axes.margins(x=0.08)


def _draw_curve(index: int, figure, project: ProjectResult, theme: dict[str, str]) -> None:
    """One line an arm, with the range over seeds behind it."""
    axes = figure.subplots()
    for position, (name, arm) in enumerate(project.arms.items()):
        if curve := arm.curves[index]:
            colour = ARM_COLOURS[position % len(ARM_COLOURS)]
            style = "-" if position < len(ARM_COLOURS) else "--"
            axes.plot(curve.epochs, curve.mean, style, lw=1.6, color=colour, label=name)
            axes.fill_between(curve.epochs, curve.low, curve.high, color=colour, alpha=0.13, lw=0)
    axes.set_xlabel("epoch")
    axes.set_title(project.curves[index].quantity, loc="left", color=theme["ink"], size=9)
    axes.grid(axis="y", color=theme["line"], lw=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    anchor = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes.legend(frameon=False, fontsize=8, labelcolor=theme["ink"], **anchor)


def _result(heading: str, project: ProjectResult, drawn: Figures) -> str:
    seeds = f"{len(project.seeds)} seed{'s' * (len(project.seeds) != 1)}"
    return (
        f"<h3>{heading}, {seeds}</h3>{_verdicts(project)}{_arms(project)}"
        f"{''.join(_figure(images, caption) for caption, images in drawn)}{_commands(project)}{_provenance(project)}"
    )


def _verdicts(project: ProjectResult) -> str:
    rows = []
    for c in project.comparisons:
        unit = project.quantities[c.quantity].unit
        kind = f"{c.kind}, ±{c.margin:g} {unit}".rstrip() if c.kind == "equivalence" else c.kind
        shown = _whole(difference(c, unit))
        rows.append(
            [
                _escape(c.claim),
                _two(_whole(f"{c.a} − {c.b}"), _label(project, c.quantity)),
                _escape(kind),
                _two(shown, _seeds(numbers(c.differences, signed=True))),
                _two(_word(c.verdict), c.reason),
            ]
        )
    return _table(["claim", "arms, quantity", "kind", "mean difference [95 % interval], seeds", "verdict"], rows)


def _arms(project: ProjectResult) -> str:
    compared = {q.source: _label(project, name) for name, q in project.quantities.items()}
    metrics = compared | {name: name for name in project.cost if name not in compared}
    rows = []
    for name, run in {**project.arms, **project.shared}.items():
        shared = name in project.shared
        overrides = ", ".join(f"{key} {value}" for key, value in run.overrides.items()) or "as the config stands"
        head = _two(f"<b>{_escape(name)}</b>{' (shared)' * shared}", overrides)
        cells = ["–" if shared else _cell(run.values(metric)) for metric in metrics]
        rows.append([head, *cells, _cell(run.seconds)])
    return _table(["arm", *map(_escape, metrics.values()), "training (s)"], rows, numeric_from=1)


def _cell(values: list[float | None]) -> str:
    """Mean ± standard deviation over seeds, and below it every seed."""
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    spread = statistics.stdev(there) if len(set(there)) > 1 else None
    mean, spread, *seeds = numbers([statistics.fmean(there), spread, *values])
    mean = f"<b>{_escape(mean)}</b>" + f" ± {spread}" * (spread != "–")
    return _two(f'<span class="whole">{mean}</span>', _seeds(seeds))


def _seeds(texts: list[str]) -> str:
    """What every seed gave, in a line that breaks between seeds only."""
    if len(texts) > 1 and len(set(texts)) == 1:
        return "every seed"
    return " · ".join(text.replace(" ", "\N{NO-BREAK SPACE}") for text in texts)


def _errors(project: ProjectResult) -> str:
    found = [
        f"<li><b>{_escape(name)}</b>, seed {seed}: {_escape(error)}</li>"
        for name, run in project.runs().items()
        for seed, error in zip(project.seeds, run.errors)
        if error
    ]
    return f'<div class="failed"><p>Runs that failed:</p><ul>{"".join(found)}</ul></div>' if found else ""


def _gallery(pictures: dict[str, list[Path]]) -> str:
    """Every arm's pictures, at most MAX_PICTURES of them, from the first seed."""
    parts = []
    for arm, paths in pictures.items():
        images = [
            f'<img src="{_data_uri(path.read_bytes())}" alt="{_escape(path.stem)}" title="{_escape(path.stem)}">'
            for path in paths[:MAX_PICTURES]
        ]
        more = f" ({len(paths) - MAX_PICTURES} more in the run folder)" if len(paths) > MAX_PICTURES else ""
        if images:
            parts.append(f'<h4>{_escape(arm)}{more}</h4><div class="gallery">{"".join(images)}</div>')
    return f"<h3>Pictures of the first seed</h3>{''.join(parts)}" if parts else ""


def _commands(project: ProjectResult) -> str:
    lines = ["# everything", project.command]
    for name, run in project.runs().items():
        lines += [f"# {name}, seed {project.seeds[0]}", *run.commands]
    text = "\n".join(lines)
    return f"<details><summary>Exact commands</summary><pre>{_escape(text)}</pre></details>"


def _provenance(project: ProjectResult) -> str:
    commit = project.commit[:12] + ", with uncommitted changes" * project.dirty if project.commit else "no commit"
    data = f"{project.data.name} ({project.data.sha256[:12]})" if project.data else "not recorded"
    machine = project.hardware
    return _list(
        {
            "commit": commit,
            "config": f"{project.config.name} ({project.config.sha256[:12]})",
            "data": data,
            "seeds": ", ".join(map(str, project.seeds)),
            "hardware": f"{machine.cores} cores, {machine.cpu}, {machine.jobs} runs at a time",
            "versions": ", ".join(f"{name} {version}" for name, version in project.versions.items()),
        }
    )


def _paper(paper: dict[str, Any]) -> str:
    claim, source = (_escape(paper.get(key, "")) for key in ("claim", "source"))
    numbers = {key: _flat(value) for key, value in paper.items() if key not in ("claim", "source")}
    return f"<blockquote><p>{claim}</p><footer>{source}</footer></blockquote>{_list(numbers)}"


def _flat(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(part)}" for key, part in value.items())
    return ", ".join(map(_flat, value)) if isinstance(value, list) else str(value)


def _page(results: Results, sections: str, missing: list[str]) -> str:
    rows = []
    for name, project in results.projects.items():
        words = [c.verdict for c in project.comparisons]
        counts = ", ".join(f"{words.count(word)} {_word(word)}" for word in KINDS if word in words)
        rows.append([f'<a href="#{name}">{name}</a>', _escape(project.paper.get("claim", "")), counts or "–"])
    absent = f'<p class="lead">Not there yet: {", ".join(missing)}.</p>' if missing else ""
    light, dark = ("".join(f"--{name}: {colour}; " for name, colour in theme.items()) for theme in THEMES.values())
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Reproduction report</title>'
        f"<style>:root {{ color-scheme: light dark; {light}}}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n{style}</style></head>"
        "<body><h1>Reproduction report</h1>"
        '<p class="lead">What each paper claims, and what small experiments with the same code say about it.</p>'
        f"{_table(['project', 'what the paper claims', 'verdicts'], rows) if rows else ''}{absent}"
        f"{sections}{METHOD}</body></html>\n"
    )


def _label(project: ProjectResult, name: str) -> str:
    quantity = project.quantities[name]
    return (quantity.label or name) + (f" ({quantity.unit})" if quantity.unit else "")


def _escape(value) -> str:
    return html.escape(str(value))


def _whole(text: str) -> str:
    return f'<span class="whole">{_escape(text)}</span>'


def _two(markup: str, below: str) -> str:
    return f"{markup}<br><small>{_escape(below)}</small>"


def _word(word: str) -> str:
    return f'<span class="word {KINDS[word]}">{_escape(word)}</span>'


def _list(facts: dict[str, str]) -> str:
    items = "".join(f"<dt>{_escape(name)}</dt><dd>{_escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{items}</dl>" if items else ""


def _table(header: list[str], rows: list[list[str]], numeric_from: int = 99) -> str:
    """An HTML table of ready cells whose columns are right-aligned from `numeric_from` on."""

    def line(tag: str, cells: list[str]) -> str:
        kinds = [' class="n"' * (i >= numeric_from) for i in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells)) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table><thead>{line("th", header)}</thead><tbody>{body}</tbody></table></div>'


def _figure(images: dict[str, bytes], caption: str) -> str:
    light, dark = (_data_uri(images[theme]) for theme in THEMES)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{_escape(caption)}"></picture><figcaption>{_escape(caption)}</figcaption></figure>'
    )


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
