"""`quantize --search`: which matrices can do with fewer bits, measured, and a recipe of them.

Every matrix is quantized alone, on each rung of a ladder, all else in float32, and what that does
to the predictions is KL(fp32 ‖ quantized) on text. The rungs are chosen whose KLs add up to least
within the budget: KL of single matrices adds up well while it is small.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retnet_edge.atomic import check_writable, replace_file
from retnet_edge.errors import InputError
from retnet_edge.progress import progress, working
from retnet_edge.quantize.calibration.activations import input_rms
from retnet_edge.quantize.calibration.instrumented import InstrumentedGraph
from retnet_edge.quantize.calibration.statistics import input_grams
from retnet_edge.quantize.graphs.edit import weight_matrices
from retnet_edge.quantize.quantize import apply_recipe, check_unquantized, contexts_of
from retnet_edge.quantize.recipes.built_in import (
    EMBEDDING_AND_HEAD,
    OUTLIER_THRESHOLD,
    OUTPUT_PROJECTIONS,
)
from retnet_edge.quantize.recipes.recipe import Recipe, Rule
from retnet_edge.quantize.recipes.schemes import (
    BlockInt,
    BlockInt4,
    BlockInt6,
    BlockInt8,
    Float32,
    Scheme,
)
from retnet_edge.quantize.recipes.toml_file import recipe_toml
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Tolerance
from retnet_edge.runtime.parity.agreement import log_softmax

SPAN = 8  # tokens of a call; the logits of the last are compared
TOKENS = 512  # of each context
CANDIDATES: tuple[BlockInt, ...] = (
    BlockInt8(128),
    BlockInt6(128, gptq=True),
    BlockInt4(32, symmetric=False, gptq=True),
    BlockInt4(64, symmetric=False, gptq=True),
    BlockInt4(128, symmetric=False, gptq=True),
)
EMBEDDING_CANDIDATES: tuple[BlockInt, ...] = (
    BlockInt8(128),
    BlockInt6(128),
    BlockInt4(32),
    BlockInt4(128),
)
"""Of embedding and head: lookups need symmetric codes, and a head sees too few tokens for GPTQ."""
UNITS = 20_000
_SUFFIXES = {"bits": 1.0, "KB": 1e3, "MB": 1e6, "B": 1.0}
_NO_BOUND = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=2.0, mean_kl=1.0, top1_agreement=0.0
)


class Budget(msgspec.Struct, frozen=True):
    """What all matrices may take: bits a weight, or bytes in all."""

    amount: float
    unit: Literal["bits", "bytes"] = "bits"

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`5.2` and `5.2bits` are bits a weight; `12000000B`, `12MB` bytes. Raises InputError."""
        unit = next((unit for unit in _SUFFIXES if text.endswith(unit)), "")
        try:
            amount = float(text.removesuffix(unit)) * _SUFFIXES.get(unit, 1.0)
        except ValueError:
            amount = math.nan
        if not 0 < amount < math.inf:
            raise InputError(
                f"--budget is {text!r}; give bits a weight (5.2) or bytes (12000000B, 12MB)"
            )
        return cls(amount, "bytes" if unit.endswith("B") else "bits")

    def bits(self, elements: int) -> float:
        """Bits of all matrices."""
        return self.amount * (elements if self.unit == "bits" else 8)


_SCALE_BITS = 32


@dataclass(frozen=True)
class Matrix:
    """A weight matrix [outputs, inputs]."""

    name: str
    shape: tuple[int, ...]

    @property
    def ladder(self) -> tuple[BlockInt, ...]:
        """The schemes that it may get, most bits first."""
        return CANDIDATES if self.name.startswith("blocks.") else EMBEDDING_CANDIDATES

    @property
    def elements(self) -> int:
        """Its weights."""
        return math.prod(self.shape)

    def bits(self, scheme: BlockInt) -> float:
        """Of codes, scales and zero points."""
        blocks = self.shape[0] * -(-self.shape[1] // scheme.block)
        zeros = 0 if scheme.symmetric else scheme.bits
        return blocks * (scheme.block * scheme.bits + _SCALE_BITS + zeros)


class Sensitivity(msgspec.Struct, frozen=True):
    """One line of the cache: the KL that a scheme of one matrix costs."""

    about: str
    weight: str
    scheme: str
    kl: float


def search(
    bundle: str | Path,
    recipe: str | Path,
    *,
    budget: str,
    calibration: str | Path | None = None,
    text_field: str = "text",
    say: Callable[[str], None] = print,
) -> Path:
    """Find a mixed recipe for an fp32 bundle of ONNX graphs, and write it to the file `recipe`.

    budget: see `Budget.parse`. calibration: text to measure on (None: the model writes it), in
    `text_field` of a table. What is measured goes to `recipe` with .cache.jsonl behind it, from
    which an interrupted search goes on. Raises InputError for a bad budget, a name that does not
    end in .toml or exists, and a bundle that is quantized or has programs of another backend.
    """
    allowed, recipe, source = Budget.parse(budget), Path(recipe), Bundle.open(bundle)
    if recipe.suffix != ".toml" or not recipe.absolute().parent.is_dir():
        raise InputError(f"--search {recipe}: name a .toml file in a directory that exists")
    if recipe.exists():
        raise InputError(f"--search {recipe}: exists already; give it as --recipe, or remove it")
    check_writable(recipe.absolute().parent, recipe)
    if source.manifest.backends != ("onnxruntime",):
        raise InputError(f"{source.path}: a search needs a bundle with ONNX graphs alone")
    check_unquantized(source)
    contexts = contexts_of(source, calibration, say, text_field)
    cache = recipe.with_name(f"{recipe.name}.cache.jsonl")
    found = search_mixed_precision(source, contexts, allowed, cache, recipe.stem, say)
    replace_file(recipe, recipe_toml(found).encode())
    return recipe


def search_mixed_precision(
    source: Bundle,
    contexts: NDArray[np.int64],
    budget: Budget,
    cache: Path,
    name: str,
    say: Callable[[str], None] = print,
) -> Recipe:
    """The recipe. contexts [B, T]: text to measure on. cache: a file that is read and added to.

    Raises InputError where the smallest rung is above the budget, and for a cache of other work.
    """
    matrices = _matrices(source)
    elements = sum(m.elements for m in matrices)
    allowed = budget.bits(elements)
    least = sum(min(m.bits(s) for s in m.ladder) for m in matrices)
    if least > allowed:
        raise InputError(
            f"--budget is {allowed / elements:.3f} bits a weight; the smallest recipe of this "
            f"model has {least / elements:.3f} ({math.ceil(least / 8)} bytes)"
        )
    probe = _Probe(source, contexts)
    costs = _measure_all(probe, matrices, cache, say)
    rungs = choose_schemes(matrices, costs, allowed)
    recipe = Recipe(name, _rules(matrices, rungs), _NO_BOUND)
    with working("measuring the recipe that was found"):
        kl = probe.kl(recipe)
    total = sum(m.bits(m.ladder[rungs[m.name]]) for m in matrices)
    bits = total / elements
    say(f"found {name}: {bits:.3f} bits a weight, KL {kl:.2e} on the text it was found on")
    return replace(recipe, tolerance=_tolerance(kl))


def choose_schemes(
    matrices: Sequence[Matrix], costs: dict[tuple[str, str], float], allowed: float
) -> dict[str, int]:
    """The rung of each matrix whose KLs add up to least, in `allowed` bits or the fewest possible.

    Dynamic programming over the bits that are spent, in at most UNITS units. Bits are rounded up
    to whole units, so that the budget is kept.
    """
    bits = [[int(m.bits(scheme)) for scheme in m.ladder] for m in matrices]
    unit = max(math.gcd(*itertools.chain(*bits)), math.ceil(allowed / UNITS))
    least = np.full(int(allowed // unit) + 1, np.inf)  # KL, by the units that are spent
    least[0] = 0.0
    chosen = []
    for matrix, sizes in zip(matrices, bits, strict=True):
        options = np.full((len(sizes), len(least)), np.inf)
        for rung, size in enumerate(sizes):
            units = -(-size // unit)
            kl = costs[matrix.name, matrix.ladder[rung].name]
            options[rung, units:] = least[: max(0, len(least) - units)] + kl
        chosen.append(options.argmin(axis=0))
        least = options.min(axis=0)
    if np.isinf(least.min()):  # rounding up leaves no room
        return {m.name: int(np.argmin(sizes)) for m, sizes in zip(matrices, bits, strict=True)}
    spent, rungs = int(least.argmin()), {}
    for matrix, sizes, rung_at in zip(matrices[::-1], bits[::-1], chosen[::-1], strict=True):
        rungs[matrix.name] = int(rung_at[spent])
        spent -= -(-sizes[rungs[matrix.name]] // unit)
    return rungs


def _matrices(source: Bundle) -> list[Matrix]:
    file = source.manifest.graph("prefill").file
    found = weight_matrices(ir.load(source.file(file)), file)
    return [Matrix(w.name, w.matrix().shape) for w in found]


def _scheme(matrix: Matrix, rung: int) -> Scheme:
    return replace(
        matrix.ladder[rung], tail=OUTLIER_THRESHOLD if _has_outliers(matrix.name) else None
    )


def _has_outliers(name: str) -> bool:
    return fnmatchcase(name, OUTPUT_PROJECTIONS) or fnmatchcase(name, EMBEDDING_AND_HEAD)


def _rules(matrices: Iterable[Matrix], rungs: dict[str, int]) -> tuple[Rule, ...]:
    rules = [Rule(m.name, _scheme(m, rungs[m.name])) for m in matrices if rungs[m.name] > 0]
    rest = [m for m in matrices if rungs[m.name] == 0]
    for pattern in (OUTPUT_PROJECTIONS, EMBEDDING_AND_HEAD, "*"):
        matched = [m for m in rest if fnmatchcase(m.name, pattern)]
        if matched:
            rules.append(Rule(pattern, _scheme(matched[0], 0)))
        rest = [m for m in rest if m not in matched]
    return tuple(rules)


def _tolerance(kl: float) -> Tolerance:
    """What verify is to hold a recipe of this KL to; on other text it may be twice as much.

    Of the recipes in docs/explanation/quantization.md, 0.7 √KL of the predictions change.
    """
    kl = 2 * kl
    return Tolerance(
        max_abs_logit_error=None,
        perplexity_ratio=1 + max(2 * kl, 1e-3),
        mean_kl=kl,
        top1_agreement=max(0.0, 1 - math.sqrt(kl)),
    )


class _Probe:
    """KL(fp32 ‖ recipe) of the next token, at every eighth position of the contexts."""

    def __init__(self, source: Bundle, contexts: NDArray[np.int64]) -> None:
        self._source = source
        self._file = source.manifest.graph("prefill").file
        self._tokens = contexts[:, :TOKENS]
        self._rms = input_rms(source, _has_outliers)
        self._grams = input_grams(source, lambda w: w.startswith("blocks."), contexts)
        self._plain = self._log_probs(ir.load(source.file(self._file)))

    def kl(self, recipe: Recipe) -> float:
        model = ir.load(self._source.file(self._file))
        apply_recipe(model, recipe, self._file, self._rms, self._grams)
        found = self._log_probs(model)
        return float((np.exp(self._plain) * (self._plain - found)).sum(-1).mean())

    def _log_probs(self, model: ir.Model) -> NDArray[Any]:
        graph = InstrumentedGraph(self._source, model, ())
        states = graph.zero_states(len(self._tokens))
        rows = []
        for start in range(0, self._tokens.shape[1], SPAN):
            found, states = graph.run(self._tokens[:, start : start + SPAN], start, states)
            rows.append(log_softmax(found["logits"].astype(np.float64)).astype(np.float32))
        return np.concatenate(rows)

    @property
    def about(self) -> str:
        """What KLs of another probe must agree in to be the same."""
        weights = self._source.manifest.provenance.checkpoint_sha256[:16]
        return f"{weights} {hash_of(self._tokens)}"


def hash_of(tokens: NDArray[np.int64]) -> str:
    """Of the text, 16 hex digits."""
    return hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest()[:16]


def _measure_all(
    probe: _Probe, matrices: Sequence[Matrix], cache: Path, say: Callable[[str], None]
) -> dict[tuple[str, str], float]:
    """(weight, name of a rung) -> KL; what the cache has is not measured again."""
    known = {(m.weight, m.scheme): m.kl for m in read_cache(cache, probe.about)}
    drop_cut_line(cache)
    wanted = [(m, rung) for m in matrices for rung in range(len(m.ladder))]
    missing = [(m, rung) for m, rung in wanted if (m.name, m.ladder[rung].name) not in known]
    say(f"{len(wanted) - len(missing)} of {len(wanted)} measurements are in {cache}")
    with progress("search", len(missing)) as advance, cache.open("ab") as file:
        for matrix, rung in missing:
            rules = (Rule(matrix.name, _scheme(matrix, rung)), Rule("*", Float32()))
            kl = probe.kl(Recipe("probe", rules, _NO_BOUND))
            name = matrix.ladder[rung].name
            line = Sensitivity(probe.about, matrix.name, name, kl)
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            known[matrix.name, name] = kl
            advance(1)
    return known


def drop_cut_line(cache: Path) -> None:
    """Take away what stands after the last line break: a line that was cut off."""
    if cache.exists():
        whole = cache.read_bytes()
        if not whole.endswith(b"\n"):
            replace_file(cache, whole[: whole.rfind(b"\n") + 1])


def read_cache(cache: Path, about: str) -> list[Sensitivity]:
    """Its lines about the same weights and text; a last line that was cut off is passed over.

    Raises InputError for a file that is no such cache.
    """
    if not cache.exists():
        return []
    lines = cache.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            found.append(msgspec.json.decode(line, type=Sensitivity))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if number < len(lines) - 1:
                raise InputError(f"{cache}: line {number + 1}: not a search's cache") from error
    return [one for one in found if one.about == about]
