"""Is every patient's gradient right, on every network of MONAI?

The truth is autograd: each patient's records alone through the network, mean loss, gradient. Beside it, in
one batch of ragged patients (1, 2 and 3 records, rows interleaved) and under one fixed draw of dropout and
stochastic depth:

engine        each patient's gradient (the others' losses weighted by zero), all patients' norms, the clipped
              sum of all at a bound that clips everybody, and one private step with noise
opacus hooks  per-record gradients of stock Opacus after `ModuleValidator.fix`, averaged within patients
opacus ghost  its clipped sum in ghost mode; it knows no patients, so records are compared

A row passes (`ok`) when the step completes and `max_rel_error` (float64, Euclidean norm over all
parameters, largest over patients and clipped sum) is at most 1e-9, and `float32_error` at most the larger
of 1e-5 and three times the gap that autograd itself shows between a patient alone and in the batch.

    python -m benchmarks.coverage [--only NAME] [--modes engine,…] [--dims 2] [--folder …] [--resume]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._networks import Entry, entries
from benchmarks._results import RESULTS, command_of, joined, stamp, write
from dptrain.models import FixedDraws, make_private

MODES = ("engine", "opacus hooks", "opacus ghost")
COLUMNS = (
    "network", "dims", "mode", "way", "ok", "max_rel_error", "float32_error", "float32_limit", "seconds", "commit",
    "reason",
)  # fmt: skip
PATIENT = (2, 1, 0, 2, 1, 2)  # the patient of each row of the batch: patient 0 has one record, 1 two, 2 three
PATIENTS = 3
LIMIT64 = 1e-9
LIMIT32 = 1e-5
TIME_LIMIT = 600.0

Loss = Callable[[nn.Module, Tensor, Sequence[int]], Tensor]


# ------------------------------------------------------------------------------------------ the truth


def first(output: Any) -> Tensor:
    """The output that is trained on: the first tensor of tuples, lists and tables."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def images(entry: Entry) -> Tensor:
    """Made-up records [N, *shape] in float64, one for each entry of PATIENT."""
    return torch.rand((len(PATIENT), *entry.shape), generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def losses(net: nn.Module, image: Tensor, records: Sequence[int]) -> Tensor:
    """Per-record loss [N]: squared distance of the output to a target that belongs to the record."""
    with FixedDraws(records):
        output = first(net(image))

    def target(record: int) -> Tensor:
        generator = torch.Generator().manual_seed(100 + record)
        return torch.randn(output.shape[1:], generator=generator, dtype=torch.float64)

    return (output - torch.stack([target(record) for record in records]).to(output)).square().flatten(1).mean(1)


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def gradient(net: nn.Module, loss: Tensor, *, keep: bool = False) -> Tensor:
    """All parameters' gradients as one vector; `keep` the graph for further losses of the same batch."""
    parameters = trained(net)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=keep)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(parameters, found, strict=True)]
    )


def rows_of(patient: int) -> list[int]:
    return [row for row, owner in enumerate(PATIENT) if owner == patient]


def alone(net: nn.Module, image: Tensor, rows: list[int]) -> Tensor:
    """Gradient of the mean loss of these rows, with nothing else in the batch."""
    return gradient(net, losses(net, image[rows], rows).mean())


def together(net: nn.Module, image: Tensor, rows: list[int]) -> Tensor:
    """The same by autograd, with everybody in the batch."""
    return gradient(net, losses(net, image, range(len(PATIENT)))[rows].mean())


def apart(found: Tensor, truth: Tensor) -> float:
    """Relative distance in the Euclidean norm; infinite where something is not finite."""
    gap, size = float((found - truth).double().norm()), float(truth.double().norm())
    if not (gap < float("inf") and size < float("inf")):
        return float("inf")
    return gap / size if size > 0 else (0.0 if gap == 0 else float("inf"))


def clipped(vectors: Sequence[Tensor], bound: float) -> Tensor:
    total = torch.zeros_like(vectors[0])
    for vector in vectors:
        total += vector * min(1.0, bound / float(vector.double().norm()))  # float32 sums of squares are too coarse
    return total


def prepared(entry: Entry, fix: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The network in training mode, made private, with no parameter left at zero (a zero scale hides errors)."""
    torch.manual_seed(0)
    net = fix(entry.build()).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.numel() and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return net


# ------------------------------------------------------------------------------------------ the modes


def engine(entry: Entry, dtype: torch.dtype) -> Iterator[tuple[float, float]]:
    """(error, limit) for each patient and for the clipped sum, then one private step."""
    from dptrain.engine import MARGIN, NoiseSource, PatientGradients, PatientOptimizer

    net = prepared(entry, lambda net: make_private(net)[0]).to(dtype)
    image = images(entry).to(dtype)
    everybody = range(len(PATIENT))
    truth = [alone(net, image, rows_of(p)) for p in range(PATIENTS)]
    limits = _limits(net, image, [rows_of(p) for p in range(PATIENTS)], truth)
    bound = 0.5 * min(float(vector.norm()) for vector in truth)
    patient = torch.tensor(PATIENT)
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    sizes = dict(net.named_parameters())

    def vector(sums: dict[str, Tensor]) -> Tensor:
        return torch.cat([sums.get(n, torch.zeros_like(sizes[n])).reshape(-1).to(dtype) for n in names])

    # The ways of forming a gradient are chosen by counting here, by measuring (the default) further down.
    grads = PatientGradients(net, max_grad_norm=float("inf"), measure=False)
    for p in range(PATIENTS):
        weight = (patient == p).to(dtype)
        chunk = grads.clipped_sum(losses(net, image, everybody) * weight, patient, PATIENTS)
        yield apart(vector(chunk.sums), truth[p]), limits[p]
    grads.detach()
    _separable(net, image, truth)
    grads = PatientGradients(net, max_grad_norm=bound)
    noise = NoiseSource("fast")
    optimizer = PatientOptimizer(
        torch.optim.SGD(trained(net), lr=0.1),
        noise_multiplier=1.0,
        max_grad_norm=bound,
        expected_batch_size=PATIENTS,
        noise=noise,
    )
    chunk = grads.clipped_sum(losses(net, image, everybody), patient, PATIENTS)
    if chunk.patients != PATIENTS or int(chunk.nonfinite) != 0:
        raise AssertionError(f"{chunk.patients} patients, {int(chunk.nonfinite)} of them not finite")
    yield apart(vector(chunk.sums), clipped(truth, bound * (1 - MARGIN))), max(limits)
    lengths = torch.stack([vector.double().norm() for vector in truth])
    yield float(((chunk.norms.double() - lengths) / lengths).abs().max()), max(limits)
    before = [parameter.detach().clone() for parameter in trained(net)]
    optimizer.accumulate(chunk)
    optimizer.step()
    noise.close()
    _assert_moved(before, trained(net))


def against_float64(entry: Entry) -> tuple[float, float]:
    """How far the engine's, and how far autograd's float32 gradients are from those in float64: the worst patient's.

    Activation flips and long float32 sums part two correct float32 computations; this says which is nearer.
    """
    from dptrain.engine import PatientGradients

    net = prepared(entry, lambda net: make_private(net)[0])
    image, patient = images(entry), torch.tensor(PATIENT)
    plain = [alone(net, image.float(), rows_of(p)).double() for p in range(PATIENTS)]
    grads = PatientGradients(net, max_grad_norm=float("inf"), measure=False)
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    found = []
    for p in range(PATIENTS):
        weight = (patient == p).float()
        sums = grads.clipped_sum(losses(net, image.float(), range(len(PATIENT))) * weight, patient, PATIENTS).sums
        found.append(torch.cat([sums[name].reshape(-1) for name in names]).double())
    grads.detach()
    exact = net.double()
    truth = [alone(exact, image, rows_of(p)) for p in range(PATIENTS)]
    ours, autograd = (max(apart(a, b) for a, b in zip(some, truth, strict=True)) for some in (found, plain))
    return ours, autograd


def opacus_hooks(entry: Entry, dtype: torch.dtype) -> Iterator[tuple[float, float]]:
    """Per-record gradients of stock Opacus, averaged within each patient, then one of its steps."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer
    from opacus.validators import ModuleValidator

    net = prepared(entry, ModuleValidator.fix).to(dtype)
    image = images(entry).to(dtype)
    wrapped = GradSampleModule(net, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(trained(net), lr=0.1),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=len(PATIENT),
        loss_reduction="sum",
    )
    losses(wrapped, image, range(len(PATIENT))).sum().backward()
    samples = torch.cat([parameter.grad_sample.flatten(1) for parameter in trained(net)], dim=1)  # type: ignore[attr-defined]
    plain = prepared(entry, ModuleValidator.fix).to(dtype)
    truth = [alone(plain, image, rows_of(p)) for p in range(PATIENTS)]
    limits = _limits(plain, image, [rows_of(p) for p in range(PATIENTS)], truth)
    for p in range(PATIENTS):
        yield apart(samples[rows_of(p)].mean(0), truth[p]), limits[p]
    before = [parameter.detach().clone() for parameter in trained(net)]
    optimizer.step()
    _assert_moved(before, trained(net))


def opacus_ghost(entry: Entry, dtype: torch.dtype) -> Iterator[tuple[float, float]]:
    """The clipped sum of stock Opacus' ghost mode, records as persons, then one of its steps."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
    from opacus.validators import ModuleValidator

    net = prepared(entry, ModuleValidator.fix).to(dtype)
    image = images(entry).to(dtype)
    bound = 1e-3  # clips every record: their gradients are far longer
    wrapped = GradSampleModuleFastGradientClipping(
        net, max_grad_norm=bound, use_ghost_clipping=True, loss_reduction="sum"
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(trained(net), lr=0.1),
        noise_multiplier=1.0,
        max_grad_norm=bound,
        expected_batch_size=len(PATIENT),
        loss_reduction="sum",
    )

    class PerRecord(nn.Module):
        reduction = "sum"

        def forward(self, values: Tensor, _: Tensor) -> Tensor:
            return values

    criterion = DPLossFastGradientClipping(wrapped, optimizer, PerRecord(), loss_reduction="sum")
    values = losses(wrapped, image, range(len(PATIENT)))
    criterion(values, values.detach()).backward()
    found = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in trained(net)])
    plain = prepared(entry, ModuleValidator.fix).to(dtype)
    truth = [alone(plain, image, [row]) for row in range(len(PATIENT))]
    limits = _limits(plain, image, [[row] for row in range(len(PATIENT))], truth)
    # Opacus divides by the norm plus 1e-6: allow for that much, it is no error of the gradient.
    slack = max(1e-6 / float(vector.norm()) for vector in truth)
    yield max(apart(found, clipped(truth, bound)) - slack, 0.0), max(limits)
    before = [parameter.detach().clone() for parameter in trained(net)]
    optimizer.step()
    _assert_moved(before, trained(net))


RUNS: dict[str, Callable[[Entry, torch.dtype], Iterator[tuple[float, float]]]] = {
    "engine": engine,
    "opacus hooks": opacus_hooks,
    "opacus ghost": opacus_ghost,
}


def _separable(net: nn.Module, image: Tensor, truth: Sequence[Tensor]) -> None:
    """In float64 autograd itself must find the same in the batch; else the truth is none."""
    if truth[0].dtype == torch.float64 and apart(together(net, image, rows_of(0)), truth[0]) > LIMIT64:
        raise AssertionError("autograd itself differs between a patient alone and in the batch: not separable")


def _limits(net: nn.Module, image: Tensor, groups: Sequence[list[int]], truth: Sequence[Tensor]) -> list[float]:
    """What each group of rows may be off by: 1e-9 in float64, in float32 three times autograd's own gap."""
    if truth[0].dtype == torch.float64:
        return [LIMIT64] * len(groups)
    values = losses(net, image, range(len(PATIENT)))
    return [
        max(LIMIT32, 3 * apart(gradient(net, values[rows].mean(), keep=True), alone_))
        for rows, alone_ in zip(groups, truth, strict=True)
    ]


def _assert_moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    for old, new in zip(before, after, strict=True):
        if not bool(new.isfinite().all()):
            raise AssertionError("a parameter is not finite after the private step")
        if bool(torch.equal(old, new)):
            raise AssertionError("a parameter did not move in the private step: it got no noise")


# ------------------------------------------------------------------------------------------- the table


def examine(entry: Entry, mode: str) -> dict[str, Any]:
    """One row: both precisions of one network in one mode. Never raises."""
    row: dict[str, Any] = {"network": entry.network, "dims": entry.dims, "mode": mode, "ok": False}
    row |= {"max_rel_error": None, "float32_error": None, "float32_limit": None, "reason": ""}
    row |= {"listed": entry.listed, "shape": "x".join(map(str, entry.shape)), "note": entry.note}
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            worst64 = [error for error, _ in RUNS[mode](entry, torch.float64)]
            row["max_rel_error"] = _number(max(worst64))
            pairs = list(RUNS[mode](entry, torch.float32))
        row["float32_error"], row["float32_limit"] = (
            _number(x) for x in max(pairs, key=lambda pair: pair[0] / pair[1])
        )
        fine64 = max(worst64) <= LIMIT64
        fine32 = all(error <= limit for error, limit in pairs)
        row["ok"] = fine64 and fine32
        if not row["ok"]:
            row["reason"] = f"wrong gradient ({'float64' if not fine64 else 'float32'})"
            if mode == "engine" and fine64:
                found, plain = against_float64(entry)
                row["reason"] += f": {found:.1e} from the float64 truth, where autograd's own float32 is {plain:.1e}"
                if found <= 3 * plain:  # the factor that the limit gives to autograd's own gap
                    row["reason"] = row["reason"].replace("wrong gradient (float32)", "rounding in float32", 1)
        elif mode == "engine":
            slow = {str(w.message).splitlines()[0] for w in said if "dptrain" in str(w.filename)}
            row["reason"] = "; ".join(sorted(slow))[:200]
    except Exception as error:
        row["reason"] = _reason(error)
        if os.environ.get("DPTRAIN_TRACE"):
            traceback.print_exc()
    row["seconds"] = round(time.perf_counter() - start, 2)
    if mode == "engine":
        row["way"] = way_of(entry)
    return row


def way_of(entry: Entry) -> str:
    """Whether the network is proved to keep records apart and runs all patients together, or one at a time."""
    from dptrain.models import proof

    def loss(output: Any, label: Tensor) -> Tensor:
        first = output[0] if isinstance(output, tuple | list) else output
        return first.flatten(1).square().mean(1)

    net, image = prepared(entry, lambda net: make_private(net)[0]), images(entry)[:2].float()
    way = proof(net, loss, image, torch.zeros(len(image)))
    return "together" if way.together else f"one at a time: {way.why}"[:120]


def _number(value: float) -> float | None:
    return float(f"{value:.3e}") if value < float("inf") else None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"[:200]


def _worker(entry: Entry, mode: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        row = examine(entry, mode)
    pipe.send(row)
    pipe.close()


def isolated(entry: Entry, mode: str) -> dict[str, Any]:
    """One row from a process of its own, so that a crash or an endless run costs one row."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(entry, mode, theirs), daemon=True)
    process.start()
    theirs.close()
    reason = f"no answer within {TIME_LIMIT:.0f} s"
    try:
        if ours.poll(TIME_LIMIT):
            return dict(ours.recv())
    except EOFError:
        process.join(10)
        reason = f"the process ended with {process.exitcode}"
    finally:
        if process.is_alive():
            process.terminate()
        process.join(10)
    return {
        "network": entry.network, "dims": entry.dims, "mode": mode, "ok": False, "max_rel_error": None,
        "float32_error": None, "float32_limit": None, "reason": reason, "listed": entry.listed,
        "shape": "x".join(map(str, entry.shape)), "note": entry.note, "seconds": TIME_LIMIT,
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line a mode: how many of the listed and of the further networks pass."""
    lines = []
    for mode in MODES:
        mine = [row for row in rows if row["mode"] == mode]
        if mine:
            listed = [row for row in mine if row["listed"]]
            further = [row for row in mine if not row["listed"]]
            wrong = sum(not row["ok"] and row["reason"].startswith("wrong") for row in mine)
            lines.append(
                f"{mode}: {sum(row['ok'] for row in listed)} of {len(listed)} listed networks, "
                f"{sum(row['ok'] for row in further)} of {len(further)} further ones; {wrong} wrong"
            )
    return lines


def rounding(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line: the engine's rows that fail by float32's rounding alone, and how far they are from the truth."""
    found = [
        f"{row['network']} in {row['dims']}-D ({row['reason'].partition(': ')[2]})"
        for row in rows
        if row["mode"] == "engine" and row["reason"].startswith("rounding")
    ]
    return [f"right in float64, beyond the limit in float32: {'; '.join(found)}"] if found else []


NOTES = """
`commit` is that of the row's measurement (for rows of before 27 November 2026 that of the first table that held it).
max_rel_error is float64 (at most 1e-9 passes); float32_limit is the larger of 1e-5 and three times the gap
that autograd itself shows between a patient alone and in the batch. A row that fails in float32 alone says how
far both are from float64; where the two are alike (within the same factor of three), the cause is rounding.
`way` says how patients run: together where the network is proved to keep records apart, else one at a time (rows of
before 28 November 2026 have none).
Widths, depths and images are small; the JSON rows give shape and cuts (`shape`, `note`) and whether a network is
one of the listed ones (`listed`). Opacus has no patients: in its hooks mode records are averaged within patients
afterwards, in its ghost mode records are compared. For networks with several outputs the first is trained on.
MaskedAutoEncoderViT draws its masks by a record's place in the batch, so that there is nothing to compare with.

**Where the float32 criterion says nothing: BasicUNetPlusPlus and DiNTS in 3-D.** No long sum is at fault. Of 9.7
million values that go into a ReLU or leaky ReLU, three (six in DiNTS) lie so near to zero that they come out with
the other sign, which moves the gradient of everything before them by 1e-4: a jump, not a rounding error. The
patients without a flip are right to 1.2e-6. Against float64 autograd's own float32 has one to three flips (nine in
DiNTS), so that both are as far from the truth (above), neither always the nearer. What flips them here is instance
norm: the engine runs it through torch's group-norm kernel, autograd through the batch-norm kernel. Their results
differ in the last digit, and the latter's for a patient alone and in the batch are the same to the bit, so that the
limit stays at 1e-5 however many signs hang by a thread. With the batch-norm kernel in its place no sign differs and
no patient is off by more than 1.2e-6 (6.5e-7). It is not taken: its forward pass needs 11.5 ms where the group-norm
kernel needs 1.0 (6 records, 8 channels, 32 x 32 x 32, one thread), and 5.9 against 0.5 (8 records, 32 channels, 64
x 64), for an answer that is no nearer to the truth. SwinUNETR v2 was not taken apart like this.

Not run: HoVerNet (fixed 256-pixel input at full width: minutes a row), DAF3D and TorchVisionFCModel (need
torchvision), VQVAE (its codebook keeps running averages of the patients: the pre-flight check refuses it), and
networks that take more than an image (diffusion, SPADE, Transchex, VISTA3D, NaViT, registration losses).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the table; results are rewritten after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose name holds this text (several: a,b)")
    parser.add_argument("--dims", type=int, help="only this number of spatial dimensions")
    parser.add_argument("--modes", default=",".join(MODES), help="engine, opacus hooks, opacus ghost")
    parser.add_argument("--listed", action="store_true", help="only the networks of the goal")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the folder already holds")
    parser.add_argument("--renew", action="store_true", help="with --resume: measure the chosen modes again")
    parser.add_argument("--table", action="store_true", help="measure nothing; write the table of the folder's rows")
    parser.add_argument("--here", action="store_true", help="no process of its own for each row (for debugging)")
    options = parser.parse_args(argv)
    modes = [mode.strip() for mode in options.modes.split(",")]
    unknown = set(modes) - set(MODES)
    if unknown:
        parser.error(f"unknown mode {', '.join(sorted(unknown))}: {', '.join(MODES)}")
    names = [name.lower() for name in options.only.split(",") if name]
    chosen = [
        entry
        for entry in entries()
        if (not names or any(name in entry.network.lower() for name in names))
        and (options.dims is None or entry.dims == options.dims)
        and (entry.listed or not options.listed)
    ]
    if not chosen:
        parser.error("no network of the table has that name")
    torch.set_num_threads(1)
    command = command_of("coverage", sys.argv[1:] if argv is None else argv)

    def publish(rows: list[dict[str, Any]], head: dict[str, str] | None = None) -> None:
        write(
            "coverage", rows, command=command, table_columns=COLUMNS,
            title="Every patient's gradient on every network",
            notes="\n".join([*(f"- {line}" for line in summary(rows) + rounding(rows)), NOTES]),
            folder=options.folder, head=head,
        )  # fmt: skip

    if options.table:
        known = json.loads((options.folder / "coverage.json").read_text())
        publish(known["rows"], known["meta"])
        return 0
    if not options.here:
        for mode in modes:  # what is imported on first use is imported once, before the processes fork off
            examine(next(entry for entry in entries() if entry.network == "FullyConnectedNet"), mode)
    rows: list[dict[str, Any]] = []
    if options.resume and (options.folder / "coverage.json").is_file():
        known = json.loads((options.folder / "coverage.json").read_text())
        command = joined(known["meta"]["command"], command)
        rows = [row for row in known["rows"] if not (options.renew and row["mode"] in modes)]
    order = {(entry.network, entry.dims): place for place, entry in enumerate(entries())}
    done = {(row["network"], row["dims"], row["mode"]) for row in rows}
    start = time.perf_counter()
    for count, entry in enumerate(chosen, 1):
        for mode in modes:
            if (entry.network, entry.dims, mode) in done:
                continue
            made = stamp()
            row = (examine(entry, mode) if options.here else isolated(entry, mode)) | made
            rows.append(row)
            rows.sort(key=lambda row: (order[row["network"], row["dims"]], MODES.index(row["mode"])))
            shown = "" if row["max_rel_error"] is None else f"{row['max_rel_error']:.1e} "
            print(
                f"[{count}/{len(chosen)}, {time.perf_counter() - start:.0f} s]",
                f"{row['network']} {row['dims']}-D {mode}:",
                f"{'ok' if row['ok'] else 'NO'} {shown}{row['reason']}",
                flush=True,
            )
            publish(rows)
    print("\n".join(summary(rows)))
    return 0 if all(row["ok"] for row in rows if row["mode"] == "engine") else 1


if __name__ == "__main__":
    raise SystemExit(main())
