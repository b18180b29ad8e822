"""The commented `hatoba.toml` that `hatoba server init` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields

from hatoba_plugins.values import BackendOptions

PRETENDING = frozenset({"null", "mock"})
"""Types that are there for tests."""


def default_config_text(types: Mapping[str, type[BackendOptions]]) -> str:
    """A file that changes nothing: every setting with its default, and the options of `types`."""
    blocks = [_options("local", types["hosts"])] if "hosts" in types else []
    for name in sorted(types.keys() - PRETENDING - {"hosts"}):
        own = f'[backends.my-{name}]\ntype = "{name}"\n\n'
        blocks.append(own + _options(f"my-{name}", types[name]))
    return _TEMPLATE + "\n".join(map(_commented, blocks))


def _options(instance: str, options: type[BackendOptions]) -> str:
    settings = (f"{one.name} = {_toml(_default(one))}" for one in fields(options))
    return "\n".join((f"[backends.{instance}.options]", *settings))


def _commented(block: str) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in block.splitlines())


def _default(option: Field[object]) -> object:
    return option.default_factory() if option.default_factory is not MISSING else option.default


def _toml(value: object) -> str:
    """Texts, numbers, flags and lists of texts are in TOML as in JSON, and so is an empty table."""
    return json.dumps(value, ensure_ascii=False, default=str)


_TEMPLATE = """\
# Hatoba's server. Every setting is shown with its default; take the # away to change one.
# `hatoba server check` says whether this file is good.

[server]
# Where gRPC is answered. Port 0 takes any free port; clients on this machine find it.
# listen = "127.0.0.1:0"

# Where /metrics is answered, for Prometheus. Elsewhere than on loopback it needs a token.
# http_listen = "127.0.0.1:0"

# What workers and clients on other machines dial, when it is not `listen`.
# advertise = "hatoba.example.org:7420"

# "auto": plaintext on loopback, elsewhere certificates from an authority made in the data
# directory (clients need its tls/ca.pem). "files": your own. "off": only on loopback.
# tls = "auto"
# tls_cert = "/etc/hatoba/server.pem"
# tls_key = "/etc/hatoba/server.key"

# Lets tools such as grpcurl list the services; needs a token either way.
# reflection = true

# "debug", "info" or "warning".
# log_level = "info"

# All new traces are kept up to so many a second, above that a share of them.
# trace_full_below = 50.0
# trace_share = 0.1

# A collector that gets every kept span, for example "http://localhost:4317".
# otlp_endpoint = ""

[limits]
# One message, either way. Files go through chunks and are not bound by it.
# max_message_bytes = 4194304

# Calls at once, streams at once (watchers and followers of logs); more are RESOURCE_EXHAUSTED.
# max_concurrent_calls = 2000
# max_streams = 10000

# Of these, what one principal may have under way. Workers and routers are not counted.
# calls_per_principal = 500
# streams_per_principal = 6000

# Changing calls, and jobs submitted, that one principal may send in a second; of both, what two
# seconds allow may come at once. More are RESOURCE_EXHAUSTED, with the delay after which to repeat.
# changes_per_second = 10000.0
# jobs_per_second = 100000.0

# Events by which a watcher may be behind; one further behind is told to read the state anew.
# watch_behind = 1000000

# Longest time for a call that is no stream.
# max_unary_seconds = 60.0

# Spans kept in the data directory for `hatoba jobs trace`; the oldest go first.
# kept_spans = 100000

[scheduling]
# A job takes the place of running ones whose priority is so much lower; smaller differences only
# say who goes first. Jobs with `preemption: {never: true}` keep their place.
# preempt_gap = 100

# Waiting so many seconds is worth one step of priority, so that nothing waits for ever.
# ageing = 600.0

# A large job that has waited so long has a place drained for it, where it cannot be known when
# what runs there ends.
# patience = 1800.0

[blobs]
# Where chunks of code, data, outputs and models are kept: a bucket and a prefix in it, such as
# "s3://team/hatoba". Empty: in the data directory. Credentials come from the server's environment
# (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), never from this file.
# url = ""

# For a store that is not AWS's own, also for buckets that data is imported from. Plain http needs
# `allow_http` as well.
# endpoint = "https://objects.example.org"
# region = "eu-central-1"
# allow_http = false
# virtual_hosted_style = false

# How long what was sent is kept before anything names it. Longer than the longest pause between
# sending a tree and submitting what uses it, on the slowest line.
# lease_seconds = 3600.0

[webhooks]
# Hosts to which events may be posted; a star stands for any text. Whoever may make webhooks can
# have this server post to any of them, inside your network too: name yours where that matters.
# allow = ["*"]

[devices]
# Where devices are answered, for example "0.0.0.0:7430". Always TLS, on both sides by certificates
# of the authority in the data directory. Empty: there is no such port, and no devices.
# listen = ""

# What devices dial, when it is not `listen`.
# advertise = "hatoba.example.org:7430"

# Seconds after which a device that has nothing to say says that it lives. Longer spares its link;
# one that says nothing for three times as long is taken for away.
# alive_every = 30.0

# Life of a device's certificate. It asks for the next when two thirds are over, and may still ask
# for as long again after its end; one that was off for longer has to be enrolled anew.
# certificate_days = 90

[defaults]
# Which backend trains when a job names none.
# train = "local"

# Which backend keeps a deployment that names none. Default: the first that can.
# serves = "local"

# Backends: a name of yours, the type that a plug-in brings, and its options.
# Without any, one of type "hosts" runs jobs on this machine. The options are all shown with their
# defaults; what each means, and what a type needs, stands in docs/backends.
# [backends.local]
# type = "hosts"
# Price of an hour of a task there: of those that could take a job, the cheapest gets it.
# cost_per_hour = 0.0
# Seconds after which a call to it is given up.
# deadline = 30.0
# Seconds for which something of ours that nobody wants is left alone there.
# reap_after = 300.0
#
"""
