"""Signatures that the ledger knows: three algorithms, one check, and what a signer is."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dptrain.errors import ConfigError

LEAST_RSA = 3072  # bits


class Algorithm(StrEnum):
    """How an approver signs; tokens and smart cards that know no Ed25519 use one of the others."""

    ED25519 = "ed25519"  # RFC 8032; public key: 32 bytes
    ECDSA_P256 = "ecdsa-p256"  # FIPS 186-5 with SHA-256, DER signature; public key: SubjectPublicKeyInfo, DER
    RSA_PSS = "rsa-pss"  # RFC 8017 with SHA-256, salt of 32 bytes; public key: SubjectPublicKeyInfo, DER


class Signer(Protocol):
    """Somebody's unlocked key, wherever it lives."""

    @property
    def public(self) -> str:
        """The public key in hex, in its algorithm's form."""

    @property
    def algorithm(self) -> str:
        """One of :class:`Algorithm`."""

    def sign(self, message: bytes) -> bytes:
        """The signature over a message."""


def verified(algorithm: str, public: str, signature: bytes, message: bytes) -> bool:
    """Whether the key made this signature. Never raises."""
    try:
        key = _load(algorithm, public)
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, message)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        else:
            key.verify(signature, message, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    except (InvalidSignature, ConfigError):
        return False
    return True


def check_public(algorithm: str, public: str) -> None:
    """Raises ConfigError for an unknown algorithm, or a key that is none of it or too weak."""
    _load(algorithm, public)


def _load(algorithm: str, public: str) -> Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    if algorithm not in list(Algorithm):
        raise ConfigError(f"'{algorithm}' is no algorithm of signatures: {', '.join(Algorithm)}.")
    try:
        raw = bytes.fromhex(public)
        if algorithm == Algorithm.ED25519:
            return Ed25519PublicKey.from_public_bytes(raw)
        key = serialization.load_der_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"this is no public key of {algorithm} in hex.") from None
    if algorithm == Algorithm.ECDSA_P256 and isinstance(key, ec.EllipticCurvePublicKey):
        if isinstance(key.curve, ec.SECP256R1):
            return key
        raise ConfigError(f"the key lies on the curve {key.curve.name}: P-256 is needed.")
    if algorithm == Algorithm.RSA_PSS and isinstance(key, rsa.RSAPublicKey):
        if key.key_size >= LEAST_RSA:
            return key
        raise ConfigError(f"the RSA key has {key.key_size} bits: at least {LEAST_RSA} are needed.")
    raise ConfigError(f"this is no public key of {algorithm} in hex.")
