"""Kernel or stride? The paper's remedy for its first layer, taken apart (section 4.1, Fig. 6).

Zeiler & Fergus changed AlexNet's first layer from 11x11 with stride 4 to 7x7 with stride 2, both at once. Here the
two are crossed: networks that differ in one of them, in both, or in a blur before every subsampling, trained alike
with several seeds. `measure_first_layer` gives the numbers of one network, `factorial_effects` says of a table of
such numbers which factor moves which.

    table = zfkit.experiments.load_first_layer_runs().table     # those that come with zfkit, or a sweep of your own
    plain = table[~table.blur & (table.images == "textures")]
    zfkit.experiments.factorial_effects(plain, {"kernel": (11, 7), "stride": (4, 2)}, ["mid", "agreement"])
"""

from __future__ import annotations

import importlib.resources
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checks import as_path, between, one_of, pair
from ..checksums import read_table, write_table
from ..errors import ModelError, ZfkitError
from ..frequency.aliasing import measure_aliasing
from ..frequency.gratings import grating_response
from ..frequency.shifts import shift_consistency
from ..frequency.spectra import FilterSpectra, filter_spectra
from ..images.imageset import ImageSet
from ..nets.activations import features
from ..nets.model import VisionModel, expect_model
from ..nets.paper import ARCHITECTURES, Architecture, BlurPool
from ..nets.weights import load_weights, save_weights
from ..training.evaluate import evaluate
from .results import sweep_results

if TYPE_CHECKING:
    import pandas as pd

# ------------------------------------------------------------------------------------------- the networks

# Taps of the blur, by stride: 1-2-1 lets half of the power at 1/4 c/px through, too much for stride 4.
TAPS = {2: 3, 4: 5}


def first_layer(
    kernel: int, stride: int, blur: bool = False, network: str = "zfnet64-narrow"
) -> Architecture:
    """A network of the paper with this kernel and stride in its first layer, the rest as equal as can be.

    Args:
        kernel: side of the filters in pixels, odd: 7 and 11 are the paper's.
        stride: 2 or 4.
        blur: a low-pass before every subsampling, of 3 taps at stride 2 and of 5 at stride 4.
        network: "zfnet64-narrow", "zfnet64" or "zfnet224", whose widths and input size all have.

    Held equal: widths, every layer from conv3 on with the side of its maps (7x7 at 64 px), so also the inputs of fc6,
    and how every layer is initialised. The padding changes with the kernel, so that both kernels have maps of one
    side and look at the same places (at 64 px 30x30 with stride 2, 15x15 with stride 4). What the stride of 4 is
    ahead, a later layer of the stride-2 networks makes up for, as in the paper's own pair: pool2 (at 224 px conv2).
    So conv2 sees larger maps with stride 2, and units above it are 8 px apart (at 224 px 16) in all networks. Weights
    differ in number only by the taps of conv1.

    7 with 2 is `zfnet64-narrow` and 11 with 4 `alexnet64-narrow`. Raises ModelError for another kernel, stride or
    network that cannot be had.
    """
    one_of(network, "network", [n for n in ARCHITECTURES if n.startswith("zfnet")], ModelError)
    if stride not in TAPS:
        raise ModelError(f"stride must be 2 or 4, not {stride!r}: the layers behind are laid out for these")
    base = ARCHITECTURES[network if stride == 2 else network.replace("zfnet", "alexnet")]
    least = base.conv1[0] - 2 * base.conv1[2]
    if type(kernel) is not int or kernel < least or kernel % 2 == 0:
        raise ModelError(f"kernel must be odd and at least {least} px with stride {stride}, not {kernel!r}")
    padding = base.conv1[2] + (kernel - base.conv1[0]) // 2
    # The family decides what a start with N(0, 0.01^2) means in a narrow network; here 0.01 in conv1 of all.
    family = "zfnet" if kernel < 11 else "alexnet"
    return replace(base, family=family, conv1=(kernel, stride, padding), blur=TAPS[stride] if blur else 0)


# --------------------------------------------------------------------------------------- the numbers of one

# What is measured of every network, in the order of tables; `measure_first_layer` says what each means.
MEASURES = {
    "mid": "share of the filters' energy in the middle band",
    "mid_coverage": "coverage of the middle band",
    "dead": "dead maps of layer 1",
    "weak": "weak filters of layer 1",
    "aliasable": "energy of the filters beyond the stride's limit",
    "folded_gratings": "energy at wrong frequencies, gratings",
    "folded_pictures": "energy at wrong frequencies, pictures",
    "distance_first": "feature distance under shifts, layer 1",
    "distance_last": "feature distance under shifts, last hidden layer",
    "agreement": "class kept under shifts",
    "top1": "validation accuracy, %",
}
WEAK = 0.01  # of the layer's largest weight


@torch.no_grad()
def measure_first_layer(
    model: VisionModel,
    images: ImageSet,
    larger: ImageSet | None = None,
    *,
    shifts: int = 8,
    progress: bool = False,
) -> dict[str, float]:
    """One trained network in numbers: what its first layer passes, folds, and what that does to the answer.

    Args:
        images: labelled pictures of the model's input size, that it was not trained on.
        larger: pictures with room for the shifts, `shifts` px larger; None leaves the last four numbers but `top1` NaN.
        shifts: pixels, at most.

    - mid, mid_coverage, centroid, low, high: of the filters' spectra, as `FilterSpectra.summary`;
    - dead: share of the first layer's maps that are 0 on all pictures; weak: share of filters whose largest weight is
      under 1 % of the layer's largest;
    - aliasable: share of the filters' energy beyond what the layer's grid can hold. With a blur, the filters are
      compared with the grid behind it;
    - folded_gratings: share of the response behind ReLU and blur that arrives at wrong frequencies when all gratings
      come in equally often, `GratingResponse.share`, mean over filters; folded_pictures: the same for the
      pictures, energies of all filters together, `measure_aliasing`;
    - distance_first, distance_last: relative feature distance of the first layer (behind ReLU and blur) and of the
      last hidden one, mean over shifts of 1 to `shifts` px down and to the right (`shift_consistency`); agreement:
      share of pictures that keep their class, agreement_1 after 1 px;
    - top1: accuracy on `images` in %.

    Raises ModelError where the first layer subsamples nothing.
    """
    conv, out, stride = _first(expect_model(model))
    weight = model.net.get_parameter(f"{conv}.weight").detach()
    summary = filter_spectra(weight, stride=stride).summary()
    of_filters = ("low", "mid", "high", "mid_coverage", "centroid", "aliasable")
    numbers = {name: summary[name] for name in of_filters}
    size = weight.abs().flatten(1).amax(1)
    active = features(model, images, [out], lambda _, maps, __: (maps > 0).flatten(2).any(2), batch_size=64)
    numbers["dead"] = float((~active[out].any(0)).double().mean())
    numbers["weak"] = float((size < WEAK * size.max()).double().mean())
    numbers["folded_gratings"] = float(grating_response(model, out).share.nanmean())
    numbers["folded_pictures"] = measure_aliasing(model, images, out, progress=progress).layer_share
    linear = [n for n in model.layers if isinstance(model.network.steps[n].module, nn.Linear)]
    hidden = _behind(model, linear[-2], nn.ReLU) if len(linear) > 1 else model.conv_layers[-1]
    numbers |= dict.fromkeys(("distance_first", "distance_last", "agreement", "agreement_1"), math.nan)
    if larger is not None:
        moved = shift_consistency(model, larger, shifts, layers=[out, hidden], progress=progress)
        numbers["distance_first"], numbers["distance_last"] = moved.distance[:, :, 1:].mean((1, 2)).tolist()
        numbers["agreement"] = float(moved.consistency()[1:].mean())
        numbers["agreement_1"] = float(moved.consistency()[1])
    numbers["top1"] = evaluate(model, images).top1
    return numbers


def _first(model: VisionModel) -> tuple[str, str, int]:
    """Names of the first convolution and of the layer that hands its map on, and the step between its places in px."""
    conv = model.conv_layers[0]
    stride = pair(model.network.steps[conv].module.stride)[0]  # type: ignore[union-attr, arg-type]
    out = _behind(model, conv, nn.ReLU)
    if stride == 1:
        out = _behind(model, out, BlurPool)
        module = model.network.steps[out].module
        stride = module.stride if isinstance(module, BlurPool) else 1
    if stride == 1:
        raise ModelError(f"{conv!r} of {model.name} has stride 1 and no blur: nothing is folded there")
    return conv, out, stride


def _behind(model: VisionModel, layer: str, kind: type[nn.Module]) -> str:
    """The next layer if it is of this kind, else this one."""
    after = [s for s in model.network.steps.values() if layer in s.inputs]
    return after[0].name if len(after) == 1 and isinstance(after[0].module, kind) else layer


# -------------------------------------------------------------------------------- which factor moves what


def factorial_effects(
    table: pd.DataFrame,
    factors: Mapping[str, tuple[Any, Any]],
    measures: Sequence[str],
    *,
    block: str = "seed",
    level: float = 0.95,
) -> pd.DataFrame:
    """Main effects and interactions of k factors at two levels each, with intervals over the seeds.

    A full 2^k design in r randomised blocks, one for each seed (Box, Hunter & Hunter, *Statistics for Experimenters*,
    chapter 5). With x = -1 at a factor's first level and +1 at its second,

        effect = sum over runs of (product of the x of its factors) y / (r 2^(k-1)),

    the mean at the second level minus that at the first; for an interaction, half of how much one factor's effect
    grows with the other. What neither cell nor seed explains is chance: with cell and block means, and N = r 2^k,

        s^2 = sum of (y - y_cell - y_seed + y_all)^2 / ((2^k - 1)(r - 1)),    se = 2 s / sqrt(N),

    and intervals are effect -+ t se, with that many degrees of freedom. Seeds are paired: what a seed adds to all
    cells alike counts for nothing. With one factor this is the paired t-test.

    Args:
        table: one row a run.
        factors: column -> (level before, level after), as {"kernel": (11, 7), "stride": (4, 2)}.
        measures: columns with numbers.
        block: the column that pairs runs.
        level: of the intervals; of twenty effects that are none, one lies outside at 0.95.

    Returns a data frame by (measure, factor), interactions named as "kernel x stride": effect, se, low, high
    (the interval), p (two-sided), moves (does the interval leave out 0?). NaN where a measure has a NaN. Its
    `attrs["levels"]` keep the factors' levels.

    Raises ZfkitError where a combination is missing or there twice for a seed, or there are fewer than two seeds.
    """
    import pandas as pd
    from scipy.stats import t as student

    if not factors:
        raise ZfkitError("no factor was given; name columns with two levels each, as {'kernel': (11, 7)}")
    between(level, "level")
    for name in (*factors, *measures, block):
        one_of(name, "column", list(table.columns))
    cells = list(itertools.product(*factors.values()))
    seeds = sorted(table[block].unique())
    runs = list(zip(*(table[name] for name in (*factors, block)), strict=True))  # (levels..., seed)
    counts = Counter(runs)
    for cell, seed in itertools.product(cells, seeds):
        count = counts[(*cell, seed)]
        if count != 1:
            levels = ", ".join(f"{name} {level}" for name, level in zip(factors, cell, strict=True))
            raise ZfkitError(
                f"{levels}, {block} {seed}: {count} runs, and the design needs one of each; "
                + ("run what is missing" if not count else "pick out the rows that belong to one experiment")
            )
    k, r = len(factors), len(seeds)
    if r < 2:
        raise ZfkitError(f"there is one {block} only: an interval needs two at least, three are better")
    N, freedom = r * 2**k, (2**k - 1) * (r - 1)
    t = float(student.ppf((1 + level) / 2, freedom))
    order = [[runs.index((*cell, seed)) for seed in seeds] for cell in cells]
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=k)), dtype=torch.float64)  # (2^k, k)
    subsets = [list(c) for size in range(1, k + 1) for c in itertools.combinations(range(k), size)]
    rows = {}
    for measure in measures:
        y = torch.as_tensor(table[measure].to_numpy("float64")[order])  # (2^k, r)
        residual = y - y.mean(1, keepdim=True) - y.mean(0) + y.mean()
        se = 2 * math.sqrt(float(residual.square().sum()) / freedom / N)
        rounding = 1e-12 * float(y.abs().max())  # what is the same in all runs has no effect at all
        se = 0.0 if se <= rounding else se
        for chosen in subsets:
            contrast = signs[:, chosen].prod(1)
            effect = float((contrast[:, None] * y).sum()) / (r * 2 ** (k - 1))
            effect = 0.0 if abs(effect) <= rounding else effect
            beyond = abs(effect) / se if se else (math.inf if effect else 0.0)
            rows[measure, " x ".join(list(factors)[i] for i in chosen)] = {
                "effect": effect, "se": se, "low": effect - t * se, "high": effect + t * se,
                "p": 2 * float(student.sf(beyond, freedom)), "moves": abs(effect) > t * se,
            }  # fmt: skip
    effects = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["measure", "factor"])
    effects.attrs["levels"] = {name: list(levels) for name, levels in factors.items()}
    return effects


# --------------------------------------------------------------------------------------------- all the runs

CELLS = tuple((kernel, stride, blur) for blur in (False, True) for kernel in (11, 7) for stride in (4, 2))


@dataclass(frozen=True, eq=False)
class FirstLayerRuns:
    """Networks that differ in their first layer: their numbers and their filters.

    Attributes:
        table: one row a run: kernel, stride, blur, images, seed, `MEASURES`, the same of the filters before training
            as mid_start and mid_coverage_start, and what else the notebook recorded.
        weights: for each row of the table, the trained first layer, (C, 3, kernel, kernel).
        told: where they come from: recipe, data, versions.
    """

    table: pd.DataFrame
    weights: tuple[Tensor, ...]
    told: dict[str, Any]

    def __repr__(self) -> str:
        return f"FirstLayerRuns({len(self.table)} runs: {self.told.get('data', 'unknown data')})"

    def spectra(self, **where: Any) -> list[FilterSpectra]:
        """Spectra of the first layers of all runs with these values, in the table's order.

        >>> runs.spectra(kernel=7, stride=2, blur=False, images="textures")     # one for each seed
        """
        spectra = []
        for i in self._rows(where):
            row = self.table.iloc[i]
            name = f"{row['images']}{', blur' if row['blur'] else ''}, seed {row['seed']}"
            spectra.append(replace(filter_spectra(self.weights[i], stride=int(row["stride"])), name=name))
        return spectra

    def summary(self, measures: Sequence[str] = tuple(MEASURES), **where: Any) -> pd.DataFrame:
        """Data frame to read: mean and standard deviation over seeds as text, a row for each measure, a column a cell.

        >>> runs.summary(images="textures", blur=False)
        """
        import pandas as pd

        columns = {}
        table = self.table.iloc[self._rows(where)]
        for (blur, kernel, stride), part in table.groupby(["blur", "kernel", "stride"], sort=True):
            cell = f"{kernel}x{kernel} / {stride}{' + blur' if blur else ''}"
            columns[cell] = {m: _mean_and_spread(part[m], 1 if m == "top1" else 2) for m in measures}
        return pd.DataFrame(columns).rename(index=MEASURES)

    def _rows(self, where: Mapping[str, Any]) -> list[int]:
        """Places in the table of the runs with these values."""
        import pandas as pd

        for name in where:
            one_of(name, "column", list(self.table.columns))
        alike = pd.DataFrame({n: self.table[n] == v for n, v in where.items()}, self.table.index).all(axis=1)
        rows = [i for i, chosen in enumerate(alike) if chosen]
        if not rows:
            raise ZfkitError(f"no run has {', '.join(f'{k} {v!r}' for k, v in where.items())}")
        return rows

    def save(self, folder: str | Path) -> Path:
        """Write first_layer.parquet and first_layer.safetensors (filters in half precision)."""
        import pyarrow as pa

        folder = as_path(folder)
        write_table(folder / TABLE, pa.Table.from_pandas(self.table, preserve_index=False))
        named = {f"{i:03d}": weight for i, weight in enumerate(self.weights)}
        save_weights(folder / FILTERS, named, self.told)
        return folder


def _mean_and_spread(values: pd.Series, digits: int) -> str:
    """ "0.62 ± 0.01"; the number alone where it is the same in all runs."""
    spread = float(values.std())
    mean = f"{values.mean():.{digits}f}"
    return mean if spread < 1e-9 else f"{mean} ± {spread:.{digits}f}"


TABLE, FILTERS = "first_layer.parquet", "first_layer.safetensors"
COLUMNS = ("kernel", "stride", "blur", "images", "seed", *MEASURES, "mid_start", "mid_coverage_start")


def load_first_layer_runs(folder: str | Path | None = None) -> FirstLayerRuns:
    """The runs that come with zfkit, or those of a sweep of notebooks/grids/kernel_or_stride.ipynb.

    Args:
        folder: of `zfkit sweep`, or that `FirstLayerRuns.save` wrote; None for zfkit's own: the narrow networks on
            `textures`, three seeds each.

    Runs that failed or are missing are left out. Raises ZfkitError where the folder holds no such runs, or the trained
    networks are gone that a sweep's table names.
    """
    bundled = Path(str(importlib.resources.files("zfkit"))) / "experiments" / "data"
    folder = bundled if folder is None else as_path(folder)
    if (folder / TABLE).is_file():
        tensors, provenance = load_weights(folder / FILTERS)
        weights = tuple(tensors[name] for name in sorted(tensors))
        return FirstLayerRuns(read_table(folder / TABLE, unsealed=True).to_pandas(), weights, provenance)
    table = sweep_results(folder / "results.parquet", (*COLUMNS, "folder"), "kernel_or_stride.ipynb")
    if not all(table.folder):
        raise ZfkitError("the sweep's networks were thrown away; sweep again with keep=FOLDER")
    networks = [load_weights(Path(where) / "model.safetensors") for where in table.folder]
    last = networks[-1][1]
    told = {name: last.get(name) for name in ("data", "recipe", "crops", "device", "precision", "versions")}
    told["recipe"] = {k: v for k, v in (told["recipe"] or {}).items() if k not in ("seed", "random_seed")}
    kept = [c for c in table if c not in ("run", "status", "error", "notebook", "folder", "keep")]
    return FirstLayerRuns(table[kept], tuple(tensors["conv1.weight"] for tensors, _ in networks), told)
