"""What the key of a certificate has signed, in one line: certificate, what is told, signature."""

from __future__ import annotations

import base64
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec


class Proof(NamedTuple):
    """What the key of this certificate told; who made the certificate is another question."""

    certificate: x509.Certificate
    told: str


def read(text: str, meaning: bytes) -> Proof:
    """A proof `CERTIFICATE.TOLD.SIGNATURE`: DER and ECDSA over meaning, DER and what is told, both
    in base64url without padding. Raises ValueError where it is damaged or signed by another key.
    """
    shown, told, signed = text.split(".")
    der = _bytes(shown)
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("the certificate's key is of another kind")
        key.verify(_bytes(signed), meaning + der + told.encode(), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, UnsupportedAlgorithm) as error:
        raise ValueError("the certificate's key has not signed it") from error
    return Proof(certificate, told)


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
