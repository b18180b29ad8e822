"""What is posted where, how it is signed, and when it is tried again."""

from __future__ import annotations

import pytest

from hatoba.webhooks import BadSignature, verify
from hatoba_scheduler.domain.webhooks import (
    KEPT,
    LONGEST_PAUSE,
    delivery_id,
    pause,
    signature,
    too_old,
    url_problem,
)


def test_pauses_grow_to_a_quarter_of_an_hour_and_stay_apart() -> None:
    least = [pause(failures, 0.0) for failures in range(1, 40)]
    most = [pause(failures, 1.0) for failures in range(1, 40)]
    assert least[:4] == [0.5, 1.0, 2.0, 4.0]
    assert most[:4] == [1.0, 2.0, 4.0, 8.0]
    assert most[-1] == LONGEST_PAUSE == 900.0
    assert least[-1] == 450.0


def test_an_event_is_given_up_after_a_week() -> None:
    assert not too_old(0, KEPT)
    assert too_old(0, KEPT + 1)


def test_a_delivery_has_one_name_for_ever_and_another_after_a_restore() -> None:
    assert delivery_id("u", 1, 7) == delivery_id("u", 1, 7)
    assert len({delivery_id("u", 1, 7), delivery_id("u", 2, 7), delivery_id("v", 1, 7)}) == 3


def test_a_receiver_believes_its_own_key_alone_and_for_a_while() -> None:
    header = signature("key", 1_000, b"{}")
    verify(b"{}", header, "key", now=1_200)
    verify(b"{}", header + ",v1=00", "key", now=1_000)
    for body, key, now in ((b"{ }", "key", 1_000), (b"{}", "other", 1_000), (b"{}", "key", 1_400)):
        with pytest.raises(BadSignature):
            verify(body, header, key, now=now)


@pytest.mark.parametrize("header", ["", "v1=00", "t=1", "t=a,v1=00", "t=1,t=2,v1=00", "t=²,v1=0"])
def test_what_is_no_signature_is_refused(header: str) -> None:
    with pytest.raises(BadSignature, match="is no signature"):
        verify(b"{}", header, "key")


@pytest.mark.parametrize(
    ("url", "allowed", "words"),
    [
        ("https://hooks.example.org/x", ("*",), ""),
        ("http://10.0.0.1:8080/x", ("*",), ""),
        ("https://A.Example.org/x", ("*.example.org",), ""),
        ("https://example.org/x", ("*.example.org",), "not among those"),
        ("https://evil.org/?a.example.org", ("*.example.org",), "not among those"),
        ("http://169.254.169.254/", ("*",), "link-local"),
        ("http://169.254.169.254/", ("169.254.169.254",), ""),
        ("http://169.254.169.254/", ("169.254.*",), "link-local"),
        ("ftp://a/", ("*",), "must begin with http"),
        ("//a/", ("*",), "must begin with http"),
        ("http:///x", ("*",), "names no host"),
        ("http://a:0/", ("*",), "names no host"),
        ("http://a:b/", ("*",), "no address"),
        ("http://[::1/", ("*",), "no address"),
        ("http://u@a/", ("*",), "user or password"),
    ],
)
def test_where_may_be_posted(url: str, allowed: tuple[str, ...], words: str) -> None:
    found = url_problem(url, allowed)
    assert words in found
    assert bool(found) == bool(words)
