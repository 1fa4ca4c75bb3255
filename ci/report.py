"""What a reproduction leaves: results as checked JSON, figures, and one page that needs no network and no script.

`<project>/results.json` (committed, from a long run) and reproduction/report.json have this one schema. Its verdicts
are recomputed from its metrics whenever a file is read.
"""

import base64
import dataclasses
import html
import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.errors import InputError

from ci import PROJECTS, checked, is_there, verdict

SCHEMA = 1
MAX_PICTURES = 8
THEMES = {
    "light": {"ink": "#20242a", "faint": "#c9cdd2", "band": "#e8ebee"},
    "dark": {"ink": "#e4e6e9", "faint": "#4b5158", "band": "#2b3036"},
}
VERDICT_COLOURS = {
    verdict.SHOWN: {"light": "#1a7f4b", "dark": "#5cc98d"},
    verdict.NOT_RESOLVED: {"light": "#8a6a12", "dark": "#d8b45a"},
    verdict.CONTRADICTED: {"light": "#b3362b", "dark": "#f0857a"},
}
# Okabe and Ito's colours, told apart by colour-blind readers and on both backgrounds.
ARM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")


@dataclass(frozen=True)
class Quantity:
    """A number that arms are compared by."""

    source: str = field(metadata={"key": "from"})
    """its key in metrics.json"""
    higher_is_better: bool
    unit: str = ""
    label: str = ""


@dataclass(frozen=True)
class Claim:
    """One comparison of two arms, as reproduce.yaml states it."""

    a: str
    b: str
    quantity: str
    kind: Literal["direction", "equivalence", "exact"]
    claim: str
    margin: float | None = None
    """largest difference that still counts as equal, in the quantity's unit; fixed before the run"""


@dataclass(frozen=True)
class Curve:
    """A value of log.jsonl drawn over epochs."""

    quantity: str
    split: str
    stage: str


@dataclass(frozen=True)
class CurveResult:
    """Mean, lowest and highest value over the seeds at each epoch."""

    epochs: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Named:
    """Something by its name and the sha256 of its content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Hardware:
    """Where it ran: cores of the machine, its processor, and how many runs shared it."""

    cores: int
    cpu: str
    jobs: int


@dataclass(frozen=True)
class SharedResult:
    """A run that arms build on; lists hold one entry per seed."""

    overrides: dict[str, Any]
    commands: list[str]
    seconds: list[float | None]
    errors: list[str | None]


@dataclass(frozen=True)
class ArmResult:
    """One arm; lists hold one entry per seed, None where the run failed."""

    overrides: dict[str, Any]
    commands: list[str]
    """training and evaluation of the first seed, to be typed at the repository's root"""
    seconds: list[float | None]
    """wall time of training, with `hardware.jobs` runs at a time"""
    errors: list[str | None]
    metrics: list[dict[str, float | None] | None]
    curves: list[CurveResult | None]


@dataclass(frozen=True)
class Comparison:
    """A claim and what the paired differences a - b say about it."""

    a: str
    b: str
    quantity: str
    kind: Literal["direction", "equivalence", "exact"]
    margin: float | None
    claim: str
    differences: list[float | None]
    mean: float | None
    interval: list[float] | None
    verdict: str
    reason: str


@dataclass(frozen=True)
class ProjectResult:
    """Everything that one project's arms gave."""

    paper: dict[str, Any]
    config: Named
    data: Named | None
    commit: str | None
    dirty: bool
    """whether files differed from the commit"""
    versions: dict[str, str]
    hardware: Hardware
    command: str
    seeds: list[int]
    quantities: dict[str, Quantity]
    cost: list[str]
    curves: list[Curve]
    shared: dict[str, SharedResult]
    arms: dict[str, ArmResult]
    comparisons: list[Comparison]


@dataclass(frozen=True)
class Results:
    """The content of report.json and of every results.json."""

    schema: int
    projects: dict[str, ProjectResult]


def values_of(arm: ArmResult, metric: str) -> list[float | None]:
    """The metric of every seed, None where there is none."""
    return [None if metrics is None else metrics.get(metric) for metrics in arm.metrics]


def compare(claim: Claim, quantities: dict[str, Quantity], arms: dict[str, ArmResult]) -> Comparison:
    """The claim judged by the arms' metrics."""
    quantity = quantities[claim.quantity]
    a, b = (values_of(arms[name], quantity.source) for name in (claim.a, claim.b))
    found = verdict.judge(claim.kind, a, b, quantity.higher_is_better, claim.margin)
    return Comparison(
        **dataclasses.asdict(claim),
        differences=found.differences,
        mean=found.mean,
        interval=found.interval,
        verdict=found.word,
        reason=found.reason,
    )


def to_json(results: Results) -> str:
    """Results as JSON text; the inverse of `from_json`."""

    def plain(value):
        if dataclasses.is_dataclass(value):
            return {f.metadata.get("key", f.name): plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, list) else value

    return json.dumps(plain(results), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str, file: str) -> Results:
    """Checked results: schema, one entry per seed, and verdicts that follow from the metrics.

    Errors: InputError naming file and key.
    """
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON: {error}") from error
    version = tree.get("schema") if isinstance(tree, dict) else None
    if version != SCHEMA:
        raise InputError(f"{file}: schema: is {version}, this version reads {SCHEMA}; run the project again")
    results = checked(Results, tree, file)
    for name, project in results.projects.items():
        _check(project, f"{file}: projects.{name}")
    return results


def _check(project: ProjectResult, where: str) -> None:
    for group, runs in (("shared", project.shared), ("arms", project.arms)):
        for name, run in runs.items():
            lists = {"seconds": run.seconds, "errors": run.errors}
            if isinstance(run, ArmResult):
                lists["metrics"] = run.metrics
                if len(run.curves) != len(project.curves):
                    raise InputError(f"{where}.{group}.{name}.curves: one entry per curve, {len(project.curves)}")
            for key, values in lists.items():
                if len(values) != len(project.seeds):
                    raise InputError(f"{where}.{group}.{name}.{key}: one entry per seed, {len(project.seeds)}")
    for index, given in enumerate(project.comparisons):
        key = f"{where}.comparisons.{index}"
        if not {given.a, given.b} <= project.arms.keys() or given.quantity not in project.quantities:
            raise InputError(f"{key}: its arms or its quantity are not in this file")
        claim = Claim(**{f.name: getattr(given, f.name) for f in dataclasses.fields(Claim)})
        found = compare(claim, project.quantities, project.arms)
        if found.verdict != given.verdict or not _same(found, given):
            raise InputError(f"{key}: the metrics give {found.verdict!r} with mean {found.mean}, not what is written")


def _same(one: Comparison, other: Comparison) -> bool:
    """Equal numbers up to the rounding of another machine's arithmetic."""

    def flat(c: Comparison) -> list[float | None]:
        return [*c.differences, c.mean, *(c.interval or [None, None])]

    pairs = list(zip(flat(one), flat(other)))
    return len(flat(one)) == len(flat(other)) and all(
        x == y or (x is not None and y is not None and math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12))
        for x, y in pairs
    )


def save(results: Results, path: Path) -> None:
    """Write results after reading them back, so that nothing is written that could not be read."""
    text = to_json(results)
    from_json(text, str(path))
    path.write_text(text, encoding="utf-8")


def read_saved(root: Path, project: str) -> ProjectResult | None:
    """The project's committed results, None where there are none. Errors: InputError, also for another project's."""
    path = root / project / "results.json"
    if not path.is_file():
        return None
    results = from_json(path.read_text(encoding="utf-8"), str(path))
    if list(results.projects) != [project]:
        raise InputError(f"{path}: must hold {project} alone, found {', '.join(results.projects) or 'nothing'}")
    return results.projects[project]


def text_table(results: Results) -> str:
    """The verdicts as aligned text, one comparison a line."""
    rows = [
        (name, f"{c.a} - {c.b}", c.quantity, _difference(c, project), c.verdict, c.reason)
        for name, project in results.projects.items()
        for c in project.comparisons
    ]
    if not rows:
        return "no comparison was run"
    header = ("project", "arms", "quantity", "mean difference [95 % interval]", "verdict", "because")
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (header, *rows))
    return "\n".join(lines)


def write(results: Results, pictures: dict[str, dict[str, list[Path]]], root: Path, out: Path) -> Path:
    """report.json, figures/*.png and report.html in the folder `out`; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    save(results, out / "report.json")
    sections = []
    for name, project in results.projects.items():
        fresh = _figures(name, project, out / "figures")
        saved = read_saved(root, name)
        sections.append(_project_section(name, project, fresh, saved, pictures.get(name, {})))
    missing = [name for name in PROJECTS if not is_there(root, name)]
    page = out / "report.html"
    page.write_text(_page(results, sections, missing), encoding="utf-8")
    return page


def number(value: float | None, signed: bool = False, beside: float = 0.0) -> str:
    """Four significant digits of the larger of value and `beside`, a true minus sign; a dash for no number."""
    if value is None:
        return "–"
    size = max(abs(value), abs(beside))
    if size and not 1e-4 <= size < 1e7:
        text = f"{value:.2e}"
    else:
        digits = 2 if not size else max(0, min(6, 3 - math.floor(math.log10(size))))
        text = f"{value:.{digits}f}"
    return ("+" if signed and value > 0 else "") + text.replace("-", "−")


def _difference(comparison: Comparison, project: ProjectResult) -> str:
    """`mean [low, high] unit`, all to the same decimal."""
    if comparison.mean is None:
        return "–"
    values = [comparison.mean, *(comparison.interval or [])]
    mean, *bounds = (number(value, signed=True, beside=max(map(abs, values))) for value in values)
    unit = project.quantities[comparison.quantity].unit
    return f"{mean} {f'[{bounds[0]}, {bounds[1]}] ' if bounds else ''}{unit}".rstrip()


def _label(project: ProjectResult, name: str) -> str:
    quantity = project.quantities[name]
    return (quantity.label or name) + (f" ({quantity.unit})" if quantity.unit else "")


def _figures(name: str, project: ProjectResult, folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    """(caption, PNG by theme) of the figures; the light ones are also written to `folder`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    drawings = []
    if any(c.mean is not None for c in project.comparisons):
        caption = "Paired differences a − b: seeds (small), their mean and its 95 % interval."
        drawings.append(("differences", caption, _draw_differences))
    for index, curve in enumerate(project.curves):
        if any(arm.curves[index] for arm in project.arms.values()):
            caption = f"{curve.quantity}, {curve.split} split, stage {curve.stage}: mean and range over seeds."
            drawings.append((f"curve_{index + 1}_{curve.quantity}", caption, _draw_curve(index)))
    made = []
    for part, caption, draw in drawings:
        images = {}
        for theme, colours in THEMES.items():
            figure = Figure(figsize=(7.6, 3.6), dpi=160, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, project, theme, colours)
            path = folder / f"{name}_{part.replace('/', '_')}{'' if theme == 'light' else '_dark'}.png"
            background = "white" if theme == "light" else "#16191d"
            figure.savefig(path, facecolor=background)
            images[theme] = path.read_bytes()
        made.append((caption, images))
    return made


def _style(axes, colours: dict[str, str]) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=colours["ink"], labelsize=8, length=3, color=colours["faint"])
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colours["faint"])
    axes.xaxis.label.set(color=colours["ink"], size=9)


def _draw_differences(figure, project: ProjectResult, theme: str, colours: dict[str, str]) -> None:
    """One panel a quantity, one row a comparison; the grey band is an equivalence's margin."""
    groups = {q: [c for c in project.comparisons if c.quantity == q] for q in project.quantities}
    groups = {quantity: rows for quantity, rows in groups.items() if rows}
    heights = [len(rows) for rows in groups.values()]
    figure.set_size_inches(7.6, sum(0.42 * n + 0.75 for n in heights))
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[0.42 * n + 0.3 for n in heights])[:, 0]
    for axes, (quantity, rows) in zip(panels, groups.items()):
        axes.axvline(0, color=colours["ink"], lw=0.8)
        for y, row in enumerate(rows):
            colour = VERDICT_COLOURS[row.verdict][theme]
            if row.margin is not None:
                axes.barh(y, 2 * row.margin, left=-row.margin, height=0.7, color=colours["band"], zorder=0)
            there = [d for d in row.differences if d is not None]
            axes.plot(there, [y + 0.18] * len(there), "o", ms=3, mew=0, color=colour, alpha=0.55)
            if row.interval:
                axes.plot(row.interval, [y, y], "-", lw=2, color=colour, solid_capstyle="round")
            if row.mean is not None:
                axes.plot([row.mean], [y], "o", ms=6.5, color=colour)
        axes.set_yticks(range(len(rows)), [f"{row.a} − {row.b}" for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        better = (
            "right: a is higher, which is better"
            if project.quantities[quantity].higher_is_better
            else ("left: a is lower, which is better")
        )
        axes.set_xlabel(f"{_label(project, quantity)}; {better}")
        axes.margins(x=0.08)
        _style(axes, colours)
        axes.tick_params(axis="y", length=0)


def _draw_curve(index: int):
    def draw(figure, project: ProjectResult, theme: str, colours: dict[str, str]) -> None:
        axes = figure.subplots()
        for position, (name, arm) in enumerate(project.arms.items()):
            curve, colour = arm.curves[index], ARM_COLOURS[position % len(ARM_COLOURS)]
            if curve is None:
                continue
            dashes = "-" if position < len(ARM_COLOURS) else "--"
            axes.plot(curve.epochs, curve.mean, dashes, lw=1.6, color=colour, label=name)
            axes.fill_between(curve.epochs, curve.low, curve.high, color=colour, alpha=0.13, lw=0)
        axes.set_xlabel("epoch")
        axes.set_title(project.curves[index].quantity, loc="left", color=colours["ink"], size=9)
        axes.grid(axis="y", color=colours["faint"], lw=0.5, alpha=0.6)
        axes.margins(x=0.02)
        _style(axes, colours)
        legend = axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for text in legend.get_texts():
            text.set_color(colours["ink"])

    return draw


def _escape(value) -> str:
    return html.escape(str(value))


def _table(header: list[str], rows: list[list[str]], numeric_from: int) -> str:
    """An HTML table of ready cells whose columns are right-aligned from `numeric_from` on."""

    def line(tag: str, cells: list[str]) -> str:
        kinds = ["" if i < numeric_from else ' class="n"' for i in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells)) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table><thead>{line("th", header)}</thead><tbody>{body}</tbody></table></div>'


def _word(text: str) -> str:
    kind = {verdict.SHOWN: "shown", verdict.CONTRADICTED: "contradicted"}.get(text, "open")
    return f'<span class="word {kind}">{_escape(text)}</span>'


def _verdicts(project: ProjectResult) -> str:
    rows = [
        [
            _escape(c.claim),
            f'<span class="whole">{_escape(c.a)} − {_escape(c.b)}</span><br>'
            f"<small>{_escape(_label(project, c.quantity))}</small>",
            _escape(_kind(c, project)),
            f'<span class="whole">{_escape(_difference(c, project))}</span>',
            f"{_word(c.verdict)}<br><small>{_escape(c.reason)}</small>",
        ]
        for c in project.comparisons
    ]
    header = ["claim", "arms, quantity", "kind", "mean difference [95 % interval]", "verdict"]
    return _table(header, rows, numeric_from=5)


def _kind(comparison: Comparison, project: ProjectResult) -> str:
    if comparison.kind != "equivalence":
        return comparison.kind
    unit = project.quantities[comparison.quantity].unit
    return f"equivalence, ±{comparison.margin:g} {unit}".rstrip()


def _cell(values: list[float | None]) -> str:
    """Mean ± standard deviation over seeds, and below it every seed."""
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    text = f"<b>{number(statistics.fmean(there))}</b>"
    if len(there) > 1:
        text += f" ± {number(statistics.stdev(there), beside=statistics.fmean(there))}"
    return f"{text}<br><small>{' · '.join(number(value) for value in values)}</small>"


def _arms(project: ProjectResult) -> str:
    metrics = {q.source: _label(project, name) for name, q in project.quantities.items()}
    metrics |= {name: name for name in project.cost if name not in metrics}
    header = ["arm", *map(_escape, metrics.values()), "training (s)"]
    rows = [
        [
            f"<b>{_escape(name)}</b><br><small>{_escape(_overrides(arm.overrides))}</small>",
            *(_cell(values_of(arm, metric)) for metric in metrics),
            _cell(arm.seconds),
        ]
        for name, arm in project.arms.items()
    ]
    dashes = ["–"] * len(metrics)
    rows += [
        [f"<b>{_escape(name)}</b> (shared)<br><small>{_escape(_overrides(run.overrides))}</small>", *dashes]
        + [_cell(run.seconds)]
        for name, run in project.shared.items()
    ]
    return _table(header, rows, numeric_from=1)


def _overrides(overrides: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in overrides.items()) or "as the config stands"


def _errors(project: ProjectResult) -> str:
    runs = [*project.shared.items(), *project.arms.items()]
    found = [
        f"<li><b>{_escape(name)}</b>, seed {seed}: {_escape(error)}</li>"
        for name, run in runs
        for seed, error in zip(project.seeds, run.errors)
        if error
    ]
    return f'<div class="failed"><p>Runs that failed:</p><ul>{"".join(found)}</ul></div>' if found else ""


def _picture(images: dict[str, bytes], caption: str) -> str:
    light, dark = (_data_uri(images[theme]) for theme in ("light", "dark"))
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{_escape(caption)}"></picture><figcaption>{_escape(caption)}</figcaption></figure>'
    )


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _gallery(pictures: dict[str, list[Path]]) -> str:
    """Every arm's pictures, at most MAX_PICTURES of them, from the first seed."""
    parts = []
    for arm, paths in pictures.items():
        images = "".join(
            f'<img src="{_data_uri(path.read_bytes())}" alt="{_escape(path.stem)}" title="{_escape(path.stem)}">'
            for path in paths[:MAX_PICTURES]
        )
        left = f" ({len(paths) - MAX_PICTURES} more in the run folder)" if len(paths) > MAX_PICTURES else ""
        if images:
            parts.append(f'<h4>{_escape(arm)}{left}</h4><div class="gallery">{images}</div>')
    return f"<h3>Pictures of the first seed</h3>{''.join(parts)}" if parts else ""


def _commands(project: ProjectResult) -> str:
    lines = [f"# everything\n{project.command}"]
    for name, run in [*project.shared.items(), *project.arms.items()]:
        lines.append(f"# {name}, seed {project.seeds[0]}\n" + "\n".join(run.commands))
    return f"<details><summary>Exact commands</summary><pre>{_escape(chr(10).join(lines))}</pre></details>"


def _provenance(project: ProjectResult) -> str:
    commit = "no commit" if project.commit is None else project.commit[:12]
    data = f"{project.data.name} ({project.data.sha256[:12]})" if project.data else "not recorded"
    facts = {
        "commit": commit + (", with uncommitted changes" if project.dirty and project.commit else ""),
        "config": f"{project.config.name} ({project.config.sha256[:12]})",
        "data": data,
        "seeds": ", ".join(map(str, project.seeds)),
        "hardware": f"{project.hardware.cores} cores, {project.hardware.cpu}, {project.hardware.jobs} runs at a time",
        "versions": ", ".join(f"{name} {version}" for name, version in project.versions.items()),
    }
    items = "".join(f"<dt>{name}</dt><dd>{_escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{items}</dl>"


def _paper(paper: dict[str, Any]) -> str:
    others = {key: value for key, value in paper.items() if key not in ("claim", "source")}
    numbers = "".join(f"<dt>{_escape(key)}</dt><dd>{_plain(value)}</dd>" for key, value in others.items())
    return (
        f"<blockquote><p>{_escape(paper.get('claim', ''))}</p><footer>{_escape(paper.get('source', ''))}</footer>"
        f"</blockquote>{f'<dl>{numbers}</dl>' if numbers else ''}"
    )


def _plain(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_escape(key)} {_plain(part)}" for key, part in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else _escape(value)


def _project_section(
    name: str,
    project: ProjectResult,
    figures: list[tuple[str, dict[str, bytes]]],
    saved: ProjectResult | None,
    pictures: dict[str, list[Path]],
) -> str:
    parts = [
        f'<section id="{name}"><h2>{name}</h2>{_paper(project.paper)}',
        _errors(project),
        f"<h3>This run, {_count(len(project.seeds), 'seed')}</h3>{_verdicts(project)}{_arms(project)}",
        *(_picture(images, caption) for caption, images in figures),
        _gallery(pictures),
        _commands(project),
        _provenance(project),
    ]
    if saved:
        parts.append(
            f'<div class="saved"><h3>Committed results, {_count(len(saved.seeds), "seed")}</h3>'
            f"{_verdicts(saved)}{_arms(saved)}{_commands(saved)}{_provenance(saved)}</div>"
        )
    return "".join(parts) + "</section>"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#20242a;--soft:#5f6771;--line:#e2e5e8;--box:#f6f7f8;
--shown:#1a7f4b;--open:#8a6a12;--contradicted:#b3362b}
@media(prefers-color-scheme:dark){:root{--bg:#16191d;--ink:#e4e6e9;--soft:#9aa2ab;--line:#30353b;--box:#1e2227;
--shown:#5cc98d;--open:#d8b45a;--contradicted:#f0857a}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:64rem;padding:3rem 1.5rem 5rem;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:1.7rem;font-weight:650;margin:0}h2{font-size:1.35rem;margin:4rem 0 .6rem;padding-top:1rem;
border-top:1px solid var(--line)}h3{font-size:1rem;margin:2rem 0 .5rem}h4{font-size:.9rem;margin:1rem 0 .3rem}
small,figcaption,footer,dt,.lead{color:var(--soft)}small{font-size:.8rem}
a{color:inherit}blockquote{margin:0;padding-left:1rem;border-left:3px solid var(--line)}blockquote p{margin:0}
footer{font-size:.85rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem;margin:.8rem 0;
font-variant-numeric:tabular-nums}
th{font-weight:500;color:var(--soft);text-align:left;border-bottom:1px solid var(--ink);padding:.3rem .7rem .3rem 0;
vertical-align:bottom}
td{padding:.5rem .7rem .5rem 0;border-bottom:1px solid var(--line);vertical-align:top}.n{text-align:right}
td:first-child{min-width:13rem}
.whole{white-space:nowrap}.word{font-weight:650}.shown{color:var(--shown)}.open{color:var(--open)}.contradicted{color:var(--contradicted)}
figure{margin:1.5rem 0}img{max-width:100%;height:auto}figcaption{font-size:.85rem}
.gallery{display:flex;flex-wrap:wrap;gap:.5rem}.gallery img{max-height:14rem;border-radius:3px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;font-size:.87rem;margin:.8rem 0}dd{margin:0;
overflow-wrap:anywhere}
pre{background:var(--box);padding:1rem;overflow-x:auto;font-size:.8rem;border-radius:4px}
details{margin:1rem 0;font-size:.9rem}summary{cursor:pointer}
.saved{background:var(--box);padding:.2rem 1.2rem 1rem;border-radius:6px;margin-top:2rem}.saved h3{margin-top:1rem}
.saved pre{background:var(--bg)}
.failed{border-left:3px solid var(--contradicted);padding-left:1rem;margin:1rem 0}.failed p{margin:0}
"""


def _page(results: Results, sections: list[str], missing: list[str]) -> str:
    rows = []
    for name, project in results.projects.items():
        words = [c.verdict for c in project.comparisons]
        counts = ", ".join(f"{words.count(word)} {_word(word)}" for word in VERDICT_COLOURS if word in words)
        rows.append([f'<a href="#{name}">{name}</a>', _escape(project.paper.get("claim", "")), counts or "–"])
    absent = f'<p class="lead">Not there yet: {", ".join(missing)}.</p>' if missing else ""
    summary = _table(["project", "what the paper claims", "verdicts"], rows, numeric_from=3) if rows else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Reproduction report</title>'
        f"<style>{STYLE}</style></head><body><h1>Reproduction report</h1>"
        '<p class="lead">What each paper claims, and what small experiments with the same code say about it.</p>'
        f"{summary}{absent}{''.join(sections)}{METHOD}</body></html>\n"
    )
