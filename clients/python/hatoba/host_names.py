"""The names under which machines that joined answer TLS, wherever they are."""

from __future__ import annotations


def server_name(host: str) -> str:
    """The name in the certificate that replicas on a host show: addresses change, hosts do not."""
    return f"{host}.hosts.hatoba"
