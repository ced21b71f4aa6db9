"""Diagnoses with made-up figures."""

from dataclasses import replace

from m2ray.diagnosis.findings import Diagnosis, Gap, Norms, Success
from m2ray.diagnosis.probes import Probe, SimilarityMap
from m2ray.judging.statistics import Estimate


def estimate(value, spread=0.01):
    """Return an estimate with an interval of `spread` on either side."""
    return Estimate(value, value - spread, value + spread)


def healthy_diagnosis(facts=0.95, **changes) -> Diagnosis:
    """Return the diagnosis of a last-token codec of k = 4 that works; each stage's probe has accuracy `facts`."""
    stages = ("tokens", "pooled", "latent", "prefix")
    p0 = changes.pop("p0", 0.25)
    nll = {"normal": (0.1, 0.0), "shuffle": (0.6, 0.0), "null": (0.36, 0.0), "P0": (0.35, 0.0), "P1": (0.05, 0.0)}
    gaps = {
        name: Gap(estimate(digits - 0.1), estimate(0.0, 0.001))
        for name, (digits, _) in nll.items()
        if name != "normal"
    }
    gaps["P0"] = Gap(estimate(p0), estimate(0.0, 0.001))
    whole = Diagnosis(
        about={"checkpoint": "0" * 16, "encoder": "last_token", "k": 4, "n": 1000},
        path=stages,
        maps={name: SimilarityMap(0.4, 0.2, 20.0, 0.8, 0.2) for name in stages},
        probes={name: Probe(estimate(facts), estimate(0.6), 0.2, estimate(0.5)) for name in stages},
        nll=nll,
        gaps=gaps,
        seen={"shuffle": estimate(0.5), "P0": estimate(0.25)},
        success={
            "normal": Success(800, 1000, 0.1),
            "shuffle": Success(100, 1000, 0.6),
            "P0": Success(350, 1000, 0.35),
            "P1": Success(950, 1000, 0.05),
        },
        ahead={"shuffle": estimate(0.7, 0.03), "P0": estimate(0.45, 0.03), "P1": estimate(-0.15, 0.03)},
        retention=estimate(0.75, 0.05),
        norms=Norms(1.5, 1.4, 1.6, 1.5),
    )
    return replace(whole, **changes)


def with_gap(d: Diagnosis, **gaps: Estimate) -> Diagnosis:
    """Return the diagnosis with other NLL gaps."""
    return replace(d, gaps=d.gaps | {name: Gap(gap, estimate(0.0, 0.001)) for name, gap in gaps.items()})


def without_gain(d: Diagnosis) -> Diagnosis:
    """Return the diagnosis with the success rate of P0 under normal: the prefix does not help B."""
    success = d.success | {"normal": Success(355, 1000, 0.35)}
    return replace(
        d, success=success, ahead=d.ahead | {"P0": estimate(0.005, 0.03)}, retention=estimate(0.01, 0.05)
    )
