"""Noise: normal, fresh in every process and after every resume, never stored."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import special, stats
from torch import nn

from dptrain.engine import NoiseSource, PatientGradients, PatientOptimizer
from dptrain.engine.noise import _rekey_in_child, quantiles
from dptrain.errors import ConfigError
from dptrain.randomness import new_bits


@pytest.mark.parametrize("generator", ["cryptographic", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_standard_normal(generator: str, dtype: torch.dtype) -> None:
    """Kolmogorov–Smirnov, moments, tails and correlation; false alarms below one in a million runs."""
    source = NoiseSource(generator)
    values = source.normal(400_000, dtype).double().numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-7
    n = len(values)
    for order, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((values**order).mean() - moment) < 5.5 * (spread / n) ** 0.5
    beyond = (np.abs(values) > 4).sum()
    assert stats.binomtest(int(beyond), n, 2 * stats.norm.sf(4)).pvalue > 1e-7
    assert np.abs(values).max() > 4.2
    assert abs((values[1:] * values[:-1]).mean()) < 5.5 / n**0.5
    assert abs((values[: n // 2] * values[n // 2 :]).mean()) < 5.5 / (n / 2) ** 0.5


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    """Known answers from the least word to the largest: exactly symmetric, never infinite, right in the far tail."""
    rng = np.random.default_rng(5)
    upper = np.concatenate([[0, 1, 2, (1 << 52) - 1, (1 << 52) - 2], rng.integers(0, 1 << 52, 2000)])
    near = (1 << 52) - 1 - (1 << rng.integers(0, 40, 200))
    words = np.concatenate([upper, near]).astype(np.int64) << 11 | 2047  # the lower 11 bits are not looked at
    out, mirrored = torch.empty(len(words), dtype=torch.float64), torch.empty(len(words), dtype=torch.float64)
    quantiles(words.copy(), out, torch.empty_like(out))
    quantiles(~words, mirrored, torch.empty_like(out))
    assert torch.equal(out, -mirrored)
    beyond = (2 * ((1 << 52) - (words >> 11)) - 1) * 2.0**-54  # the probability above, exact in double precision
    expected = -special.ndtri(beyond)
    assert np.allclose(out.numpy(), expected, rtol=2e-13, atol=1e-17)
    assert out.max() == pytest.approx(-special.ndtri(2.0**-54), rel=1e-12)
    assert out.min() > 0


def test_the_bits_are_those_of_aes_in_counter_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """NIST FIPS 197, appendix B's cipher on counters: keyed from os.urandom, each block once, in one long stream."""
    key = bytes(range(16))
    monkeypatch.setattr(os, "urandom", lambda count: key[:count])
    fill = new_bits()
    words = np.full(40, -1, np.int64)
    for part in (words[:10], words[10:12], words[12:]):
        fill(part)
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    expected = b"".join(block.update(i.to_bytes(16, "big")) for i in range(20))
    assert words.tobytes() == expected


@pytest.mark.parametrize("kind", ["cryptographic", "fast"])
def test_bits_are_even(kind: str) -> None:
    """Each of the 64 bits is set half of the time and alone; false alarms below one in a million runs."""
    words = np.empty(1 << 17, np.int64)
    new_bits(kind)(words)
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).astype(np.float64) * 2 - 1
    n = len(bits)
    assert abs(bits.mean(0)).max() < 6.5 / n**0.5
    together = bits.T @ bits / n
    assert abs(together - np.diag(np.diag(together))).max() < 7 / n**0.5
    assert abs((bits[1:] * bits[:-1]).mean(0)).max() < 6.5 / n**0.5


def test_the_background_thread_leaves_the_other_cores_alone() -> None:
    """Spread over the network's cores, the noise would take more from the step than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        source = NoiseSource()
        source.prepare(40_000)
        assert source._thread is not None
        assert source._thread.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_no_value_comes_twice() -> None:
    """What was drawn ahead is handed out once; sizes may change between requests."""
    source = NoiseSource()
    sizes = (50_000, 50_000, 70_000, 50_000, 50_000)
    drawn = torch.cat(
        [source.normal(size, torch.float64 if size == 70_000 else torch.float32).float() for size in sizes]
    )
    assert len(torch.unique(drawn)) > 0.98 * len(drawn)  # float32 has few values: chance hits only
    first, second = source.normal((200, 300)), source.normal((200, 300))
    assert first.shape == (200, 300)
    assert not torch.equal(first, second)


def test_two_threads_never_get_the_same_numbers() -> None:
    source = NoiseSource()
    source.prepare(20_000)
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: source.normal(20_000), range(64)))
    assert len({tuple(values[:4].tolist()) for values in drawn}) == 64


PROGRAM = """
from dptrain.engine import NoiseSource
for generator in ("cryptographic", "fast"):
    source = NoiseSource(generator)
    source.prepare(40000)
    print(source.normal(40000)[:64].numpy().tobytes().hex())
"""


def test_fresh_processes_never_share_noise() -> None:
    runs = [subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for run in runs for line in run.communicate()[0].split()]
    assert len(set(lines)) == 4
    assert all(len(line) == 64 * 8 for line in lines)


@pytest.mark.parametrize("generator", ["cryptographic", "fast"])
def test_forked_processes_never_share_noise(generator: str) -> None:
    """Neither with each other, nor with their parent, nor through numbers that the parent drew ahead."""
    source = NoiseSource(generator)
    source.prepare(40_000)
    outputs = []
    for _ in range(2):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            with os.fdopen(write, "wb") as pipe:
                pipe.write(source.normal(40_000)[:64].numpy().tobytes())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            outputs.append(pipe.read())
        os.waitpid(child, 0)
    outputs.append(source.normal(40_000)[:64].numpy().tobytes())
    assert all(len(output) == 256 for output in outputs)
    assert len(set(outputs)) == 3


def test_noise_is_never_stored() -> None:
    source = NoiseSource()
    with pytest.raises(TypeError, match="never stored"):
        pickle.dumps(source)
    with pytest.raises(TypeError, match="never stored"):
        copy.deepcopy(source)


def test_a_resumed_run_draws_fresh_noise() -> None:
    """The same checkpoint, loaded twice, moves the weights by different noise."""

    def moved() -> torch.Tensor:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        model = nn.Linear(300, 200)
        engine = PatientGradients(model, max_grad_norm=1.0)
        private = PatientOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0), noise_multiplier=1.0, max_grad_norm=1.0,
            expected_batch_size=1, noise=NoiseSource(),
        )  # fmt: skip
        private.load_state_dict(private.state_dict())
        private.accumulate(engine.clipped_sum(model(torch.ones(2, 300)).sum(1), torch.arange(2), 2))
        private.step()
        return model.weight.detach().clone()

    first, second = moved(), moved()
    correlation = np.corrcoef(np.asarray(first).ravel(), np.asarray(second).ravel())[0, 1]
    assert abs(correlation) < 5.5 / 60_000**0.5
    assert float((first - second).std()) == pytest.approx(2**0.5, rel=0.05)


def test_closed_or_misused_sources_refuse() -> None:
    with NoiseSource() as source:
        assert source.normal(3).shape == (3,)
        with pytest.raises(ConfigError, match="bfloat16"):
            source.normal(3, torch.bfloat16)
    with pytest.raises(ConfigError, match="closed"):
        source.normal(3)
    with pytest.raises(ConfigError, match="cryptographic or fast"):
        NoiseSource("pcg")


def test_numbers_are_drawn_ahead_only_where_that_is_asked_for() -> None:
    for ahead in (True, False):
        with NoiseSource(ahead=ahead) as source:
            source.normal(40_000)
            assert (source._drawn is not None) == ahead
            source.normal(3)
            assert source._drawn is None  # another size: what was drawn is forgotten, and so few are not drawn ahead


def test_what_is_being_drawn_is_not_drawn_again() -> None:
    with NoiseSource() as source:
        source.prepare(40_000)
        first = source._drawn
        source.prepare(40_000)
        assert source._drawn is first
        source.prepare(50_000)
        assert source._drawn is not None
        assert source._drawn[0] == 50_000


def test_a_closed_source_draws_nothing_and_stays_closed_in_a_child() -> None:
    closed = NoiseSource()
    closed.close()
    closed.prepare(40_000)
    assert closed._drawn is None
    assert closed._thread is None
    _rekey_in_child()
    with pytest.raises(ConfigError, match="closed"):
        closed.normal(3)


def test_all_numbers_are_drawn_in_one_thread() -> None:
    """Two would share one generator, and could use the same bits."""

    def name() -> int:
        time.sleep(0.01)
        return threading.get_ident()

    with NoiseSource() as source:
        source.prepare(3)
        assert source._thread is not None
        assert len({work.result() for work in [source._thread.submit(name) for _ in range(4)]}) == 1
