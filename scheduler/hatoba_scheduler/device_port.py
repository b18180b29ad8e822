"""How the port of devices is protected: TLS on both sides, by our own authority alone.

What the server shows there is made at each start, and again when two thirds of its life are over:
devices come for as long as the server runs.
"""

from __future__ import annotations

import threading

import grpc
from cryptography.hazmat.primitives import serialization

from hatoba_scheduler import certificates
from hatoba_scheduler.auth.authority import Authority
from hatoba_scheduler.certificates import Pair


class DevicePort:
    """The server's certificate on the port of devices. gRPC asks for it in threads of its own."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._lock = threading.Lock()
        self._pair = authority.device_port()

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`: who shows no certificate of our authority does not get in."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(self._pair),
            self.newer,  # type: ignore[arg-type]
            require_client_authentication=True,
        )

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """What is to be shown from now on, None: what was shown before; asked at each handshake."""
        with self._lock:
            if not self._authority.is_due(self._pair.certificate):
                return None
            self._pair = self._authority.device_port()
            return self._configuration(self._pair)

    def _configuration(self, pair: Pair) -> grpc.ServerCertificateConfiguration:
        key = pair.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        chain = [(key, certificates.pem(pair.certificate).encode())]
        return grpc.ssl_server_certificate_configuration(chain, self._authority.pem.encode())
