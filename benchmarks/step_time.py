"""Seconds and peak memory of one private step against plain SGD and Opacus, on the same network and batch.

    python -m benchmarks.step_time                        # every row of the default plan
    python -m benchmarks.step_time rows=resnet18-64,unet-48 records=1 steps=9 modes=plain,ours
    python -m benchmarks.step_time rows=all minutes=120   # the long rows too
    python -m benchmarks.step_time device=cuda precision=bf16

Every mode computes one logical step of `chunks` chunks: gradients, clipping, noise, update. The modes of a row
take turns, step by step, in one process, so that whatever else the machine does falls on all of them; a step's
noise is drawn within that step's time, beside its network, never in another mode's. The ratio is the median of
the ratios of neighbouring steps; `cpu_ratio` is the same of processor time (all threads, the noise's included),
which a busy machine disturbs less. Peak memory is taken apart, one fresh process a mode: the highest resident
memory above what was resident before the first step (CUDA: the allocator's peak).

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODES = ("plain", "ours", "hooks", "ghost", "functorch")
COLUMNS = (
    "network", "dims", "size", "records_per_patient", "patients", "chunks", "mode", "seconds", "spread", "ratio",
    "cpu_ratio", "noise_seconds", "peak_bytes", "peak_ratio", "note",
)  # fmt: skip


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
        return f"{self.network}-{self.size}"


PLAN = (
    Row("resnet18", 64, 32, chunks=2),
    Row("unet", 48, 8, dims=3),
    Row("densenet121", 64, 32),
    Row("efficientnet_b0", 64, 32),
    Row("segresnet", 48, 8, dims=3),
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
        for mode in names[turn % len(names) :] + names[: turn % len(names)]:
            start, worked = time.perf_counter(), time.process_time()
            steppers[mode].step()
            times[mode].append(time.perf_counter() - start)
            work[mode].append(time.process_time() - worked)
        if turn >= 2 and time.perf_counter() - begun > seconds:
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
            found["ratio"] = statistics.median(a / b for a, b in zip(taken, times["plain"], strict=True))
            found["cpu_ratio"] = statistics.median(a / b for a, b in zip(work[mode], work["plain"], strict=True))
        if mode == "ours" and "ours-quiet" in times:
            found["noise_seconds"] = statistics.median(a - b for a, b in zip(taken, times["ours-quiet"], strict=True))
        yield found


def _child(task: dict[str, Any]) -> None:
    """Runs in a process of its own; prints one JSON line a result."""
    import torch

    torch.set_num_threads(task["threads"])
    row = next(r for r in PLAN if r.name == task["row"])
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


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios of time and of peak memory to plain SGD, one group of bars a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys((r["network"], r["size"], r["records_per_patient"]) for r in rows if r.get("ratio")))
    if not names:
        return
    figure, axes = plt.subplots(2, 1, figsize=(max(6, 1.1 * len(names)), 6.5), sharex=True, layout="constrained")
    shown = [m for m in MODES if m != "plain" and any(r["mode"] == m and r.get("ratio") for r in rows)]
    for axis, key, label in zip(axes, ("ratio", "peak_ratio"), ("time / plain SGD", "peak memory / plain SGD")):
        for k, mode in enumerate(shown):
            values = [
                next(
                    (r.get(key) or 0 for r in rows
                     if (r["network"], r["size"], r["records_per_patient"]) == name and r["mode"] == mode), 0,
                )
                for name in names
            ]  # fmt: skip
            axis.bar([i + (k - len(shown) / 2 + 0.5) * 0.8 / len(shown) for i in range(len(names))], values,
                     0.8 / len(shown), label={"ours": "dptrain"}.get(mode, f"Opacus {mode}"))  # fmt: skip
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_ylabel(label)
    axes[0].legend(frameon=False, ncols=len(shown))
    axes[1].set_xticks(range(len(names)), [f"{n} {s}\n{r} rec." for n, s, r in names], rotation=30, ha="right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: list[str]) -> int:
    """Run the rows asked for; results are written after each row."""
    from benchmarks._results import RESULTS, write

    if argv[:1] == ["child"]:
        _child(json.loads(argv[1]))
        return 0
    words = dict(word.partition("=")[::2] for word in argv)
    rows = words.pop("rows", "default")
    records = [int(r) for r in words.pop("records", "1,4").split(",")]
    modes = words.pop("modes", ",".join(MODES)).split(",")
    steps, threads = int(words.pop("steps", "15")), int(words.pop("threads", "2"))
    minutes, device = float(words.pop("minutes", "40")), words.pop("device", "cpu")
    precision, noise = words.pop("precision", "float32"), words.pop("noise", "cryptographic")
    memory, name = words.pop("memory", "yes") == "yes", words.pop("name", "step_time")
    folder = Path(words.pop("folder", str(RESULTS)))
    if words or set(modes) - set(MODES):
        print(f"unknown: {' '.join(words) or modes}\n{__doc__}", file=sys.stderr)
        return 2
    chosen = [r for r in PLAN if rows == "all" or (rows == "default" and not r.long) or r.name in rows.split(",")]
    tasks = [(row, count) for row in chosen for count in records if rows != "default" or count in row.records]
    results: list[dict[str, Any]] = []
    not_run = [r for r in PLAN if r not in chosen]
    begun = time.monotonic()
    for index, (row, count) in enumerate(tasks):
        left = minutes * 60 - (time.monotonic() - begun)
        facts = {
            "network": row.network, "dims": row.dims, "size": row.size, "records_per_patient": count,
            "patients": max(1, row.images // count), "chunks": row.chunks, "precision": precision, "device": device,
        }  # fmt: skip
        if left < 30:
            results += [{**facts, "mode": mode, "note": "not run: the time was up"} for mode in modes]
            continue
        share = left / (len(tasks) - index)
        task = {
            "row": row.name, "records": count, "device": device, "precision": precision, "noise": noise,
            "threads": threads, "steps": steps, "modes": modes, "seconds": share * 0.3, "what": "time",
        }  # fmt: skip
        found, reason = _run(task, max(60.0, left))
        found = found or [{"mode": mode, "note": reason} for mode in modes]
        for one in found:
            if memory and "seconds" in one:
                more, why = _run({**task, "what": "memory", "mode": one["mode"]}, max(60.0, left))
                one.update(more[0] if more else {"note": why})
        plain = next((one.get("peak_bytes") for one in found if one["mode"] == "plain"), None)
        for one in found:
            if plain and one.get("peak_bytes"):
                one["peak_ratio"] = one["peak_bytes"] / plain
            results.append({**facts, **one})
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in results[-1].items()}, flush=True)
        notes = (__doc__ or "").split("\n\n", 2)[2] + _missing(not_run)
        write(
            name, results, command=f"python -m benchmarks.step_time {' '.join(argv)}".strip(), notes=notes,
            table_columns=COLUMNS, title="Step time and peak memory against plain SGD", folder=folder,
        )  # fmt: skip
        plot(results, folder / f"{name}.png")
    return 0


def _missing(rows: list[Row]) -> str:
    return "" if not rows else f"\nNot run: {', '.join(r.name for r in rows)}."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
