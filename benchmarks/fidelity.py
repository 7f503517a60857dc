"""Seconds of our Frechet distance and of all our metrics against the usual implementations, with the values of both.

python benchmarks/fidelity.py --out fidelity.json

Frechet distances: covariances of 2,048 features whose distance is known in closed form (one random basis, two spectra), and sets of fewer
images than features built the same way. Peers: eigenvalues of the product, as torch-fidelity has it, and scipy's `sqrtm`, as pytorch-fid
has it. Metrics: FID, KID (100 subsets of 1,000), precision and recall, and IS of one set against another, of uint8 tensors in memory,
through one and the same network, the shipped glyph extractor, registered with torch-fidelity; `torch_fidelity.calculate_metrics` with and
without its loader processes and its cache of the reference. It gets float32 features, as the network gives them; `precise` hands it the
same in float64. Our numbers are compared with that, because its sums are then as exact as ours. Everything on one thread.
"""

import argparse
import json
import os
import platform
import statistics as stats
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import numpy as np
import scipy
import torch
import torch_fidelity
from scipy import linalg
from threadpoolctl import threadpool_limits
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_statistics_to_metric

from gda.fidelity.compare import fid
from gda.fidelity.diversity import inception_score_over_splits
from gda.fidelity.extractors import get_extractor
from gda.fidelity.extractors.glyph import load_glyph_net
from gda.fidelity.frechet import Statistics, frechet_distance, frechet_of_features
from gda.fidelity.kid import kernel_distance_over_subsets
from gda.fidelity.prdc import prdc

TARGETS = {
    "frechet against eigvals": 3.0,
    "frechet against sqrtm": 12.0,
    "frechet relative error": 1e-9,
    "few images against eigvals": 50.0,
    "metrics, reference cached": 1.5,
    "metrics, nothing cached": 3.0,
    "metrics relative difference": 1e-5,
}
PEERS = {"torch-fidelity": {}, "torch-fidelity without loader processes": {"save_cpu_ram": True}}
KEYS = (
    "frechet_inception_distance",
    "kernel_inception_distance_mean",
    "precision",
    "recall",
    "inception_score_mean",
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes: `dim` features of the Frechet part, `few` images of its second half, `count` images of each set of metrics."""

    dim: int
    few: int
    count: int
    repetitions: int


class GlyphExtractor(FeatureExtractorBase):
    """The shipped network as torch-fidelity expects it: a tuple of features by name, of uint8 NCHW."""

    dtype = torch.float32

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        self.net = load_glyph_net()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("pooled", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "pooled"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled = self.net.features(images.float() / 255.0)
        found = {"pooled": pooled, "logits": self.net.head(pooled)}
        return tuple(found[name].to(self.dtype) for name in self.features_list)


class PreciseGlyphExtractor(GlyphExtractor):
    """The same, with features in float64."""

    dtype = torch.float64


class Tensors(Dataset):
    """Images in memory, one at a time."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def rotated(spectrum: np.ndarray, shift: float, basis: np.ndarray) -> Statistics:
    """Statistics with this spectrum in that basis."""
    return Statistics(mean=np.full(len(spectrum), shift), cov=(basis * spectrum) @ basis.T, n=None)


def few_images(spectrum: np.ndarray, shift: float, basis: np.ndarray, seed: int) -> np.ndarray:
    """Features [n, d], n one more than the spectrum has values, whose covariance has exactly that spectrum in that basis."""
    n = len(spectrum) + 1
    rows = np.random.default_rng(seed).normal(size=(n, n - 1))
    orthonormal, _ = np.linalg.qr(rows - rows.mean(0))
    return shift + (orthonormal * np.sqrt(spectrum * (n - 1))) @ basis[:, : n - 1].T


def by_eigvals(a: Statistics, b: Statistics) -> float:
    """torch-fidelity's own function."""
    one, two = ({"mu": each.mean, "sigma": each.cov} for each in (a, b))
    return float(fid_statistics_to_metric(one, two, False)["frechet_inception_distance"])


def by_sqrtm(a: Statistics, b: Statistics) -> float:
    """As pytorch-fid has it."""
    root = linalg.sqrtm(a.cov @ b.cov)
    return float(np.square(a.mean - b.mean).sum() + np.trace(a.cov) + np.trace(b.cov) - 2 * np.trace(root.real))


def by_eigvals_of_features(a: np.ndarray, b: np.ndarray) -> float:
    """What torch-fidelity does with few images: the same as with many."""
    one, two = (Statistics(mean=each.mean(0), cov=np.cov(each, rowvar=False), n=None) for each in (a, b))
    return by_eigvals(one, two)


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Wall and processor seconds of `work`, and what it returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, found


def interleaved(ways: dict[str, Callable[[], Any]], repetitions: int, say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every way in turn, `repetitions` times; what each took, and what it returned the last time."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    results = {}
    for repetition in range(repetitions):
        for name, work in ways.items():
            taken, results[name] = timed(work)
            runs[name].append(taken)
        say(f"{repetition + 1} of {repetitions}: " + ", ".join(f"{name} {each[-1]['wall']:.3f}" for name, each in runs.items()))
    return {name: summary(each) for name, each in runs.items()}, results


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    walls, cpus = [run["wall"] for run in runs], [run["cpu"] for run in runs]
    return {"median": stats.median(walls), "lowest": min(walls), "median_cpu": stats.median(cpus), "runs": runs}


def measure_frechet(setting: Setting, say: Callable[[str], None]) -> dict[str, Any]:
    """Both halves of the Frechet part, with the error of each way relative to the closed form."""
    d, rng = setting.dim, np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(d, d)))
    one, two = np.exp(-np.arange(d) * 7.0 / d), 1.5 * np.exp(-np.arange(d) * 10.0 / d)
    exact = 0.01 * d + np.square(np.sqrt(one) - np.sqrt(two)).sum()
    a, b = rotated(one, 0.0, basis), rotated(two, 0.1, basis)
    ways = {"ours": frechet_distance, "eigvals": by_eigvals, "sqrtm": by_sqrtm}
    times, values = interleaved({name: lambda way=way: way(a, b) for name, way in ways.items()}, setting.repetitions, say)
    k = setting.few - 1
    few_exact = 0.01 * d + np.square(np.sqrt(one[:k]) - np.sqrt(two[:k])).sum()
    x, y = few_images(one[:k], 0.0, basis, 1), few_images(two[:k], 0.1, basis, 2)
    few_ways = {"ours": frechet_of_features, "eigvals": by_eigvals_of_features}
    few_times, few_values = interleaved({name: lambda way=way: way(x, y) for name, way in few_ways.items()}, setting.repetitions, say)
    return {
        "many": {"seconds": times, "error": {name: abs(value - exact) / exact for name, value in values.items()}},
        "few": {"seconds": few_times, "error": {name: abs(value - few_exact) / few_exact for name, value in few_values.items()}},
    }


def make_images(count: int, seed: int, noise: float) -> torch.Tensor:
    """uint8 [n, 3, 28, 28]: soft blots, with noise."""
    generator = torch.Generator().manual_seed(seed)
    blots = torch.nn.functional.interpolate(torch.rand(count, 3, 6, 6, generator=generator), (28, 28), mode="bicubic").clamp(0, 1)
    return ((1 - noise) * blots + noise * torch.rand(count, 3, 28, 28, generator=generator)).mul(255).byte()


def ours(images: torch.Tensor, reference: np.ndarray) -> dict[str, float]:
    """All metrics of images against features, by torch-fidelity's definitions and names."""
    extractor, net = get_extractor("glyph"), load_glyph_net()
    features = extractor.features(images)
    with torch.inference_mode():
        logits = net.head(torch.from_numpy(features)).numpy()
    balls = prdc(features, reference, k=3)
    values = (
        fid(features, reference),
        kernel_distance_over_subsets(features, reference)[0],
        balls.precision,
        balls.recall,
        inception_score_over_splits(logits)[0],
    )
    return dict(zip(KEYS, values, strict=True))


def peer_metrics(one: torch.Tensor, two: torch.Tensor, *, cache: Path | None, extractor: str = "glyph", **options: Any) -> dict[str, float]:
    """The same by `calculate_metrics`; with `cache`, the second set is looked up there by name."""
    cached = {"cache": False} if cache is None else {"cache": True, "cache_root": str(cache), "input2_cache_name": "reference"}
    found = torch_fidelity.calculate_metrics(
        input1=Tensors(one), input2=Tensors(two), cuda=False, isc=True, fid=True, kid=True, prc=True, verbose=False,
        feature_extractor=extractor, **cached, **options,
    )  # fmt: skip
    return {key: found[key] for key in KEYS}


def measure_metrics(setting: Setting, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds with and without a cached reference, and the largest relative difference of a metric."""
    torch_fidelity.register_feature_extractor("glyph", GlyphExtractor)
    torch_fidelity.register_feature_extractor("precise", PreciseGlyphExtractor)
    fake, real = make_images(setting.count, 0, 0.15), make_images(setting.count, 1, 0.1)
    extractor = get_extractor("glyph")
    with TemporaryDirectory() as name:
        cache = Path(name)
        kept = cache / "ours.npy"
        np.save(kept, extractor.features(real))
        peer_metrics(fake, real, cache=cache)  # fills the cache
        cached: dict[str, Callable[[], Any]] = {"ours": lambda: ours(fake, np.load(kept))}
        fresh: dict[str, Callable[[], Any]] = {"ours": lambda: ours(fake, extractor.features(real))}
        for peer, options in PEERS.items():
            cached[peer] = lambda options=options: peer_metrics(fake, real, cache=cache, **options)
            fresh[peer] = lambda options=options: peer_metrics(fake, real, cache=None, **options)
        with_cache, values = interleaved(cached, setting.repetitions, say)
        without, _ = interleaved(fresh, setting.repetitions, say)
    precise = peer_metrics(fake, real, cache=None, extractor="precise", save_cpu_ram=True)
    return {
        "cached": with_cache,
        "fresh": without,
        "values": values | {"precise": precise},
        "difference": {key: apart(values["ours"][key], precise[key]) for key in KEYS},
        "difference_of_float32": {key: apart(values["torch-fidelity"][key], precise[key]) for key in KEYS},
    }


def apart(value: float, other: float) -> float:
    return abs(value - other) / max(abs(other), 1e-300)


def ratios(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The ratios for the targets, by wall and by processor time; of peers that do the same, the faster one counts."""
    found: dict[str, dict[str, float]] = {}

    def against(name: str, times: dict[str, Any], *peers: str) -> None:
        found[name] = {kind: min(times[peer][kind] for peer in peers) / times["ours"][kind] for kind in ("median", "median_cpu", "lowest")}

    if "frechet" in report:
        many, few = report["frechet"]["many"], report["frechet"]["few"]
        against("frechet against eigvals", many["seconds"], "eigvals")
        against("frechet against sqrtm", many["seconds"], "sqrtm")
        against("few images against eigvals", few["seconds"], "eigvals")
        found["frechet relative error"] = {"largest": max(many["error"]["ours"], few["error"]["ours"])}
    if "metrics" in report:
        against("metrics, reference cached", report["metrics"]["cached"], *PEERS)
        against("metrics, nothing cached", report["metrics"]["fresh"], *PEERS)
        found["metrics relative difference"] = {"largest": max(report["metrics"]["difference"].values())}
    return found


def table(report: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| What | Way | Seconds, median (lowest) | Processor seconds | Relative error |", "|---|---|---|---|---|"]
    parts = [(f"{kind} images", part) for kind, part in report.get("frechet", {}).items()]
    if "metrics" in report:
        parts += [(f"metrics, {kind}", {"seconds": report["metrics"][kind], "error": {}}) for kind in ("cached", "fresh")]
    for what, part in parts:
        for way, run in part["seconds"].items():
            error = f"{part['error'][way]:.1e}" if way in part["error"] else ""
            lines.append(f"| {what} | {way} | {run['median']:.3f} ({run['lowest']:.3f}) | {run['median_cpu']:.3f} | {error} |")
    lines += ["", "| What | Target | Measured |", "|---|---|---|"]
    for name, values in report["ratios"].items():
        lines.append(f"| {name} | {TARGETS[name]:g} | {', '.join(f'{kind} {value:.3g}' for kind, value in values.items())} |")
    lines += [f"{kind}: {report['metrics'][kind]}" for kind in ("difference", "difference_of_float32") if "metrics" in report]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    return {
        "device": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "torch": torch.__version__,
        "torch_fidelity": torch_fidelity.__version__,
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--few", type=int, default=500)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=("metrics", "frechet"), default=("metrics", "frechet"))
    given = parser.parse_args()
    setting = Setting(dim=given.dim, few=given.few, count=given.count, repetitions=given.repetitions)
    torch.set_num_threads(1)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with threadpool_limits(1, user_api="blas"):
        report: dict[str, Any] = {"setting": asdict(setting), "machine": machine()}
        parts = {"metrics": measure_metrics, "frechet": measure_frechet}
        for name in given.parts:
            report[name] = parts[name](setting, say)
            given.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    report |= {"targets": TARGETS, "ratios": ratios(report)}
    given.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(table(report))


if __name__ == "__main__":
    main()
