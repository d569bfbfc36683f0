"""Seconds and peak memory of one private step against plain SGD and Opacus, on the same network and batch.

    python -m benchmarks.step_time                        # every row of the default plan
    python -m benchmarks.step_time rows=resnet18-64,unet-48 records=1 steps=9 modes=plain,ours
    python -m benchmarks.step_time rows=all minutes=120   # the long rows too
    python -m benchmarks.step_time what=memory            # peak memory alone, kept beside the times of before
    python -m benchmarks.step_time what=table             # nothing measured: table and plot of what is there
    python -m benchmarks.step_time device=cuda precision=bf16 scale=64 name=step_time_cuda   # 64 times the images

Every mode computes one logical step of `chunks` chunks: gradients, clipping, noise, update. The modes of a row take
turns, step by step, in one process, so that whatever else the machine does falls on all of them; a step's noise is
drawn within that step's time, beside its network, never in another mode's. The ratio is the median of the ratios of
neighbouring steps, those of plain SGD in the row's own run (`plain_seconds` in the JSON), and empty where that run
had none: rows of other commits had other plain steps than the plain row here. `cpu_ratio` is the same of processor
time (all threads, the noise's included), which a busy machine disturbs less. Peak memory is taken apart, in fresh
processes: the highest resident memory of the third step above what was resident before the first (CUDA: the
allocator's peak). What stays resident between tensors differs from process to process by tenths, so that
`peak_bytes` is the median of three processes of each mode (one of Opacus's), and `peak_spread` their range over it;
`peak_ratio` is against the plain row here. `commit` is that of a row's times, `peak_commit` that of its memory (for
rows of before 27 November 2026 that of the first table that held the figure).

Batch norm is group norm for all modes. Opacus cannot run in-place additions under its hooks, so that stock
Opacus fails on most MONAI networks; to have its times at all, its modes run with in-place operations turned
into ordinary ones. Opacus knows records, not patients: with four records a patient it clips each record.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MODES = ("plain", "ours", "hooks", "ghost", "functorch")
COLUMNS = (
    "network", "dims", "size", "records_per_patient", "patients", "chunks", "mode", "seconds", "spread", "ratio",
    "cpu_ratio", "noise_seconds", "peak_bytes", "peak_spread", "peak_ratio", "steps", "commit",
    "peak_commit", "note",
)  # fmt: skip
# What belongs to the run that a row was timed in, and goes when it is timed again.
TIMED = (
    "seconds", "spread", "steps", "ratio", "cpu_ratio", "plain_seconds", "noise_seconds", "note", "date", "commit",
)  # fmt: skip
SLOW_STEPS = 3  # of Opacus's modes; the others go on, their own ratios need no slow neighbours
GOALS = {2: 1.3, 3: 1.5}
CUDA_GOAL = 1.2  # in bf16, at batches that fill the card
MEMORY_GOAL = 1.3


@dataclass(frozen=True)
class Row:
    """One network at one size: `images` a chunk, `chunks` a logical step, with each number of `records` a patient."""

    network: str
    size: int
    images: int
    chunks: int = 1
    dims: int = 2
    records: tuple[int, ...] = (1, 4)
    long: bool = False

    @property
    def name(self) -> str:
        return f"{self.network}-{self.size}" + (f"x{self.chunks}" if self.chunks > 1 else "")


PLAN = (
    Row("resnet18", 64, 32, records=(1, 4, 16)),
    Row("unet", 48, 8, dims=3),
    Row("densenet121", 64, 32),
    Row("efficientnet_b0", 64, 32),
    Row("segresnet", 48, 8, dims=3),
    Row("resnet18", 64, 32, chunks=4, records=(1,)),
    Row("densenet121", 64, 32, chunks=4, records=(1,)),
    Row("efficientnet_b0", 64, 32, chunks=4, records=(1,)),
    Row("resnet18", 128, 16, records=(1,)),
    Row("resnet18", 224, 8, records=(1,)),
    Row("densenet121", 128, 16, long=True),
    Row("densenet121", 224, 8, long=True),
    Row("efficientnet_b0", 128, 16, long=True),
    Row("efficientnet_b0", 224, 8, long=True),
    Row("unet", 96, 4, dims=3, long=True),
    Row("segresnet", 96, 4, dims=3, long=True),
)


def build(row: Row) -> Any:
    """The row's network, group norm for batch norm."""
    import torch
    from monai.networks import nets

    torch.manual_seed(0)
    group = ("group", {"num_groups": 8})
    if row.network == "resnet18":
        from dptrain.models import make_private

        network: Any = nets.resnet18(spatial_dims=2, n_input_channels=1, num_classes=2)
        network = make_private(network, batchnorm="replace")[0]
    elif row.network == "densenet121":
        network = nets.DenseNet121(2, 1, 2, norm=group)
    elif row.network == "efficientnet_b0":
        network = nets.EfficientNetBN(
            "efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=1, num_classes=2, norm=group
        )
    elif row.network == "unet":
        network = nets.UNet(3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2)
    elif row.network == "segresnet":
        network = nets.SegResNet(3, 16, 1, 2)
    else:
        raise SystemExit(f"there is no network {row.network}")
    return network.train()


def batches(row: Row, records: int, device: str) -> tuple[Any, Any, Any]:
    """Images [N, 1, …], labels and the patients' numbers [N] of one chunk; R records of a patient side by side."""
    import torch

    torch.manual_seed(1)
    people = max(1, row.images // records)
    image = torch.randn(people * records, 1, *[row.size] * row.dims, device=device)
    label = torch.randint(0, 2, (people * records, *([row.size] * 3 if row.dims == 3 else [])), device=device)
    return image, label, torch.arange(people).repeat_interleave(records)


class Stepper:
    """One mode: a network, an optimiser and a call that makes one logical step."""

    def __init__(self, row: Row, records: int, mode: str, device: str, precision: str, noise: str) -> None:
        import torch
        import torch.nn.functional as F

        self.torch, self.mode, self.row, self.device = torch, mode, row, device
        self.precision = precision
        self.image, self.label, self.patient = batches(row, records, device)
        self.people = int(self.patient.max()) + 1
        self.network = build(row).to(device)
        base = torch.optim.SGD(self.network.parameters(), lr=1e-3)
        expected = self.people * row.chunks

        def losses(output: Any, label: Any) -> Any:
            value = F.cross_entropy(output.float(), label, reduction="none")
            return value.flatten(1).mean(1) if value.dim() > 1 else value

        self.losses = losses
        if mode == "plain":
            self.optimizer: Any = base
        elif mode in ("ours", "ours-quiet"):
            from dptrain.engine import NoiseSource, PatientGradients, PatientOptimizer

            self.engine = PatientGradients(self.network, max_grad_norm=1.0)
            self.noise = NoiseSource(noise, ahead=False)
            self.count = sum(p.numel() for p in self.network.parameters())
            self.optimizer = PatientOptimizer(
                base, noise_multiplier=0.0 if mode == "ours-quiet" else 1.0, max_grad_norm=1.0,
                expected_batch_size=expected, noise=self.noise,
            )  # fmt: skip
        else:
            self._opacus(base, expected * records)

    def _opacus(self, base: Any, expected: int) -> None:
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping

        for module in self.network.modules():
            if getattr(module, "inplace", None) is True:
                module.inplace = False
        options: dict[str, Any] = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": expected}
        if self.mode == "ghost":
            from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

            wrapped = GradSampleModuleFastGradientClipping(
                self.network, max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="mean"
            )
            self.optimizer = DPOptimizerFastGradientClipping(base, **options)
            per_record = self.losses

            class Criterion:
                reduction = "mean"

                def __call__(self, output: Any, label: Any, **_: Any) -> Any:
                    return per_record(output, label)

            self.criterion = DPLossFastGradientClipping(wrapped, self.optimizer, Criterion(), "mean")
        else:
            wrapped = GradSampleModule(self.network, force_functorch=self.mode == "functorch", loss_reduction="mean")
            self.optimizer = DPOptimizer(base, **options)
        self.network = wrapped

    def _context(self) -> Any:
        kind = self.torch.bfloat16
        return self.torch.autocast(self.device, kind) if self.precision == "bf16" else contextlib.nullcontext()

    def step(self) -> None:
        """One logical step."""
        chunks = self.row.chunks
        if self.mode == "plain":
            self.optimizer.zero_grad()
            for _ in range(chunks):
                with self._context():
                    output = self.network(self.image)
                (self.losses(output, self.label).sum() / (chunks * len(self.image))).backward()
            self.optimizer.step()
        elif self.mode in ("ours", "ours-quiet"):
            self.optimizer.zero_grad()
            if self.mode == "ours":
                self.noise.prepare(self.count)  # in training this begins at the end of the step before
            for _ in range(chunks):
                with self._context():
                    output = self.network(self.image)
                self.optimizer.accumulate(
                    self.engine.clipped_sum(self.losses(output, self.label), self.patient, self.people)
                )
            self.optimizer.step()
        else:
            for i in range(chunks):
                self.optimizer.signal_skip_step(i < chunks - 1)
                with _no_inplace(), self._context():
                    output = self.network(self.image)
                if self.mode == "ghost":
                    self.criterion(output, self.label).backward()
                else:
                    self.losses(output, self.label).mean().backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def _no_inplace() -> Any:
    """In-place additions become ordinary ones (Opacus's hooks forbid them)."""
    import torch
    from torch.overrides import TorchFunctionMode

    ordinary = {torch.Tensor.__iadd__: torch.add, torch.Tensor.add_: torch.add, torch.Tensor.__imul__: torch.mul}

    class OutOfPlace(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return ordinary.get(func, func)(*args, **(kwargs or {}))

    return OutOfPlace()


def _resident(peak: bool) -> int:
    """Bytes of this process now, or at most since the mark was cleared."""
    key = "VmHWM" if peak else "VmRSS"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def measure_memory(row: Row, records: int, mode: str, device: str, precision: str, noise: str) -> dict[str, Any]:
    """In a fresh process: warm up, clear the mark, take a step, read the peak above the empty process."""
    import monai.networks.nets
    import opacus
    import torch

    import dptrain.engine
    import dptrain.models

    loaded = monai.networks.nets, opacus, dptrain.engine, dptrain.models  # every mode starts with all libraries
    empty = _resident(False) if loaded else 0
    stepper = Stepper(row, records, mode, device, precision, noise)
    for _ in range(2 if mode in ("plain", "ours") else 1):
        stepper.step()
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        stepper.step()
        return {"peak_bytes": torch.cuda.max_memory_allocated()}
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    stepper.step()
    return {"peak_bytes": _resident(True) - empty}


def measure_time(
    row: Row, records: int, modes: list[str], steps: int, device: str, precision: str, noise: str, seconds: float
) -> Iterator[dict[str, Any]]:
    """Interleaved steps of all modes that run; a mode that fails says why."""
    steppers: dict[str, Stepper] = {}
    failed: dict[str, str] = {}
    order = [m for m in (*modes, *(["ours-quiet"] if "ours" in modes else [])) if m]
    for mode in order:
        try:
            stepper = Stepper(row, records, mode, device, precision, noise)
            for _ in range(2 if mode in ("plain", "ours", "ours-quiet") else 1):
                stepper.step()
            steppers[mode] = stepper
        except Exception as error:
            failed[mode] = f"fails: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
    times: dict[str, list[float]] = {mode: [] for mode in steppers}
    work: dict[str, list[float]] = {mode: [] for mode in steppers}
    begun = time.perf_counter()
    names = list(steppers)
    for turn in range(steps if names else 0):
        if turn == SLOW_STEPS:
            names = [mode for mode in names if mode in ("plain", "ours", "ours-quiet")]
        for mode in names[turn % len(names) :] + names[: turn % len(names)]:
            start, worked = time.perf_counter(), time.process_time()
            steppers[mode].step()
            times[mode].append(time.perf_counter() - start)
            work[mode].append(time.process_time() - worked)
        if turn >= SLOW_STEPS - 1 and time.perf_counter() - begun > seconds:
            break
    for mode in modes:
        if mode in failed:
            yield {"mode": mode, "note": failed[mode]}
            continue
        taken = times[mode]
        found: dict[str, Any] = {
            "mode": mode,
            "seconds": statistics.median(taken),
            "spread": (max(taken) - min(taken)) / statistics.median(taken),
            "steps": len(taken),
        }
        if "plain" in times:
            found["plain_seconds"] = statistics.median(times["plain"][: len(taken)])
            found["ratio"] = statistics.median(a / b for a, b in zip(taken, times["plain"], strict=False))
            found["cpu_ratio"] = statistics.median(a / b for a, b in zip(work[mode], work["plain"], strict=False))
        if mode == "ours" and "ours-quiet" in times:
            found["noise_seconds"] = statistics.median(a - b for a, b in zip(taken, times["ours-quiet"], strict=True))
        yield found


def _child(task: dict[str, Any]) -> None:
    """Runs in a process of its own; prints one JSON line a result."""
    import torch

    torch.set_num_threads(task["threads"])
    row = next(r for r in PLAN if r.name == task["row"])
    row = replace(row, images=row.images * task["scale"])
    settings = (task["device"], task["precision"], task["noise"])
    if task["what"] == "memory":
        print(json.dumps(measure_memory(row, task["records"], task["mode"], *settings)), flush=True)
        return
    arguments = (row, task["records"], task["modes"], task["steps"], *settings, task["seconds"])
    for found in measure_time(*arguments):
        print(json.dumps(found), flush=True)


def _run(task: dict[str, Any], limit: float) -> tuple[list[dict[str, Any]], str]:
    threads = {
        "OMP_NUM_THREADS": str(task["threads"]),
        "MKL_NUM_THREADS": str(task["threads"]),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.step_time", "child", json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=os.environ | threads)
    except subprocess.TimeoutExpired:
        return [], f"not finished within {limit:.0f} s"
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["ended"])[-1][:160]
    return found, reason


def _peak(task: dict[str, Any], limit: float) -> dict[str, Any]:
    """The median peak of several processes, since one is one sample of what its C library holds back."""
    peaks: list[int] = []
    for _ in range(3 if task["mode"] in ("plain", "ours") and task["device"] == "cpu" else 1):
        found, reason = _run(task, limit)
        if not found:
            return {"note": reason}
        peaks.append(found[0]["peak_bytes"])
    middle = statistics.median(peaks)
    return {"peak_bytes": middle, "peak_spread": (max(peaks) - min(peaks)) / middle}


def timed(row: dict[str, Any], found: dict[str, Any], made: dict[str, str]) -> None:
    """The row takes over what was timed now and keeps nothing of an earlier run: no ratio to that run's plain steps.

    A run without an answer (`found` has no time) leaves earlier times as they are.
    """
    if "seconds" in row and "seconds" not in found and not found["note"].startswith("fails"):
        return
    for key in TIMED:
        row.pop(key, None)
    row.update(found, **made)


def peak_ratios(rows: list[dict[str, Any]]) -> None:
    """Every row's peak over that of the plain row as it is now, whichever of the two was measured last."""
    plain = {_key(row): row.get("peak_bytes") for row in rows if row["mode"] == "plain"}
    for row in rows:
        below = plain.get(_key({**row, "mode": "plain"}))
        if below and row.get("peak_bytes"):
            row["peak_ratio"] = row["peak_bytes"] / below
        else:
            row.pop("peak_ratio", None)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios of time and of peak memory to plain SGD, one group of bars a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for r in rows:
        if r.get("ratio"):
            groups.setdefault(_label(r), {})[r["mode"]] = r
    if not groups:
        return
    shown = [m for m in MODES if m != "plain" and any(m in group for group in groups.values())]
    figure, axes = plt.subplots(2, 1, figsize=(max(6, 0.5 * len(groups)), 7), sharex=True, layout="constrained")
    for axis, key, label in zip(axes, ("ratio", "peak_ratio"), ("time / plain SGD", "peak memory / plain SGD")):
        for k, mode in enumerate(shown):
            values = [(group.get(mode) or {}).get(key) or float("nan") for group in groups.values()]
            places = [i + (k - len(shown) / 2 + 0.5) * 0.8 / len(shown) for i in range(len(groups))]
            bars = axis.bar(places, values, 0.8 / len(shown), label={"ours": "dptrain"}.get(mode, f"Opacus {mode}"))
            if mode == "ours":
                axis.bar_label(bars, [f"{v:.2f}" for v in values], fontsize=6, padding=1)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_yscale("log")
        axis.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axis.minorticks_off()
        axis.set_ylabel(label)
    axes[0].legend(frameon=False, ncols=len(shown), loc="lower left", bbox_to_anchor=(0, 1))
    axes[1].set_xticks(range(len(groups)), list(groups), rotation=40, ha="right", rotation_mode="anchor")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _label(row: dict[str, Any]) -> str:
    chunks = f" ×{row['chunks']}" if row["chunks"] > 1 else ""
    size = f"{row['size']}{'³' if row['dims'] == 3 else ''}"
    return f"{row['network']} {size}{chunks}, {row['patients']}·{row['records_per_patient']}"


def verdict(rows: list[dict[str, Any]]) -> str:
    """Which goals the rows miss: time, memory, and being ahead of every mode of Opacus."""
    missed: dict[str, list[str]] = {"time": [], "memory": [], "ahead of Opacus": []}
    ours = [r for r in rows if r["mode"] == "ours" and r.get("ratio")]
    for row in ours:
        if row["ratio"] > (CUDA_GOAL if row["device"] == "cuda" else GOALS[row["dims"]]):
            missed["time"].append(f"{_label(row)} {row['ratio']:.2f} (noise {row.get('noise_seconds', 0):.2f} s)")
        if (row.get("peak_ratio") or 0) > MEMORY_GOAL:
            missed["memory"].append(f"{_label(row)} {row['peak_ratio']:.2f}")
        others = [r["ratio"] for r in rows if _label(r) == _label(row) and r["mode"] not in ("ours", "plain")
                  and r.get("ratio")]  # fmt: skip
        if others and min(others) <= row["ratio"]:
            missed["ahead of Opacus"].append(f"{_label(row)} {row['ratio']:.2f} against {min(others):.2f}")
    lines = [f"{what}: {', '.join(names) or 'none'}" for what, names in missed.items()]
    goals = "time 1.3 in 2-D, 1.5 in 3-D, 1.2 on CUDA; memory 1.3; a row's name ends with patients · records of each"
    return f"Of {len(ours)} rows these miss the goals ({goals}). " + "; ".join(lines)


def publish(
    rows: list[dict[str, Any]], command: str, folder: Path, name: str, head: dict[str, str] | None = None
) -> None:
    """Write rows, table and plot; `head` is the origin of rows that were measured earlier."""
    from benchmarks._results import write

    results = [row for row in rows if row.keys() & {"seconds", "peak_bytes", "note"}]
    peak_ratios(results)
    place = {network: number for number, network in enumerate(dict.fromkeys(row.network for row in PLAN))}
    results.sort(key=lambda r: (place[r["network"]], r["size"], r["chunks"], *_batch(r), MODES.index(r["mode"])))
    measured = {(r["network"], r["size"], r["chunks"]) for r in results if r.get("seconds")}
    missing = [r.name for r in PLAN if (r.network, r.size, r.chunks) not in measured]
    notes = [(__doc__ or "").split("\n\n", 2)[2], verdict(results)]
    notes += ["A mode of Opacus without a row was not run, or did not end in the time that its row had."]
    notes += [f"Not run: {', '.join(missing)}."] if missing else []
    write(
        name, results, command=command, notes="\n\n".join(notes), table_columns=COLUMNS, folder=folder, head=head,
        title="Step time and peak memory against plain SGD",
    )  # fmt: skip
    plot(results, folder / f"{name}.png")


def main(argv: list[str]) -> int:
    """Run the rows asked for; results are written after each row."""
    from benchmarks._results import RESULTS, command_of, joined, stamp

    if argv[:1] == ["child"]:
        _child(json.loads(argv[1]))
        return 0
    words = dict(word.partition("=")[::2] for word in argv)
    rows = words.pop("rows", "default")
    records = [int(r) for r in words.pop("records").split(",")] if "records" in words else None
    modes = words.pop("modes", ",".join(MODES)).split(",")
    steps, threads = int(words.pop("steps", "15")), int(words.pop("threads", "2"))
    minutes, device = float(words.pop("minutes", "60")), words.pop("device", "cpu")
    precision, noise = words.pop("precision", "float32"), words.pop("noise", "cryptographic")
    what, name = words.pop("what", "time,memory").split(","), words.pop("name", "step_time")
    scale = int(words.pop("scale", "1"))
    folder = Path(words.pop("folder", str(RESULTS)))
    if words or set(modes) - set(MODES) or set(what) - {"time", "memory", "table"}:
        print(f"unknown: {' '.join(words) or f'{modes} {what}'}\n{__doc__}", file=sys.stderr)
        return 2
    chosen = [r for r in PLAN if rows == "all" or (rows == "default" and not r.long) or r.name in rows.split(",")]
    tasks = [(row, count) for row in chosen for count in row.records if records is None or count in records]
    path = folder / f"{name}.json"
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    command = command_of("step_time", argv)
    if path.exists():
        known = json.loads(path.read_text())
        table = {_key(row): row for row in known["rows"]}
        if what == ["table"]:
            publish(known["rows"], "", folder, name, known["meta"])
            return 0
        command = joined(known["meta"]["command"], command)
    begun = time.monotonic()
    for index, (row, count) in enumerate(tasks):
        left = minutes * 60 - (time.monotonic() - begun)
        facts = {
            "network": row.network, "dims": row.dims, "size": row.size, "records_per_patient": count,
            "patients": max(1, row.images * scale // count), "chunks": row.chunks, "precision": precision,
            "device": device,
        }  # fmt: skip
        if left < 30:
            continue
        found = {mode: table.setdefault(_key({**facts, "mode": mode}), {**facts, "mode": mode}) for mode in modes}
        task = {
            "row": row.name, "scale": scale, "records": count, "device": device, "precision": precision,
            "noise": noise, "threads": threads, "steps": steps, "modes": modes, "what": "time",
            "seconds": left / (len(tasks) - index) * (0.3 if len(what) > 1 else 0.6),
        }  # fmt: skip
        if "time" in what:
            made = stamp()
            answers, reason = _run(task, max(60.0, left))
            for one in answers or [{"mode": mode, "note": reason} for mode in modes]:
                timed(found[one["mode"]], one, made)
        for mode in modes if "memory" in what else ():
            if "fails" not in found[mode].get("note", ""):
                made = {f"peak_{key}": value for key, value in stamp().items()}
                peak = _peak({**task, "what": "memory", "mode": mode}, max(60.0, left))
                found[mode].update(peak, **(made if "peak_bytes" in peak else {}))
        publish(list(table.values()), command, folder, name)
        for mode, one in found.items():
            print(row.name, count, mode, {k: round(v, 3) for k, v in one.items() if isinstance(v, float)}, flush=True)
    return 0


def _batch(row: dict[str, Any]) -> tuple[int, int]:
    return row["records_per_patient"], row["patients"]


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return *(row[k] for k in ("network", "size", "chunks", "precision", "device", "mode")), *_batch(row)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
