"""Clipped sums of patients' gradients, from one forward and one backward pass."""

from __future__ import annotations

import contextlib
import ctypes
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dptrain.engine import bounds, verification
from dptrain.engine.coverage import refuse_hooks, refuse_mixing, refuse_unfit
from dptrain.engine.layout import Layout
from dptrain.engine.sums import ClippedSum, clipped
from dptrain.engine.tape import Source, Tape, exact_math, precise, slow_way, sum_dtype
from dptrain.engine.views import Recorder, Seen, ordinary
from dptrain.errors import CheckRefused
from dptrain.terminal.words import suggest


class Entangled(CheckRefused):
    """This chunk must be given one patient at a time.

    Where a parameter has no fast rule, all patients share one backward graph, and zero times a patient's NaN is
    NaN for everyone: one patient more could silence all others. Alone, that patient alone becomes zero.
    """


class PatientGradients:
    """Patient gradients of a network, clipped and summed.

        grads = PatientGradients(model, max_grad_norm=1.0)
        losses = loss_fn(model(image), label)                  # [N], one a record or view
        chunk = grads.clipped_sum(losses, patient, patients)   # one backward pass

    Formal guarantee: for separable networks (no record's output depends on another's) `sums` has l2
    sensitivity `max_grad_norm` to adding or removing one patient. A patient's gradient is the mean over the
    records and views that the chunk holds of the patient, clipped to C(1−η) with η = :data:`MARGIN`; what the
    margin covers are the roundings of norms, factors and products in float32 (:mod:`dptrain.engine.bounds`).

    | case | result |
    |---|---|
    | no record at all (N = 0) | sums of zero |
    | a patient without a record, or with a zero gradient | contributes zero |
    | a gradient with NaN or infinity | counts as zero, and in `nonfinite`; the others are untouched |
    | `max_grad_norm=inf` | plain sums of the patients' mean gradients |
    | a parameter that the forward pass did not use | a sum of zero |
    | frozen parameters (`requires_grad=False`) | no sum, no cost |
    | a parameter used in a way without a rule (an LSTM's) | one backward pass a patient, with one warning |

    While it is attached, plain `backward()` through the network gives no gradients; :meth:`detach` gives the
    network back. Outside of a forward pass with gradients the network is untouched: it can be evaluated,
    saved and copied.

    Args:
        model: the network; every trainable parameter in it gets a sum.
        max_grad_norm: C, the clip; `inf` for none.
        rules: parameter name, or a module's name for all of its parameters -> `one-by-one`, the slow exact way
            for what no rule fits (for instance layers that take the sequence before the batch). On the command
            line: `model.rules`.
        names: name of a parameter in `model` -> what rules and messages call it, where `model` is a part of the
            network that they speak of.
        usual: records of a patient by which the ways are chosen (:class:`dptrain.engine.layout.Layout`).
        measure: choose between equally exact ways of forming convolution gradients by timing them once a
            shape; off: by counting multiplications.
        verify: for made-up data alone, since what it finds is a refusal: compare the patients' gradients, in one
            weighted sum, with plain autograd's in the first chunk that holds records of two patients or more, and
            again when a parameter is met that had no part in that (one more backward pass and the memory of a kept
            graph, once).

    Attributes:
        remembers: which ways parameters take is learned from the first chunk, and another way is refused later. Off:
            every chunk is looked at anew, for networks whose ways may follow their inputs; one patient's way would
            else decide on the others'.

    Raises:
        CheckRefused: a parameter without a rule, a layer that mixes records; where it verifies, a first chunk whose
            gradients do not come from the patients' own rows.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_grad_norm: float,
        rules: Mapping[str, str] | None = None,
        names: Mapping[str, str] | None = None,
        usual: int | None = None,
        measure: bool = True,
        verify: bool = False,
    ) -> None:
        if not max_grad_norm > 0:
            raise CheckRefused(f"max_grad_norm={max_grad_norm} must be above 0.")
        low, high = bounds.CLIPS
        if not (low <= max_grad_norm <= high or math.isinf(max_grad_norm)):
            raise CheckRefused(f"max_grad_norm={max_grad_norm} is out of float32's reach: {low:.1g} to {high:.1g}.")
        refuse_unfit(model)
        self.model = model
        self.max_grad_norm = float(max_grad_norm)
        self._names = dict(names or {})
        self._recorder = Recorder(measure)
        self._sources: dict[int, Source] = {}
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._stand_ins: dict[int, Seen] = {}
        self._slow: dict[str, Source] = {}
        self._explored: set[bool] = set()
        self.remembers = True
        self._verifies = verify
        self.usual = usual
        self._verified: set[tuple[str, int]] = set()
        self._first_chunk_over = False
        self._entered = 0
        self._collect()
        for name, rule in (rules or {}).items():
            if rule != "one-by-one":
                raise CheckRefused(f"rules: {name}={rule} is not accepted.", remedy="The one rule is 'one-by-one'.")
            named = self._called(name)
            if not named:
                raise CheckRefused(
                    f"rules: '{name}' is neither a trainable parameter nor a module that holds one.",
                    remedy=suggest(name, [source.name for source in self._sources.values()]),
                )
            self._slow.update({source.name: source for source in named})
        self._handles = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]

    # --- watching the forward pass --------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Find the trainable parameters and where modules hold them."""
        before = self._sources
        self._sources, self._places = {}, []
        for prefix, module in self.model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is None or not parameter.requires_grad:
                    continue
                if id(parameter) not in self._sources:
                    full = f"{prefix}.{name}" if prefix else name
                    full = self._names.get(full, full)
                    refuse_hooks(full, parameter)
                    self._sources[id(parameter)] = before.get(id(parameter)) or Source(full, parameter)
                self._places.append((module, name, parameter))
        self._modules = [module for module in self.model.modules() if _mixes(module)]

    def _called(self, name: str) -> list[Source]:
        """The source of the parameter, or those of all parameters of the module, that this is a name of."""
        every = self.model.named_parameters(remove_duplicate=False)
        chosen = {id(p) for full, p in every if f"{self._names.get(full, full)}.".startswith(f"{name}.")}
        return [source for key, source in self._sources.items() if key in chosen]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if module is not self.model or not torch.is_grad_enabled():
            return None
        self._entered += 1
        if self._entered > 1:
            return None
        if self._first_chunk_over:
            self._first_chunk_over = False
            _return_memory()
        refuse_mixing(self._modules)
        args = tuple(_ordinary(a) for a in args)
        kwargs = {key: _ordinary(value) for key, value in kwargs.items()}
        first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() > 0), None)
        if first is None:
            raise CheckRefused("the network's input must be a tensor with records first, [N, …].")
        self._collect()
        records = len(first)
        if records == 0:  # no gradient to form: torch alone runs it, and knows every operation on nothing
            self._recorder.tape = None
            return args, kwargs
        tape = self._recorder.tape
        if tape is None or tape.records != records:
            tape = self._recorder.tape = Tape(records)
        self._install()
        return args, kwargs

    def _install(self) -> None:
        for module, name, parameter in self._places:
            if self._sources[id(parameter)].name in self._slow:
                continue
            stand_in = self._stand_ins.get(id(parameter))
            if stand_in is None or stand_in.stands_for != (parameter.data_ptr(), parameter.dtype):
                stand_in = Seen.make(self._sources[id(parameter)], self._recorder)
                self._stand_ins[id(parameter)] = stand_in
            module.__dict__[name] = stand_in

    def _remove(self) -> None:
        for module, name, _ in self._places:
            module.__dict__.pop(name, None)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        if module is not self.model or self._entered == 0:
            return None
        self._entered -= 1
        if self._entered == 0:
            self._remove()
        return ordinary(output)

    def detach(self) -> None:
        """Give the network back as it was."""
        self._entered = 0
        self._remove()
        for handle in self._handles:
            handle.remove()
        self._recorder.tape = None

    def forget(self) -> None:
        """Let go of a forward pass that led to no sum: one that failed."""
        self._entered = 0
        self._remove()
        tape, self._recorder.tape = self._recorder.tape, None
        if tape is not None:
            tape.close()

    def nothing(self, patients: int) -> ClippedSum:
        """The sum of patients who count as zero."""
        return self._empty(patients, next(self.model.parameters()).device)

    # --- the clipped sum ------------------------------------------------------------------------------------------

    def clipped_sum(self, losses: Tensor, patient: Tensor, patients: int) -> ClippedSum:
        """Run the backward pass and return the sum of the patients' clipped gradients.

        Args:
            losses: [N], one a record or view, from a forward pass of the watched network.
            patient: integers [N] in 0…P−1; −1 for rows of nobody, which count nothing.
            patients: P; those without a record contribute zero.

        Raises:
            CheckRefused: losses that are no [N], or that the network's parameters do not reach; a layer whose
                gradients do not come from the patients' own rows.
        """
        if losses.dim() != 1 or len(losses) != len(patient):
            raise CheckRefused(
                f"losses {tuple(losses.shape)} and patient {tuple(patient.shape)} must both be one a record, [N].",
                remedy="Reduce the loss over pixels and classes only, never over records.",
            )
        tape, self._recorder.tape = self._recorder.tape, None
        if len(losses) == 0 or patients == 0:
            return self._empty(patients, losses.device)
        if tape is None or not losses.requires_grad:
            raise CheckRefused(
                "no forward pass of the watched network leads to these losses.",
                remedy="Call the network with gradients enabled, then clipped_sum once.",
            )
        if tape.records != len(losses):
            raise CheckRefused(f"the network saw {tape.records} records, but there are {len(losses)} losses.")
        layout = Layout(patient.to(losses.device), patients, self.usual)
        tape.layout = layout
        self._recorder.tape = tape
        self._install()  # checkpointed blocks run forward again
        learned = self._slow.copy(), self._explored.copy()
        try:
            with torch.autocast(losses.device.type, enabled=False):
                return self._sum(tape, layout, losses)
        finally:
            self._remove()
            self._recorder.tape = None
            tape.close()
            if not self.remembers:
                self._slow, self._explored = learned

    def _sum(self, tape: Tape, layout: Layout, losses: Tensor) -> ClippedSum:
        weights = layout.record_weight.to(losses.dtype)
        training = self.model.training
        verify = self._verifies and layout.present > 1 and not tape.met <= self._verified
        explore = training not in self._explored
        watched = [source for source in self._sources.values() if source.name not in self._slow]
        tape.mode, tape.exact = "record", exact_math(losses.device)
        strays = self._strays(tape, watched)
        ends: list[tuple[Source, Any]] = [*((source, source.plain) for source in watched), *strays]
        reached = torch.autograd.grad(
            losses,
            [self._recorder.token, *(end for _, end in ends)],
            weights,
            allow_unused=True,
            retain_graph=True if verify or explore or self._slow else None,
        )[1:]
        used = [pair for pair, gradient in zip(ends, reached, strict=True) if gradient is not None]
        unexpected = list({root: None for source, _ in used for root in source.roots})
        strays = [pair for pair in used if isinstance(pair[1], GradientEdge)]
        if unexpected and not explore:
            raise CheckRefused(
                f"{unexpected[0].name} reached the loss by a way without a rule that it did not take before.",
                remedy=slow_way(self._modules_of(unexpected)),
            )
        if unexpected:
            if self.remembers:  # else the warning would tell of a patient
                self._warn(unexpected)
            self._slow.update({source.name: source for source in unexpected})
        else:  # parameters that were used together with these go another way from now on: look again
            self._explored.add(training)
        self._first_chunk_over = self.remembers and (verify or explore)
        tape.mode = "off"
        with torch.no_grad(), tape.exact:
            for source in {*self._slow.values(), *(source for source, _ in strays)}:
                self._form(tape, layout, source)
            self._one_by_one(tape, layout, losses, weights, strays)
            self._descend(tape, layout)
            slow = [(source, source.plain) for source in self._slow.values() if source.plain.requires_grad]
            self._one_by_one(tape, layout, losses, weights, slow)
            if verify and self._verify(tape, layout, losses, weights):
                self._verified |= tape.met
            return clipped(tape, layout, list(self._sources.values()), self.max_grad_norm)

    def _strays(self, tape: Tape, watched: list[Source]) -> list[tuple[Source, GradientEdge]]:
        """Where gradients end that code took to the stand-ins themselves.

        What torch asks no stand-in about (a network's own autograd functions, scripted ones) takes it as a tensor. It
        is a leaf of its own, and a gradient that ends there would be lost.
        """
        pairs = [(source, self._stand_ins.get(id(source.plain))) for source in watched]
        with torch._C.DisableTorchFunctionSubclass():
            return [
                (source, get_gradient_edge(stand_in))
                for source, stand_in in (*pairs, *tape.stand_ins.items())
                if stand_in is not None
            ]

    def _form(self, tape: Tape, layout: Layout, source: Source) -> None:
        """Turn kept tensors into patient gradients."""
        kept = tape.deferred.pop(source, None)
        if kept is not None:
            tape.add(source, kept.use.patient_gradients(kept.slot, layout, kept.untouched()))
        formed = tape.formed.pop(source, None)
        if formed is not None:
            tape.add(source, formed.tensor())
        rows = tape.rows.pop(source, None)
        if rows is not None:
            tape.add(source, layout.sum_rows(rows).reshape(layout.patients, *source.shape))

    def _descend(self, tape: Tape, layout: Layout) -> None:
        """Carry the patient gradients of values computed from parameters on to the parameters."""
        for source in tape.derived:
            gradients = tape.gradients.pop(source, None)
            if gradients is None:
                continue
            plain = [root.plain for root in source.roots]
            seeds = gradients.to(source.plain.dtype)
            parts: tuple[Tensor | None, ...]
            try:
                parts = torch.autograd.grad(
                    source.plain, plain, seeds, is_grads_batched=True, retain_graph=True, allow_unused=True
                )
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                each: list[tuple[Any, ...]] = [
                    torch.autograd.grad(source.plain, plain, seed, retain_graph=True, allow_unused=True)
                    for seed in seeds
                ]
                columns: list[tuple[Any, ...]] = list(zip(*each, strict=True))
                parts = tuple(None if column[0] is None else torch.stack(column) for column in columns)
            for root, part in zip(source.roots, parts, strict=True):
                if part is not None:
                    tape.add(root, precise(part.to_dense() if part.is_sparse else part))
        lost = [source.name for source in tape.gradients if not source.is_root]
        if lost:
            raise CheckRefused(
                f"a value that an earlier forward pass computed from {lost[0]} was used again.",
                remedy="Compute it in each forward pass: keep nothing that depends on parameters between them.",
            )

    def _warn(self, sources: list[Source]) -> None:
        names = ", ".join(sorted({source.name.rpartition(".")[0] or source.name for source in sources}))
        warnings.warn(
            f"no fast rule for how {names} uses its parameters: their gradients are formed one patient at a time, "
            "exactly, at the cost of one more backward pass for each of the chunk's patients.",
            stacklevel=4,
        )

    def _one_by_one(
        self,
        tape: Tape,
        layout: Layout,
        losses: Tensor,
        weights: Tensor,
        slow: Sequence[tuple[Source, Any]],
    ) -> None:
        """Patient gradients of sources without a rule, by a backward pass for each patient.

        `slow` holds each with where its gradient ends: a tensor or a GradientEdge.
        """
        if not slow:
            return
        formed = [
            torch.zeros(layout.patients, *source.shape, dtype=sum_dtype(source.plain), device=source.plain.device)
            for source, _ in slow
        ]
        for i in range(layout.real):
            seed = weights * (layout.patient == i)
            parts = torch.autograd.grad(losses, [end for _, end in slow], seed, retain_graph=True, allow_unused=True)
            for gradients, part in zip(formed, parts, strict=True):
                if part is not None:
                    gradients[i] = part.to_dense() if part.is_sparse else part
        if layout.real > 1 and not all(bool(torch.isfinite(gradients).all()) for gradients in formed):
            raise Entangled(
                "a patient's gradient is not finite, and a module without a fast rule carries that to the others.",
                remedy="Give clipped_sum one patient at a time here (dptrain.training.fit does).",
            )
        for (source, _), gradients in zip(slow, formed, strict=True):
            tape.add(source, gradients)

    def _verify(self, tape: Tape, layout: Layout, losses: Tensor, weights: Tensor) -> bool:
        """Raise CheckRefused for gradients that are not the patients' own; False where this chunk cannot tell."""
        if not verification.tells(tape, layout):
            return False
        wrong = verification.not_own_norms(tape, layout)
        if wrong:
            names = self._modules_of(wrong[:1])
            raise CheckRefused(
                f"the norm found for the gradient of {names[0]} is not that of the gradient.", remedy=slow_way(names)
            )
        fast = [source for source in self._sources.values() if source.name not in self._slow]
        wrong = verification.not_own_rows(tape, layout, losses, weights, fast, self._recorder.token)
        if wrong:
            names = self._modules_of(wrong)
            raise CheckRefused(
                f"the gradient of {', '.join(names)} does not come from the patient's own rows: a layer mixes the "
                "records of a batch, or does not hold them in its first dimension.",
                remedy="If it is only the order of dimensions, build the layer with batch_first=True. "
                f"Otherwise: {slow_way(names)} No rule helps where records are mixed.",
            )
        return True

    def _modules_of(self, sources: Sequence[Source]) -> list[str]:
        """The fewest names of modules and parameters that hold these sources and no other."""
        names, every = {source.name for source in sources}, [source.name for source in self._sources.values()]
        fewest: dict[str, None] = {}
        for name in sorted(names):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                outer = ".".join(parts[:end])
                if all(other in names for other in every if f"{other}.".startswith(f"{outer}.")):
                    fewest[outer] = None
                    break
        return list(fewest)

    def _empty(self, patients: int, device: torch.device) -> ClippedSum:
        self._collect()
        sums = {
            s.name: torch.zeros(s.shape, dtype=sum_dtype(s.plain), device=s.plain.device)
            for s in self._sources.values()
        }
        parameters = {s.name: s.plain for s in self._sources.values()}
        norms = torch.zeros(patients, dtype=torch.float64, device=device)
        return ClippedSum(sums, parameters, patients, 0, norms, self.max_grad_norm)  # type: ignore[arg-type]


def _return_memory() -> None:
    """Give the system back what the C library holds for later.

    A first chunk needs more than later ones (a kept graph, trials of the ways of convolutions). What it leaves
    behind in pieces would count as this process's memory for the whole run: 70 to 100 MB for DenseNet121.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _ordinary(value: Any) -> Any:
    """MetaTensors and other subclasses as plain tensors: their hooks have no part in the step."""
    if isinstance(value, Tensor) and type(value) not in (Tensor, nn.Parameter):
        return value.as_subclass(Tensor)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_ordinary(item) for item in value)
    return value


def _mixes(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase)
