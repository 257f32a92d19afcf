"""The section that says where the energy goes, by our counting rule and by the paper's."""

from collections.abc import Mapping
from typing import Any

from saccade.report import plots, quantities
from saccade.report.run import Run, number

Section = dict[str, Any]
_MJ = 1e-9  # 1 pJ in mJ


def energy(run: Run, *, most: int = 40) -> Section | None:
    """Energy per layer and in total; of very deep models the `most` expensive layers are drawn."""
    m = run.metrics
    constants = m.get("energy_constants") or {}
    ac, mac = number(constants.get("ac_pj")), number(constants.get("mac_pj"))
    layers = m.get("layers") or []
    if not layers or ac is None or mac is None:
        return None
    rows = [_row(layer, ac, mac) for layer in layers]
    kept = sorted(sorted(range(len(rows)), key=lambda i: -rows[i]["mj"])[:most])
    total = number(m.get("energy_mj"))
    if total is None:
        total = sum(row["mj"] for row in rows)
    largest = max(rows, key=lambda row: row["mj"])
    rule = m.get("paper_rule") or {}
    return {
        "chart": _chart([rows[i] for i in kept], quantities.energy(total)),
        "dropped": len(rows) - len(kept),
        "rows": rows,
        "total": quantities.energy(total),
        "largest": largest["path"],
        "largest_share": quantities.percent(largest["mj"] / total, 0) if total else None,
        "ours": _rule(m, total),
        "paper": _rule(rule, number(rule.get("energy_mj"))) if rule else None,
        "paper_name": rule.get("name", "the paper"),
        "ac": f"{ac:g}",
        "mac": f"{mac:g}",
        "note": constants.get("note"),
        "uncounted": [str(product) for product in m.get("uncounted") or []],
    }


def _row(layer: Mapping[str, Any], ac: float, mac: float) -> Section:
    sops, macs = number(layer.get("sops")) or 0.0, number(layer.get("macs")) or 0.0
    paper_sops, paper_macs = number(layer.get("paper_sops")), number(layer.get("paper_macs"))
    paper = None
    if paper_sops is not None or paper_macs is not None:
        paper = ((paper_sops or 0.0) * ac + (paper_macs or 0.0) * mac) * _MJ
    mean = number(layer.get("input_mean"))
    return {
        "path": layer["path"],
        "kind": layer.get("kind", ""),
        "rate": quantities.percent(number(layer.get("input_rate"))),
        "mean": quantities.NONE if mean is None else quantities.digits(mean),
        "sops": quantities.count(sops),
        "macs": quantities.count(macs),
        "energy": quantities.energy((sops * ac + macs * mac) * _MJ),
        "paper_energy": quantities.energy(paper),
        "additions_mj": sops * ac * _MJ,
        "products_mj": macs * mac * _MJ,
        "mj": (sops * ac + macs * mac) * _MJ,
        "paper_mj": paper,
    }


def _chart(rows: list[Section], total: str) -> Any:
    papers = [row["paper_mj"] for row in rows]
    known = [p for p in papers if p is not None]
    top = max([row["mj"] for row in rows] + known)
    size, unit = quantities.energy_unit(top * 1e-3)
    scale = 1e-3 / size
    return plots.energy_chart(
        [row["path"] for row in rows],
        [row["additions_mj"] * scale for row in rows],
        [row["products_mj"] * scale for row in rows],
        [p * scale if p is not None else float("nan") for p in papers] if known else None,
        unit=unit,
        alt=f"energy per image of {len(rows)} layers, {total} in all",
    )


def _rule(counts: Mapping[str, Any], mj: float | None) -> Section:
    return {
        "sops": quantities.count(number(counts.get("sops"))),
        "macs": quantities.count(number(counts.get("macs"))),
        "energy": quantities.energy(mj),
    }
