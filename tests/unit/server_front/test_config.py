"""hatoba.toml: what is read, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatoba_plugins.loader import load
from hatoba_scheduler.config import (
    Address,
    Config,
    ConfigError,
    DevicesConfig,
    TlsMode,
    load_config,
    parse_address,
    parse_config,
)
from hatoba_scheduler.config_text import default_config_text

TYPES = {name: found.type.options for name, found in load().types.items()}


def _problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text.encode())
    return [problem.text("f.toml") for problem in caught.value.problems]


def test_an_empty_file_is_the_embedded_servers() -> None:
    assert parse_config(b"") == Config()
    assert Config().server.listen.loopback


def test_the_commented_default_changes_nothing() -> None:
    assert parse_config(default_config_text(TYPES).encode()) == Config()


def test_the_commented_default_shows_true_defaults() -> None:
    lines = [line.removeprefix("# ") for line in default_config_text(TYPES).splitlines()]
    shown = "\n".join(
        line
        for line in lines
        if (" = " in line or line.startswith("["))
        and not line.startswith(("advertise", "tls_", "train"))
    )
    config = parse_config(shown.encode())
    assert (config.server, config.limits) == (Config().server, Config().limits)
    assert {one.type for one in config.backends.values()} == TYPES.keys() - {"null", "mock"}
    for wanted in config.backends.values():
        options = TYPES[wanted.type]
        assert options(**wanted.options) == options()
    assert "my-hosts" not in config.backends


def test_everything_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "hatoba.toml"
    path.write_text(
        """
        [server]
        listen = "[::1]:7420"
        http_listen = "0.0.0.0:9090"
        advertise = "hatoba.example.org:7420"
        tls = "files"
        tls_cert = "/c.pem"
        tls_key = "/k.pem"
        reflection = false
        trace_share = 1
        otlp_endpoint = "http://localhost:4317"
        [limits]
        max_message_bytes = 1_000_000
        [devices]
        listen = "0.0.0.0:7430"
        advertise = "hatoba.example.org:7430"
        alive_every = 60
        certificate_days = 30
        [defaults]
        train = "gpu"
        serves = "gpu"
        [backends.gpu]
        type = "k8s-gpu"
        options = { namespace = "ml", nodes = [1, 2] }
        """
    )
    config = load_config(path)
    assert config.server.listen == Address("::1", 7420)
    assert config.server.tls is TlsMode.FILES
    assert config.server.advertise == Address("hatoba.example.org", 7420)
    assert config.limits.max_message_bytes == 1_000_000
    assert config.devices == DevicesConfig(
        Address("0.0.0.0", 7430), Address("hatoba.example.org", 7430), 60.0, 30
    )
    assert (config.defaults.train, config.defaults.serves) == ("gpu", "gpu")
    assert config.backends["gpu"].options == {"namespace": "ml", "nodes": [1, 2]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[server]\nlisen = "x"', "f.toml:2: server.lisen: unknown setting; did you mean `listen`"),
        ("[sever]\n", "f.toml:1: sever: unknown table; did you mean `server`?"),
        ("[server]\nzzz = 1", "f.toml:2: server.zzz: unknown setting; known are"),
        ("[server]\n\nreflection = 1", "f.toml:3: server.reflection: must be true or false, got"),
        ("[server]\nlisten = 7420", "f.toml:2: server.listen: must be text in quotes, got a whole"),
        ('[server]\nlisten = "here"', "f.toml:2: server.listen: 'here' has no port"),
        ('[server]\nlisten = "h:70000"', "f.toml:2: server.listen: '70000' is no port"),
        ('[server]\nlisten = "a b:1"', "f.toml:2: server.listen: 'a b' is no host name"),
        ('[server]\nlisten = "[::zz]:1"', "f.toml:2: server.listen: '::zz' is no IPv6 address"),
        ('[server]\nadvertise = "0.0.0.0:1"', "f.toml:2: server.advertise: nobody can dial"),
        ('[server]\ntls = "on"', "f.toml:2: server.tls: must be one of auto, files, off"),
        ("[server]\ntrace_share = 2", "f.toml:2: server.trace_share: must be 0 to 1, got 2"),
        ("[server]\ntrace_share = nan", "f.toml:2: server.trace_share: must be 0 to 1, got nan"),
        ('[server]\notlp_endpoint = "x"', "f.toml:2: server.otlp_endpoint: must be http://"),
        ("[limits]\nkept_spans = -1", "f.toml:2: limits.kept_spans: must be 0 to"),
        ("[limits]\nkept_spans = true", "f.toml:2: limits.kept_spans: must be a whole number"),
        ('[devices]\nlisten = "h"', "f.toml:2: devices.listen: 'h' has no port"),
        ('[devices]\nadvertise = "h:1"', "f.toml:2: devices.advertise: needs `listen`"),
        (
            '[devices]\nlisten = "h:1"\nadvertise = "[::]:1"',
            "f.toml:3: devices.advertise: nobody can dial ::",
        ),
        ("[devices]\nalive_every = 0.5", "f.toml:2: devices.alive_every: must be 1 to 3600"),
        (
            "[devices]\ncertificate_days = 3651",
            "f.toml:2: devices.certificate_days: must be 1 to 3,650, got 3,651",
        ),
        (
            '[backends.a]\ntype = "iot-edge-arm"\n[backends.b]\ntype = "iot-edge-arm"',
            "f.toml:4: backends.b.type: 'iot-edge-arm' is the type of 'a', 'b', and all devices "
            'are of one backend: keep one, with `transport = "both"`',
        ),
        ("server = 3", "f.toml:1: server: must be a table, written [server]"),
        ("backends = 3", "f.toml:1: backends: must be tables"),
        ("[backends]\ngpu = 1", "f.toml:2: backends.gpu: must be a table, written [backends.gpu]"),
        ("[backends.gpu]\n", "f.toml:1: backends.gpu.type: is needed"),
        ('[backends.GPU]\ntype = "x"', "f.toml:1: backends.GPU: a backend's name has"),
        (
            '[backends.a]\ntype = "x"\noptions = 1',
            "f.toml:3: backends.a.options: must be a table",
        ),
        (
            '[backends.a]\ntype = "x"\nnamespace = "y"',
            "f.toml:3: backends.a.namespace: unknown setting; known are cost_per_hour, deadline, "
            "options, reap_after, type",
        ),
        (
            '[backends.a]\ntype = "x"\ncost_per_hour = -1',
            "f.toml:3: backends.a.cost_per_hour: must be 0 to 1e+06, got -1",
        ),
        (
            '[defaults]\nserves = "gpus"\n[backends.gpu]\ntype = "x"',
            "f.toml:2: defaults.serves: unknown backend; did you mean `gpu`?",
        ),
        (
            '[defaults]\ntrain = "gpus"\n[backends.gpu]\ntype = "x"',
            "f.toml:2: defaults.train: unknown backend; did you mean `gpu`?",
        ),
        ("[server\n", "f.toml:1: Expected"),
        ("a = 1\na = 2\n", "f.toml:2: Cannot overwrite a value"),
    ],
)
def test_a_mistake_is_told_with_line_place_and_remedy(text: str, problem: str) -> None:
    (found,) = _problems(text)
    assert found.startswith(problem)


def test_all_mistakes_are_told_at_once_in_order() -> None:
    text = '[limits]\nkept_spans = "x"\n[server]\ntls = 1\nlisten = ":"\n'
    assert [found.split(" ")[0] for found in _problems(text)] == [
        "f.toml:2:",
        "f.toml:4:",
        "f.toml:5:",
    ]


def test_bytes_that_are_no_text_are_told() -> None:
    with pytest.raises(ConfigError, match="not UTF-8"):
        parse_config(b"\xff")


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:0", True),
        ("127.5.5.5:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("example.org:1", False),
        ("10.0.0.1:65535", False),
    ],
)
def test_addresses_know_whether_others_reach_them(text: str, loopback: bool) -> None:
    address = parse_address(text)
    assert address.loopback is loopback
    assert str(address) == text
