#!/usr/bin/env python3
"""Fits the power model of servers without energy counters, and says how well it predicts.

    scripts/fit_model.py --data DIR                writes probe-user/src/energy/model/table.rs
    scripts/fit_model.py --data DIR --check        prints the tables of docs/accuracy.md instead
    scripts/fit_model.py --data DIR --test OTHER   fits on DIR, prints the error on OTHER

DIR has one or both of these files, as downloaded or with the columns of COLUMNS:

    specpower-curves.csv          wall power at idle, 10 %, ... 100 % load
        https://raw.githubusercontent.com/green-coding-solutions/cloud-energy/main/data/spec_data_cleaned_unmelted.csv
    specpower-2026-idle-full.csv  wall power at idle and 100 % load
        https://raw.githubusercontent.com/cloud-carbon-footprint/ccf-coefficients/main/data/SPECpower-2026-03-09.csv

Both are SPECpower_ssj2008 results (spec.org). They are not committed. Only the standard library is
used, and the output depends on the input alone.

The model is a ridge regression of the logarithm of idle and of full power on the features of
`features`, with an effect of each processor generation. It is fitted robustly, with weights from
the residuals of the cross-validation, in which the rows of one CPU model are left out at a time.
"""

import argparse
import collections
import csv
import math
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "../probe-user/src/energy/model/table.rs")
FILES = ["specpower-curves.csv", "specpower-2026-idle-full.csv"]
LEVELS = ["idle_w"] + [f"w{load}" for load in range(10, 100, 10)] + ["w100"]
# Our column: its names in the downloaded files.
COLUMNS = {
    "cpu": ["HW_CPUName", "CPU Description"],
    "arch": ["Architecture"],
    "year": ["published", "Hardware_Availability_Year", "Published"],
    "chips": ["CPUChips", "Chips"],
    "cores": ["CPUCores", "# Cores"],
    "threads": ["CPUThreads", "Total Threads"],
    "tdp_w": ["TDP"],
    "mem_gb": ["HW_MemAmountGB", "Total Memory (GB)"],
    "idle_w": ["ActiveIdle", "avg. watts @ active idle"],
    "w100": ["100_AvgPower", "avg. watts @ 100%"],
    **{f"w{load}": [f"{load}_AvgPower"] for load in range(10, 100, 10)},
}
FEATURES = 13
# Ridge of the effects of generations, and of the other coefficients.
RIDGE, RIDGE_COMMON = 0.3, 0.01
# Relative residual from which a row counts less.
ROBUST = 0.12

# The names are those of generation() in model/server.rs.
GENERATIONS = {
    "netburst": "NetBurst", "core": "Core", "nehalem": "Nehalem", "nehalem-ex": "Nehalem-EX",
    "sandybridge": "Sandy Bridge", "ivybridge": "Ivy Bridge", "haswell": "Haswell", "broadwell": "Broadwell",
    "skylake": "Skylake", "skylake-client": "Skylake client", "cascadelake": "Cascade Lake",
    "cooperlake": "Cooper Lake", "icelake": "Ice Lake", "sapphirerapids": "Sapphire Rapids",
    "emeraldrapids": "Emerald Rapids", "graniterapids": "Granite Rapids", "sierraforest": "Sierra Forest",
    "coffeelake": "Coffee Lake", "rocketlake": "Rocket Lake", "raptorlake": "Raptor Lake",
    "opteron": "Opteron", "epyc-gen1": "EPYC 1st gen", "epyc-gen2": "EPYC 2nd gen", "epyc-gen3": "EPYC 3rd gen",
    "epyc-gen4": "EPYC 4th gen", "epyc-gen5": "EPYC 5th gen", "epyc-am5": "AMD desktop",
    "neoverse-n1": "Neoverse N1", "neoverse-v1": "Neoverse V1", "neoverse-v2": "Neoverse V2",
}

# The watts of a thread at idle and full load that the model had before, to compare.
BEFORE = {
    "sandybridge": (2.17, 8.58), "ivybridge": (3.04, 8.25), "haswell": (1.0, 4.74), "broadwell": (0.71, 3.69),
    "skylake": (0.65, 4.26), "skylake-client": (0.65, 4.26), "cascadelake": (0.64, 3.97), "coffeelake": (1.14, 5.42),
    "epyc-gen1": (0.82, 2.55), "epyc-gen2": (0.47, 1.69), "epyc-gen3": (0.45, 2.02),
}
BEFORE_UNKNOWN = (0.74, 3.5)


def canonical(name):
    """The CPU model without vendor, frequency and decoration, in lower case."""
    name = re.sub(r"®|\(r\)|\(tm\)", " ", name.lower())
    name = re.sub(r"\(.*?\)|\[.*?\]", " ", name)
    name = re.sub(r"@?\s*\d+(\.\d+)?\s*ghz.*", "", name)
    name = re.sub(r"\b(intel|amd|cpu|processor|dell sku.*|\d+-core)\b", " ", name)
    name = re.sub(r"[,@]", " ", name)
    name = re.sub(r"\b(e[357]) (\d{4})", r"\1-\2", name)
    name = re.sub(r"(\d[lwms]?) ?v ?(\d)\b", r"\1 v\2", name)
    name = re.sub(r"xeon e e-", "xeon e-", " ".join(name.split()))
    name = re.sub(r"xeon-d (\d)", r"xeon d-\1", name)
    scalable = re.fullmatch(r"xeon ([4-9]\d{3}[+hlvynqsmu]*)", name)
    return f"xeon platinum {scalable.group(1)}" if scalable and not name.endswith(("7020", "7110m")) else name


def intel_scalable(cpu):
    match = re.search(r"(?:platinum|gold|silver) \d(\d)\d\d", cpu)
    if not match:
        return None
    if match.group(1) == "3":
        return "cooperlake" if re.search(r"83(76|80)hl?$", cpu) else "icelake"
    return {"1": "skylake", "2": "cascadelake", "4": "sapphirerapids", "5": "emeraldrapids"}.get(match.group(1))


def generation(cpu, year, arch):
    """Key of GENERATIONS. A running machine has family and model numbers instead of this."""
    epyc = re.search(r"epyc (\d)\d\d(\d)", cpu)
    version = re.search(r"e[357]-\d{4}[lwms]? v(\d)", cpu)
    rules = [
        ("altra" in cpu, "neoverse-n1"),
        ("grace" in cpu, "neoverse-v2"),
        (epyc and epyc.group(1) == "4", "epyc-am5"),
        (epyc and epyc.group(1) == "8", "epyc-gen4"),
        (epyc, f"epyc-gen{epyc.group(2)}" if epyc else ""),
        ("opteron" in cpu, "opteron"),
        (re.search(r"\b6\d{3}e\b", cpu), "sierraforest"),
        (re.search(r"xeon 6\d{3}p", cpu), "graniterapids"),
        (re.search(r"xeon d-2", cpu), "icelake"),
        (re.search(r"e-2[12]", cpu), "coffeelake"),
        (re.search(r"e-23", cpu), "rocketlake"),
        (re.search(r"e-24", cpu), "raptorlake"),
        (re.search(r"x75\d\d|e7-\d{4}$", cpu), "nehalem-ex"),
        (intel_scalable(cpu), intel_scalable(cpu)),
        (version, {"2": "ivybridge", "3": "haswell", "4": "broadwell", "5": "skylake-client"}.get(
            version.group(1)) if version else ""),
        ("i5-4570" in cpu, "haswell"),
        (re.search(r"e[35]-", cpu), "sandybridge"),
        (arch in ("core", "nehalem"), arch),
        ("i3-540" in cpu or re.search(r"[xel]5[56]\d\d", cpu), "nehalem"),
        (year < 2007, "netburst"),
        (True, "core"),
    ]
    found = next(key for matches, key in rules if matches)
    return found if found in GENERATIONS else "core"


def field(row, name):
    return next((row[key] for key in [name, *COLUMNS[name]] if row.get(key) not in (None, "")), None)


def read_row(row):
    """One row, or None where a figure is missing."""
    try:
        year = int(re.search(r"\d{4}", field(row, "year")).group())
        levels = [field(row, level) for level in LEVELS]
        out = {
            "cpu": canonical(field(row, "cpu")),
            "year": year,
            **{name: round(float(field(row, name))) for name in ("chips", "cores", "threads")},
            "mem": float(field(row, "mem_gb")),
            "watts": [None if level is None else float(level) for level in levels],
        }
    except (TypeError, ValueError, AttributeError):
        return None
    tdp = field(row, "tdp_w")
    out["tdp"] = float(tdp) if tdp else None
    idle, full = out["watts"][0], out["watts"][10]
    possible = idle and full and 0 < idle < full and 0 < out["chips"] <= out["cores"] <= out["threads"]
    # More than 8 chips are several machines in one row. A mean over threads that counts cores as
    # threads, or the machines of a cluster as one, is how one published coefficient became four
    # times the true power.
    if not possible or out["chips"] > 8:
        return None
    out["gen"] = generation(out["cpu"], year, field(row, "arch") or "")
    return out


def read_data(directory):
    rows, seen = [], set()
    for name in FILES:
        path = os.path.join(directory, name)
        if not os.path.exists(path):
            continue
        with open(path, newline="", encoding="utf-8") as file:
            for row in filter(None, map(read_row, csv.DictReader(file))):
                key = (row["cpu"], row["chips"], row["watts"][0], row["watts"][10])
                # The second file repeats results of the first.
                if name == FILES[0] or key not in seen:
                    rows.append(row)
                seen.add(key)
    if not rows:
        sys.exit(f"{directory}: neither {' nor '.join(FILES)} has a usable row")
    return rows


def middle(values):
    values = sorted(values)
    return values[len(values) // 2]


def quantile(values, part):
    """Interpolated between the order statistics."""
    values = sorted(values)
    at = part * (len(values) - 1)
    low = math.floor(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (at - low)


def fill(rows, typical_mem=None):
    """Memory of a chip. Some rows have that of one node, or gigabytes of something else."""
    for row in rows:
        row["memc"] = row["mem"] / row["chips"]
        row["mem_known"] = row["memc"] >= (1 if row["year"] < 2013 else 4)
    known = collections.defaultdict(list)
    for row in rows:
        if row["mem_known"]:
            known[row["gen"]].append(row["memc"])
    for row in rows:
        if not row["mem_known"]:
            row["memc"] = (typical_mem or {}).get(row["gen"]) or middle(known[row["gen"]] or [32])


def years_of(rows):
    years = collections.defaultdict(list)
    for row in rows:
        years[row["gen"]].append(row["year"])
    return {gen: middle(of) for gen, of in years.items()}


def dense(cpu):
    """Processors of small cores: EPYC 8004, 9754, 9845, 9965, and Xeon 6 E."""
    return bool(re.search(r"epyc (8\d{3}|97[35]4|9[678][24]5|9965)|\b6\d{3}e\b", cpu))


def low_power(cpu):
    """CPU models that are sold for low power: L5420, E5-2650L, HE and EE, 6421N."""
    return bool(re.search(r"\bl\d{4}|e[357]-\d{4}l|\b[he]e\b|\d{4}p?n\b", cpu))


def features(chips, cores, threads, mem_per_chip, year, is_dense, is_low_power):
    chip, core = math.log(chips), math.log(cores / chips) - 2.8
    mem, age = math.log(mem_per_chip) - 4, (year - 2016) / 5
    smt = 1.0 if threads > cores else 0.0
    return [1.0, chip, core, smt, mem, age, age * age, age * core, core * core, chip * chip, chip * mem,
            1.0 if is_dense else 0.0, 1.0 if is_low_power else 0.0]


def row_features(row, years):
    year = years.get(row["gen"], row["year"])
    return features(row["chips"], row["cores"], row["threads"], row["memc"], year, dense(row["cpu"]),
                    low_power(row["cpu"]))


def solve(matrix, right):
    """Solution of a symmetric positive definite system, by Cholesky's decomposition."""
    size = len(matrix)
    lower = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - sum(lower[i][k] * lower[j][k] for k in range(j))
            lower[i][j] = math.sqrt(rest) if i == j else rest / lower[j][j]
    half = [0.0] * size
    for i in range(size):
        half[i] = (right[i] - sum(lower[i][k] * half[k] for k in range(i))) / lower[i][i]
    out = [0.0] * size
    for i in reversed(range(size)):
        out[i] = (half[i] - sum(lower[k][i] * out[k] for k in range(i + 1, size))) / lower[i][i]
    return out


class Fit:
    """Coefficients of both targets, and the predictions of each row without its CPU model."""

    def __init__(self, rows):
        self.rows, self.years = rows, years_of(rows)
        self.gens = sorted(self.years)
        self.index = {gen: FEATURES + i for i, gen in enumerate(self.gens)}
        self.size = FEATURES + len(self.gens)
        counts = collections.Counter(row["cpu"] for row in rows)
        self.x = [self.sparse(row) for row in rows]
        self.groups = collections.defaultdict(list)
        for i, row in enumerate(rows):
            self.groups[row["cpu"]].append(i)
        # Popular CPU models count more, but not in proportion.
        base = [counts[row["cpu"]] ** -0.5 for row in rows]
        self.coefficients, self.left_out = [], []
        for level in (0, 10):
            target = [math.log(row["watts"][level]) for row in rows]
            weights = base
            for _ in range(3):
                whole, predictions = self.cross_validate(target, weights)
                errors = [abs(a - b) for a, b in zip(predictions, target)]
                last, weights = whole, [w * min(1, ROBUST / max(e, 1e-9)) for w, e in zip(base, errors)]
            self.coefficients.append(last)
            self.left_out.append(predictions)

    def sparse(self, row):
        dense_part = list(enumerate(row_features(row, self.years)))
        gen = [(self.index[row["gen"]], 1.0)] if row["gen"] in self.index else []
        return [(i, value) for i, value in dense_part if value] + gen

    def sums(self, members, target, weights):
        matrix = [[0.0] * self.size for _ in range(self.size)]
        right = [0.0] * self.size
        for row in members:
            for i, a in self.x[row]:
                right[i] += weights[row] * a * target[row]
                for j, b in self.x[row]:
                    if j > i:
                        break
                    matrix[i][j] += weights[row] * a * b
        return matrix, right

    def cross_validate(self, target, weights):
        all_matrix, all_right = self.sums(range(len(self.rows)), target, weights)

        def without(matrix, right):
            ridge = lambda i: RIDGE_COMMON if i < FEATURES else RIDGE
            left = [[all_matrix[i][j] - matrix[i][j] + (ridge(i) if i == j else 0) for j in range(self.size)]
                    for i in range(self.size)]
            return solve(left, [a - b for a, b in zip(all_right, right)])

        none = [[0.0] * self.size for _ in range(self.size)]
        whole = without(none, [0.0] * self.size)
        predictions = [0.0] * len(self.rows)
        for members in self.groups.values():
            fitted = without(*self.sums(members, target, weights))
            for row in members:
                predictions[row] = sum(fitted[i] * value for i, value in self.x[row])
        return whole, predictions

    def predict(self, sparse):
        return [sum(of[i] * value for i, value in sparse) for of in self.coefficients]


def shapes(rows, modern_from=2016):
    """Part of the dynamic power at 10 ... 90 % load, by generation, drawn towards the mean of modern
    ones, which generations without curves have."""
    def mean_by_cpu(some):
        by_cpu = collections.defaultdict(list)
        for row in some:
            idle, full = row["watts"][0], row["watts"][10]
            by_cpu[row["cpu"]].append([(level - idle) / (full - idle) for level in row["watts"][1:10]])
        means = [[sum(column) / len(of) for column in zip(*of)] for of in by_cpu.values()]
        return len(means), [sum(column) / len(means) for column in zip(*means)]

    curves = [row for row in rows if None not in row["watts"]]
    if not curves:
        return {}, [load / 10 for load in range(1, 10)]
    _, modern = mean_by_cpu([row for row in curves if row["year"] >= modern_from] or curves)
    out = {}
    for gen in sorted({row["gen"] for row in curves}):
        count, mean = mean_by_cpu([row for row in curves if row["gen"] == gen])
        out[gen] = [(m * count + 2 * base) / (count + 2) for m, base in zip(mean, modern)]
    return out, modern


def energy(levels):
    return sum(levels) / len(levels)


def curve(idle, full, shape):
    return [idle] + [idle + (full - idle) * part for part in shape] + [full]


def same_levels(levels, row):
    return [level for level, known in zip(levels, row["watts"]) if known is not None]


def known_levels(row):
    return [level for level in row["watts"] if level is not None]


def known_effects(fit, predictions):
    """Effect of each CPU model, and how many rows it takes to believe half of it: the ratio of the
    variances within and between CPU models."""
    effects = {}
    kappas = []
    for level, predicted in zip((0, 10), predictions):
        residuals = [math.log(row["watts"][level]) - p for row, p in zip(fit.rows, predicted)]
        within = [(residuals[i] - sum(residuals[j] for j in of) / len(of)) ** 2 * len(of) / (len(of) - 1)
                  for of in fit.groups.values() if len(of) > 1 for i in of]
        means = [sum(residuals[i] for i in of) / len(of) for of in fit.groups.values()]
        inner, between = quantile(within, 0.5) * 2.2, quantile([m * m for m in means], 0.5) * 2.2
        kappas.append(inner / max(between, 1e-6))
        for cpu, of in fit.groups.items():
            mean = sum(residuals[i] for i in of) / len(of)
            effects.setdefault(cpu, []).append(mean * len(of) / (len(of) + kappas[-1]))
    return effects, kappas


def typical(rows, gen):
    """Chips, cores and memory of a chip, and threads of a core, of a generation's usual server."""
    of = [row for row in rows if row["gen"] == gen]
    if not of:
        return None
    chips = min(2, middle([row["chips"] for row in of]))
    return (chips, middle([row["cores"] // row["chips"] for row in of]), middle([row["memc"] for row in of]),
            middle([row["threads"] // row["cores"] for row in of]))


def relative(pairs):
    """(estimate, truth) as truth / estimate - 1."""
    return [truth / estimate - 1 for estimate, truth in pairs]


def errors_of(pairs):
    """(estimate, truth) as |estimate / truth - 1|."""
    return [abs(estimate / truth - 1) for estimate, truth in pairs]


class Validation:
    """Estimates of each row: (estimate, truth) at idle, full load, and of the energy over the levels
    that the row has."""

    def __init__(self, fit):
        rows = self.rows = fit.rows
        self.fit = fit
        self.unseen, self.line, self.known, self.guest, self.before = [], [], [], [], []
        _, kappas = known_effects(fit, fit.left_out)
        self.kappas = kappas
        shape_of = self.shapes_without()
        for i, row in enumerate(rows):
            idle, full = (math.exp(of[i]) for of in fit.left_out)
            shape = shape_of[row["cpu"]]
            self.unseen.append(self.estimate(row, idle, full, shape))
            self.line.append(self.estimate(row, idle, full, [load / 10 for load in range(1, 10)]))
            others = [j for j in fit.groups[row["cpu"]] if j != i]
            if others:
                own = []
                for of, level, kappa in zip(fit.left_out, (0, 10), kappas):
                    mean = sum(math.log(rows[j]["watts"][level]) - of[j] for j in others) / len(others)
                    own.append(math.exp(of[i] + mean * len(others) / (len(others) + kappa)))
                self.known.append((i, self.estimate(row, *own, shape)))
            threads = row["threads"]
            of_thread = [watts * threads for watts in BEFORE.get(row["gen"], BEFORE_UNKNOWN)]
            self.before.append(self.estimate(row, *of_thread, [load / 10 for load in range(1, 10)]))
        self.add_guests(shape_of)

    def shapes_without(self):
        out = {}
        for cpu in self.fit.groups:
            rest = [row for row in self.rows if row["cpu"] != cpu]
            by_gen, modern = shapes(rest)
            out[cpu] = by_gen.get(self.rows[self.fit.groups[cpu][0]]["gen"], modern)
        return out

    @staticmethod
    def estimate(row, idle, full, shape):
        levels = same_levels(curve(idle, full, shape), row)
        truth = known_levels(row)
        return ((idle, truth[0]), (full, truth[-1]), (energy(levels), energy(truth)))

    def add_guests(self, shape_of):
        """Power of a thread of the generation's usual server in place of the row's own."""
        for cpu, members in self.fit.groups.items():
            rest = [row for row in self.rows if row["cpu"] != cpu]
            for i in members:
                row = self.rows[i]
                host = typical(rest, row["gen"]) or (2, 32, 64, 2)
                chips, cores, mem, smt = host
                other = dict(row, chips=chips, cores=chips * cores, threads=chips * cores * smt, memc=mem)
                # The difference of the two sizes is taken from the whole fit; the row's own
                # CPU model is in no other part of it.
                change = [a - b for a, b in zip(self.fit.predict(self.fit.sparse(other)),
                                                self.fit.predict(self.fit.sparse(row)))]
                share = row["threads"] / other["threads"]
                idle, full = (math.exp(of[i] + by) * share for of, by in zip(self.fit.left_out, change))
                self.guest.append(self.estimate(row, idle, full, shape_of[cpu]))


def interval(estimates, part=0.9):
    """Parts per thousand of (idle, full, energy) between which the truth lies."""
    out = []
    for at in range(3):
        errors = relative([estimate[at] for estimate in estimates])
        out.append((quantile(errors, (1 - part) / 2), quantile(errors, (1 + part) / 2)))
    return out


def coverage(estimates, cpus, part=0.9):
    """Part of the energies within the interval of the other CPU models."""
    by_cpu = collections.defaultdict(list)
    for cpu, estimate in zip(cpus, estimates):
        by_cpu[cpu].append(relative([estimate[2]])[0])
    inside = total = 0
    for cpu, own in by_cpu.items():
        rest = [error for other, errors in by_cpu.items() if other != cpu for error in errors]
        low, high = quantile(rest, (1 - part) / 2), quantile(rest, (1 + part) / 2)
        inside += sum(low <= error <= high for error in own)
        total += len(own)
    return inside / total


def fmt_errors(estimates, at):
    errors = errors_of([estimate[at] for estimate in estimates])
    return f"{100 * quantile(errors, 0.5):.1f} / {100 * quantile(errors, 0.95):.0f}"


def print_check(validation):
    rows = validation.rows
    cpus = [row["cpu"] for row in rows]
    modern = [i for i, row in enumerate(rows) if row["year"] >= 2017]
    print(f"{len(rows)} servers, {len(set(cpus))} CPU models; |error| in %, median / 95th percentile\n")
    print("| estimate | servers | idle | full load | energy | energy, 2017 and later | covered by 90 % interval |")
    print("|---|---|---|---|---|---|---|")
    known_rows = [i for i, _ in validation.known]
    tables = [
        ("before: watts of a thread by generation, a line", validation.before, range(len(rows))),
        ("regression, CPU model left out, a line", validation.line, range(len(rows))),
        ("regression, CPU model left out, the curve", validation.unseen, range(len(rows))),
        ("guest: a share of the generation's usual server, CPU model left out", validation.guest, None),
        ("CPU model in the table, server left out", [e for _, e in validation.known], known_rows),
    ]
    guest_rows = [i for members in validation.fit.groups.values() for i in members]
    for name, estimates, at in tables:
        at = guest_rows if at is None else list(at)
        new = [estimate for i, estimate in zip(at, estimates) if i in set(modern)]
        covered = coverage(estimates, [cpus[i] for i in at])
        print(f"| {name} | {len(estimates)} | {fmt_errors(estimates, 0)} | {fmt_errors(estimates, 1)} | "
              f"{fmt_errors(estimates, 2)} | {fmt_errors(new, 2)} | {100 * covered:.1f} % |")
    curves = [i for i, row in enumerate(rows) if None not in row["watts"]]
    for name, estimates in (("a line", validation.line), ("the curve", validation.unseen)):
        some = [estimates[i] for i in curves]
        print(f"\nenergy of the {len(curves)} servers with all levels, {name}: {fmt_errors(some, 2)}")


def thousandths(value):
    return round(value * 1000)


def table(fit, validation):
    """The Rust source of the parameters."""
    effects, _ = known_effects(fit, [[fit.predict(x)[level] for x in fit.x] for level in (0, 1)])
    by_gen, modern = shapes(fit.rows)
    tenk = lambda value: round(value * 10_000)
    lines = [
        "//! Parameters of the power model of a server. Generated by `scripts/fit_model.py` from SPECpower",
        "//! results, which names its sources; change that and not this file.",
        "//!",
        f"//! {len(fit.rows)} servers with {len(fit.groups)} CPU models. Coefficients are ten-thousandths of a",
        "//! natural logarithm of watts; see `server.rs` for the formula.",
        "",
        "use super::interval::Interval;",
        "",
        "/// A processor generation.",
        "#[derive(Clone, Copy, Debug)]",
        "pub(super) struct Generation {",
        "    pub name: &'static str,",
        "    /// Year of its servers.",
        "    pub year: u16,",
        "    /// Effect on idle power and on full power, in ten-thousandths.",
        "    pub effects: [i32; 2],",
        "    /// Its usual server: chips, cores of a chip, gigabytes of a chip, threads of a core.",
        "    pub usual: [u32; 4],",
        "    /// Thousandths of the dynamic power at 10, 20, ... 90 % load.",
        "    pub shape: [u32; 9],",
        "}",
        "",
        "/// Effect of a CPU model on idle and full power, in ten-thousandths.",
        "#[derive(Clone, Copy, Debug)]",
        "pub(super) struct Known {",
        "    pub generation: &'static str,",
        "    /// Words of the processor's name, in lower case.",
        "    pub name: &'static str,",
        "    pub effects: [i32; 2],",
        "}",
        "",
        "/// Coefficients of the features, for idle and for full power.",
        "#[rustfmt::skip]",
        f"pub(super) const COEFFICIENTS: [[i32; {FEATURES}]; 2] = [",
    ]
    for of in fit.coefficients:
        lines.append("    [" + ", ".join(str(tenk(value)) for value in of[:FEATURES]) + "],")
    lines.append("];\n")
    cases = [("UNSEEN", "A server whose CPU model is not in the table", validation.unseen),
             ("KNOWN_MODEL", "A server whose CPU model is in the table", [e for _, e in validation.known]),
             ("GUEST", "A guest's share of an unknown server", validation.guest)]
    for name, text, estimates in cases:
        limits = interval(estimates)
        fields = ", ".join(f"{key}: [{thousandths(low)}, {thousandths(high)}]"
                           for key, (low, high) in zip(("idle", "full", "energy"), limits))
        lines += [f"/// {text}.", "#[rustfmt::skip]", f"pub(super) const {name}: Interval = Interval {{ {fields} }};", ""]
    lines += ["/// The generations by age, and last what is assumed for one that is not among them.",
              "#[rustfmt::skip]"]
    entries = []
    for gen in sorted(fit.gens, key=lambda gen: (fit.years[gen], gen)):
        chips, cores, mem, smt = typical(fit.rows, gen)
        at = fit.index[gen]
        entries.append((gen, fit.years[gen], [tenk(of[at]) for of in fit.coefficients],
                        [chips, cores, round(mem), smt], by_gen.get(gen, modern)))
    arm = [entry for entry in entries if entry[0] in ("neoverse-n1", "neoverse-v2")]
    if arm:
        # No server of this generation is published: it is between its neighbours. 64 cores: Graviton 3.
        between = [round(sum(entry[2][level] for entry in arm) / len(arm)) for level in (0, 1)]
        entries.append(("neoverse-v1", 2022, between, [1, 64, 128, 1], modern))
    # A generation that is not in the table: no effect of its own, and the size of recent servers.
    recent = max(fit.years.values()) - 1
    usual = [[row["gen"], *host] for row in fit.rows if row["year"] >= recent - 3
             and (host := typical(fit.rows, row["gen"]))]
    size = [middle([row[at] for row in usual]) for at in (1, 2, 3, 4)] if usual else [2, 32, 64, 2]
    entries.append((None, recent, [0, 0], [size[0], size[1], round(size[2]), size[3]], modern))
    lines.append(f"pub(super) static GENERATIONS: [Generation; {len(entries)}] = [")
    for gen, year, both, usual, shape in entries:
        name = GENERATIONS.get(gen, "an unknown generation")
        lines.append(f'    Generation {{ name: "{name}", year: {year}, effects: {both}, usual: {usual}, '
                     f"shape: {[thousandths(part) for part in shape]} }},")
    lines.append("];\n")
    known = [(GENERATIONS[fit.rows[of[0]]["gen"]], cpu, effects[cpu]) for cpu, of in sorted(fit.groups.items())]
    known = sorted((gen, words, both) for gen, cpu, both in known if (words := table_name(cpu)))
    lines += ["/// The CPU models.", "#[rustfmt::skip]", f"pub(super) static KNOWN: [Known; {len(known)}] = ["]
    for gen, words, both in known:
        effect = [tenk(value) for value in both]
        lines.append(f'    Known {{ generation: "{gen}", name: "{words}", effects: {effect} }},')
    lines.append("];\n")
    return "\n".join(lines)


def table_name(cpu):
    """The words of a name that identify the CPU model within its generation."""
    match = re.search(r"\b([a-z]{0,3}-?[a-z]?\d[\w-]*\+?(?: v\d| he| ee)?)$", cpu)
    return match.group(1) if match else None


def test_on(fit, validation, rows):
    """Prints the error on rows of another directory, by whether their CPU model was fitted."""
    by_gen, modern = shapes(fit.rows)
    effects, _ = known_effects(fit, [[fit.predict(x)[level] for x in fit.x] for level in (0, 1)])
    limits = {False: interval(validation.unseen)[2], True: interval([e for _, e in validation.known])[2]}
    for seen in (False, True):
        some = [row for row in rows if (row["cpu"] in fit.groups) == seen]
        if not some:
            continue
        estimates = []
        for row in some:
            own = effects.get(row["cpu"], (0, 0))
            idle, full = (math.exp(p + by) for p, by in zip(fit.predict(fit.sparse(row)), own))
            estimates.append(Validation.estimate(row, idle, full, by_gen.get(row["gen"], modern)))
        low, high = limits[seen]
        inside = sum(low <= error <= high for error in relative([e[2] for e in estimates])) / len(estimates)
        print(f"{len(some)} servers, CPU model {'in' if seen else 'not in'} the table: "
              f"idle {fmt_errors(estimates, 0)}, full {fmt_errors(estimates, 1)}, energy {fmt_errors(estimates, 2)} %; "
              f"90 % interval covers {100 * inside:.1f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--test", metavar="DIR")
    parser.add_argument("--out", default=OUT, metavar="FILE")
    args = parser.parse_args()
    rows = read_data(args.data)
    fill(rows)
    fit = Fit(rows)
    validation = Validation(fit)
    if args.test:
        others = read_data(args.test)
        fill(others, {row["gen"]: row["memc"] for row in rows})
        test_on(fit, validation, others)
    elif args.check:
        print_check(validation)
    else:
        with open(args.out, "w", encoding="utf-8") as file:
            file.write(table(fit, validation))


if __name__ == "__main__":
    main()
