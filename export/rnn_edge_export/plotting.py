"""Loss curves of runs as a picture: validation bold, training faint, the best validation marked; BLEU below."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import InvalidValueError, MissingDependencyError, RunError
from rnn_edge.heatmap import label
from rnn_edge_export.run import Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Over = Literal["steps", "epochs", "tokens"]
Unit = Literal["nats", "bits", "perplexity"]
Values = NDArray[np.float64]

# The colours of Okabe & Ito (2008), which people with any colour vision tell apart, without those too pale for paper.
# With as many markers as have no divisor in common, lines differ in print too: 42 runs until one repeats.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_POINTS = 300  # of a training curve: more lie closer than a pixel, and hide its course in its noise
_START = 0.02  # share of the training whose losses may lie above the picture: they would press all others flat
_STYLE: Any = {
    "svg.hashsalt": "rnn-edge",  # the same picture is the same file
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.direction": "out",
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.labelspacing": 0.35,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


def check_plot(over: str, loss: str) -> None:
    """Refuse what could not be drawn, before anything is read.

    Raises:
        InvalidValueError: an axis or a unit that there is not.
        MissingDependencyError: matplotlib is not installed.
    """
    for flag, value, known in (("--over", over, get_args(Over)), ("--loss", loss, get_args(Unit))):
        if value not in known:
            raise InvalidValueError(f"{flag} {value} is unknown", f"use {', '.join(known)}")
    try:
        import matplotlib.figure  # noqa: F401  # only to see whether it is there
    except ImportError as error:
        raise MissingDependencyError(
            "matplotlib is not installed; drawing loss curves needs it", "run: pip install 'rnn-edge[plot]'"
        ) from error


def draw(
    runs: Mapping[str, Metrics],
    picture: Literal["svg", "png"],
    *,
    over: Over = "steps",
    loss: Unit = "nats",
    log: bool = False,
    title: str = "",
) -> bytes:
    """A picture of runs by name: one file, always the same for the same metrics.

    Raises:
        RunError: a run does not count tokens, and they are asked for.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A figure of its own instead of pyplot: no window system, and nothing that stays behind.
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks
        translates = any(found.bleu is not None for metrics in runs.values() for found in metrics.validations)
        figure = Figure(figsize=(7.2, 6.2 if translates else 4.4), layout="constrained")
        heights = [3, 2] if translates else [1]
        panels = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
        curves = [_Curve(name, metrics, over, loss, index) for index, (name, metrics) in enumerate(runs.items())]
        _draw_losses(panels[0], curves, loss, log=log)
        if translates:
            _draw_bleu(panels[1], curves)
        _label_axis(panels[-1], over)
        if title:
            panels[0].set_title(label(title), pad=10, parse_math=False)
        return _save(figure, picture)


class _Curve:
    """The points of one run, and how they look."""

    def __init__(self, name: str, metrics: Metrics, over: Over, loss: Unit, index: int) -> None:
        self.name = label(name)
        self._at = _places(name, metrics, over)
        self.colour, self.marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        steps, losses = _thin([item.step for item in metrics.steps], [item.loss for item in metrics.steps])
        self.training = self._place(steps), _convert(losses, loss)
        validated = [item.step for item in metrics.validations]
        found = _convert([item.loss for item in metrics.validations], loss)
        self.validation = self._place(validated), found
        scored = [item for item in metrics.validations if item.bleu is not None]
        self.bleu = self._place([item.step for item in scored]), np.array([item.bleu for item in scored], float)
        self.best = metrics.best
        self.best_at = float(self._place([self.best.step])[0]) if self.best else 0.0
        self.best_loss = float(_convert([self.best.loss], loss)[0]) if self.best else 0.0

    def _place(self, steps: Sequence[float] | Values) -> Values:
        return np.interp(steps, *self._at)


def _places(name: str, metrics: Metrics, over: Over) -> tuple[Values, Values]:
    """Steps, and where they lie on the axis."""
    steps = [0.0, *(item.step for item in metrics.steps)]
    if over == "epochs":
        places = [0.0, *(item.epoch for item in metrics.steps)]
    elif over == "tokens":
        counts = [item.tokens for item in metrics.steps]
        if None in counts:
            raise RunError(f"the metrics of {name} do not count tokens", "draw it with --over steps or epochs")
        places = [0.0, *map(float, filter(None, counts))]
    else:
        places = steps
    return np.array(steps), np.array(places)


def _thin(steps: Sequence[float], losses: Sequence[float]) -> tuple[Values, Values]:
    """Means of neighbours, so that about ``_POINTS`` are left."""
    share = math.ceil(len(steps) / _POINTS) or 1
    starts = np.arange(0, len(steps), share)
    counts = np.diff([*starts, len(steps)])
    if not len(starts):
        return np.empty(0), np.empty(0)
    return np.add.reduceat(np.array(steps, float), starts) / counts, np.add.reduceat(losses, starts) / counts


def _convert(nats: Sequence[float] | Values, loss: Unit) -> Values:
    values = np.asarray(nats, float)
    if loss == "nats":
        return values
    return values / math.log(2) if loss == "bits" else np.exp(np.minimum(values, 700))


def _draw_losses(axes: "Axes", curves: Sequence[_Curve], loss: Unit, *, log: bool) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    for curve in curves:
        axes.plot(*curve.training, color=curve.colour, linewidth=0.9, alpha=0.5, zorder=2)
        handles.append(_draw_validations(axes, curve, curve.validation))
        if curve.best:
            _mark_best(axes, curve, curve.best_at, curve.best_loss)
    names = [_caption(curve, loss) for curve in curves]
    handles += [Line2D([], [], color="#777777", linewidth=0.9, alpha=0.7)]
    _legend(axes, handles, [*names, "training"])
    axes.set_ylabel("perplexity" if loss == "perplexity" else f"loss, {loss} per token")
    if log:
        axes.set_yscale("log")
        _label_decades(axes)
    else:
        _leave_out_the_start(axes, curves)


def _draw_bleu(axes: "Axes", curves: Sequence[_Curve]) -> None:
    for curve in curves:
        _draw_validations(axes, curve, curve.bleu)
        if curve.best and curve.best.bleu is not None:
            _mark_best(axes, curve, curve.best_at, curve.best.bleu)
    axes.set_ylabel("BLEU of the validation")


def _draw_validations(axes: "Axes", curve: _Curve, points: tuple[Values, Values]) -> Any:
    # Markers at every validation would run into one another: about a dozen are enough to tell lines apart.
    every = max(1, math.ceil(len(points[0]) / 12))
    (line,) = axes.plot(
        *points, color=curve.colour, linewidth=1.7, marker=curve.marker, markersize=4, markevery=every, zorder=3
    )
    return line


def _mark_best(axes: "Axes", curve: _Curve, x: float, y: float) -> None:
    axes.plot([x], [y], marker="*", markersize=13, color=curve.colour, markeredgecolor="white", zorder=4, clip_on=False)


def _caption(curve: _Curve, loss: Unit) -> str:
    if curve.best is None:
        return f"{curve.name}: not validated yet"
    bleu = f", BLEU {curve.best.bleu:.2f}" if curve.best.bleu is not None else ""
    digits = 2 if loss == "perplexity" else 4
    return f"{curve.name}: ★ {curve.best_loss:,.{digits}f}{bleu} at step {curve.best.step:,}"


def _legend(axes: "Axes", handles: list[Any], names: list[str]) -> None:
    # Names that start with an underline would be left out, and dollar signs would set formulas.
    legend = axes.legend(handles, [str(index) for index in range(len(names))], loc="upper right")
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _leave_out_the_start(axes: "Axes", curves: Sequence[_Curve]) -> None:
    """Limits of the losses after the first steps."""
    points = [points for curve in curves for points in (curve.training, curve.validation) if len(points[0])]
    end = max((places[-1] for places, _ in points), default=0.0)
    shown = [values[places >= _START * end] for places, values in points]
    low, high = (extreme(chain.from_iterable(shown), default=0.0) for extreme in (min, max))
    room = 0.04 * (high - low) or 0.5
    axes.set_ylim(low - room, high + room)


def _label_decades(axes: "Axes") -> None:
    """Plain numbers, also within a decade."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    low, high = axes.get_ylim()
    close = high < 20 * low
    axes.yaxis.set_major_locator(
        LogLocator(subs=(1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0) if close else (1.0, 2.0, 5.0))
    )
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _label_axis(axes: "Axes", over: Over) -> None:
    from matplotlib.ticker import EngFormatter, StrMethodFormatter

    axes.set_xlabel(over)
    axes.set_xlim(left=0)
    if over == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    elif over == "steps":
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _save(figure: "Figure", picture: Literal["svg", "png"]) -> bytes:
    buffer = io.BytesIO()
    date: dict[str, Any] = {"Date": None} if picture == "svg" else {}
    figure.savefig(buffer, format=picture, dpi=200, metadata=date)
    return buffer.getvalue()
