"""The small parts of the worker, one by one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hatoba.v1 import job_pb2, runner_pb2, worker_pb2
from hatoba_worker import exits, punch, spans, trees
from hatoba_worker.attempts import Attempt
from hatoba_worker.config import BadConfig, Config, load
from hatoba_worker.environments import Interpreter, normalised
from hatoba_worker.failures import AttemptFailed
from hatoba_worker.homes import DIRECTORIES, Homes
from hatoba_worker.host import Identity
from hatoba_worker.host_secrets import Secrets, variable
from hatoba_worker.keeper.messages import Exit, Reason, SpawnFailed, Usage
from hatoba_worker.session import Backoff
from hatoba_worker.tails import last_lines

TRACE = "0123456789abcdef0123456789abcdef"


def attempt(**fields: object) -> Attempt:
    launch = worker_pb2.LaunchAttempt(attempt="a-1", **fields)  # type: ignore[arg-type]
    return Attempt(launch, "nonce", "/nowhere/a-1", 0)


def ended(reason: Reason, code: int | None = None, signal: int | None = None) -> Exit:
    return Exit(code, signal, reason == "oom", reason, 0.0, Usage(0.0, 0.0, 0))


def test_exits_are_told_apart() -> None:
    one = attempt()
    assert exits.of_exit(one, ended("exited", 0)).good
    assert exits.of_exit(one, ended("exited", 3)).exit_code == 3
    assert exits.of_exit(one, ended("exited", signal=11)).kind == exits.SIGNALED
    assert exits.of_exit(one, ended("oom", signal=9)).kind == exits.OUT_OF_MEMORY
    assert exits.of_exit(one, ended("stop", signal=15)).kind == exits.STOPPED
    assert exits.of_exit(one, None).kind == exits.LOST


def test_an_end_of_its_own_before_our_signal_stays_its_own() -> None:
    one = attempt()
    one.why = "stop"
    assert exits.of_exit(one, ended("exited", 0)).good
    one.why = "timeout"
    assert exits.of_exit(one, ended("exited", 2)).exit_code == 2
    assert exits.of_exit(one, ended("stop", signal=15)).kind == exits.RUN_TIMEOUT


@pytest.mark.parametrize(
    ("kind", "stopped", "expected"),
    [
        ("not_found", False, runner_pb2.EXIT_KIND_NOT_FOUND),
        ("not_executable", False, runner_pb2.EXIT_KIND_NOT_EXECUTABLE),
        ("cwd_missing", False, runner_pb2.EXIT_KIND_STAGING_FAILED),
        ("other", False, runner_pb2.EXIT_KIND_STAGING_FAILED),
        ("tombstone", True, runner_pb2.EXIT_KIND_STOPPED),
        ("tombstone", False, runner_pb2.EXIT_KIND_LOST),
    ],
)
def test_commands_that_did_not_start(
    kind: str, stopped: bool, expected: runner_pb2.ExitKind.ValueType
) -> None:
    one = attempt()
    one.why = "stop" if stopped else None
    failed = SpawnFailed("a-1", 2, kind, "why")  # type: ignore[arg-type]
    assert exits.of_spawn(one, failed).kind == expected


def test_the_back_off_grows_to_five_seconds_with_full_jitter() -> None:
    backoff = Backoff(lambda: 1.0)
    waits = [backoff.next() for _ in range(9)]
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    assert backoff.next() == 0.05
    assert Backoff(lambda: 0.0).next() == 0.0


def test_spans_have_ids_that_survive_a_restart() -> None:
    parent = f"00-{TRACE}-00f067aa0ba902b7-01"
    kept = spans.Spans()
    kept.add(attempt(traceparent=parent).launch, "job.exec", (1, 2))
    item = kept.take()
    assert item is not None
    (span,) = item.spans.spans
    assert spans.exec_context("a-1", parent) == f"00-{TRACE}-{span.span_id}-01"
    assert kept.take() is None


@pytest.mark.parametrize(
    "text",
    ["", "x", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{TRACE}-{'0' * 16}-01", f"{TRACE}-01"],
)
def test_a_trace_context_that_is_none_makes_no_spans(text: str) -> None:
    kept = spans.Spans()
    kept.add(attempt(traceparent=text).launch, "job.exec", (1, 2))
    assert kept.take() is None
    assert spans.exec_context("a-1", text) == ""


def test_python_and_scripts_are_run_by_the_interpreter() -> None:
    found = Interpreter("/venv/bin/python", "/venv/bin")
    assert found.command(["python3", "x.py"]) == ["/venv/bin/python", "x.py"]
    assert found.command(["train.py", "-v"]) == ["/venv/bin/python", "train.py", "-v"]
    assert found.command(["torchrun"]) == ["torchrun"]
    assert Interpreter().command(["python"]) == ["python"]


def test_requirements_are_the_same_without_comments_and_blank_lines() -> None:
    assert normalised("# top\n\na==1  # why\n  b\n") == normalised("a==1\nb") == "a==1\nb"
    assert normalised("a @ https://x/y#egg=a") == "a @ https://x/y#egg=a"


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert last_lines(str(path)) == []
    path.write_bytes(b"".join(b"line %d\n" % n for n in range(50_000)) + b"\xff\0" + b"x" * 600)
    lines = last_lines(str(path))
    assert len(lines) == 20
    assert lines[0] == "line 49981"
    assert lines[-1] == "\ufffd" + "x" * 511


def test_a_hole_leaves_sizes_and_offsets(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a" * 65_536 + b"b" * 65_536)
    assert punch.out(str(path), 65_536)
    assert path.stat().st_size == 131_072
    assert path.read_bytes() == bytes(65_536) + b"b" * 65_536
    assert path.stat().st_blocks * 512 <= 65_536
    assert punch.out(str(tmp_path / "absent"), 4096)


class TestSecrets:
    def test_files_come_before_variables(self, tmp_path: Path) -> None:
        secrets = Secrets(tmp_path, {"HATOBA_SECRET_TOKEN": "from env", "HATOBA_SECRET_": "x"})
        ref = job_pb2.SecretRef(name="token")
        assert secrets.resolve([ref]) == {"TOKEN": "from env"}
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "token").write_text("from file\n")
        (tmp_path / "secrets" / "token").chmod(0o600)
        assert secrets.resolve([ref]) == {"TOKEN": "from file"}
        assert secrets.names() == ["TOKEN", "token"]

    @pytest.mark.parametrize("name", ["../token", "", "a/b"])
    def test_a_name_never_leaves_the_directory(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "token").write_text("x")
        with pytest.raises(AttemptFailed) as caught:
            Secrets(tmp_path, {}).resolve([job_pb2.SecretRef(name=name)])
        assert caught.value.kind == runner_pb2.EXIT_KIND_SECRET_MISSING

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "secrets").mkdir()
        (tmp_path / "target").write_text("x")
        (tmp_path / "target").chmod(0o600)
        (tmp_path / "secrets" / "token").symlink_to(tmp_path / "target")
        with pytest.raises(AttemptFailed):
            Secrets(tmp_path, {}).resolve([job_pb2.SecretRef(name="token")])

    def test_the_variable_of_a_name(self) -> None:
        assert variable("db.pass-word") == "DB_PASS_WORD"


class TestHomes:
    def make(self, tmp_path: Path) -> Homes:
        homes = Homes(tmp_path, {"stdout.log"})
        homes.prepare()
        return homes

    def test_one_that_is_empty_again_is_given_out_again(self, tmp_path: Path) -> None:
        homes, first, second = self.make(tmp_path), tmp_path / "one", tmp_path / "two"
        homes.make(str(first))
        inode = first.stat().st_ino
        (first / "stop").touch()
        assert homes.take_back(str(first), {"stop", "absent"})
        homes.make(str(second))
        assert second.stat().st_ino == inode
        assert sorted(os.listdir(second)) == sorted(DIRECTORIES)
        assert not first.exists()

    def test_its_logs_come_again_empty(self, tmp_path: Path) -> None:
        homes, first, second = self.make(tmp_path), tmp_path / "one", tmp_path / "two"
        homes.make(str(first))
        log = first / "stdout.log"
        log.touch(mode=0o600)
        inode = log.stat().st_ino
        log.write_text("said by the one before")
        assert homes.take_back(str(first), set())
        homes.make(str(second))
        assert (second / "stdout.log").stat().st_ino == inode
        assert (second / "stdout.log").read_bytes() == b""

    @pytest.mark.parametrize("what", ["mode", "link", "second name"])
    def test_a_log_that_is_not_as_it_was_made_is_left_alone(
        self, tmp_path: Path, what: str
    ) -> None:
        homes, home, kept = self.make(tmp_path), tmp_path / "one", tmp_path / "kept"
        homes.make(str(home))
        kept.touch(mode=0o600)
        kept.write_text("still wanted")
        match what:
            case "mode":
                (home / "stdout.log").touch(mode=0o644)
            case "link":
                (home / "stdout.log").symlink_to(kept)
            case _:
                (home / "stdout.log").hardlink_to(kept)
        assert not homes.take_back(str(home), set())
        assert kept.read_text() == "still wanted"

    def test_more_than_enough_are_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hatoba_worker.homes.MOST_SPARE", 0)
        homes, home = self.make(tmp_path), tmp_path / "one"
        homes.make(str(home))
        (home / "stdout.log").touch(mode=0o600)
        assert homes.take_back(str(home), set())
        assert not home.exists()

    @pytest.mark.parametrize("what", ["file", "nested", "mode", "link", "missing"])
    def test_one_that_is_not_as_it_was_made_is_not(self, tmp_path: Path, what: str) -> None:
        homes, home = self.make(tmp_path), tmp_path / "one"
        homes.make(str(home))
        match what:
            case "file":
                (home / "other").touch()
            case "nested":
                (home / "work" / "x").touch()
            case "mode":
                (home / "work").chmod(0o755)
            case "link":
                (home / "work").rmdir()
                (home / "work").symlink_to("/tmp")
            case _:
                (home / "work").rmdir()
        assert not homes.take_back(str(home), set())
        assert home.exists()


class TestTrees:
    def test_a_copy_is_its_own_and_writable(self, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        (tree / "sub").mkdir(parents=True)
        (tree / "sub" / "run.sh").write_bytes(b"x" * 100_000)
        (tree / "sub" / "run.sh").chmod(0o555)
        (tree / "link").symlink_to("sub/run.sh")
        (tree / "empty").touch()
        trees.replicate(tree, tmp_path / "copy", trees.clone)
        copy = tmp_path / "copy"
        assert (copy / "sub" / "run.sh").read_bytes() == b"x" * 100_000
        assert (copy / "sub" / "run.sh").stat().st_mode & 0o777 == 0o755
        assert os.readlink(copy / "link") == "sub/run.sh"
        (copy / "sub" / "run.sh").write_bytes(b"")
        assert (tree / "sub" / "run.sh").stat().st_size == 100_000

    def test_the_least_recently_used_go_first_and_pinned_ones_stay(self, tmp_path: Path) -> None:
        names = [digit * 64 for digit in "abcd"]
        for age, name in enumerate(names):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_bytes(b"x" * 1000)
            os.utime(tmp_path / name, (age, age))
        trees.shrink(tmp_path, 2000, frozenset({names[0]}))
        assert sorted(os.listdir(tmp_path)) == [names[0], names[3]]

    def test_what_was_not_fetched_to_its_end_is_cleared_away(self, tmp_path: Path) -> None:
        (tmp_path / ("a" * 64)).mkdir()
        (tmp_path / f".{'b' * 64}.77").mkdir()
        trees.tidy(tmp_path)
        assert os.listdir(tmp_path) == ["a" * 64]


class TestIdentity:
    def test_a_name_is_kept(self, tmp_path: Path) -> None:
        first = Identity.load(tmp_path, "", embedded=False)
        assert Identity.load(tmp_path, "", embedded=False) == first
        other = tmp_path / "other"
        other.mkdir()
        assert Identity.load(other, "", embedded=False).name != first.name

    def test_another_name_for_the_same_directory_is_refused(self, tmp_path: Path) -> None:
        Identity.load(tmp_path, "one", embedded=False)
        with pytest.raises(ValueError, match="belongs to the host 'one'"):
            Identity.load(tmp_path, "two", embedded=False)

    def test_a_bad_name_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is not a host's name"):
            Identity.load(tmp_path, "Über", embedded=False)


class TestConfig:
    def test_what_was_saved_is_loaded(self, tmp_path: Path) -> None:
        config = Config(tmp_path, server="h:1", cpus=1.5, labels={"a": "b"}, gpus=2)
        config.save()
        assert load(tmp_path) == config
        assert load(tmp_path, embedded=True).embedded

    def test_without_a_file_everything_is_as_the_machine_has_it(self, tmp_path: Path) -> None:
        config = load(tmp_path)
        cpus, memory, slots = config.resolved()
        assert cpus == os.cpu_count()
        assert memory > 1 << 20
        assert slots == 32 * cpus
        assert config.token_path == tmp_path / "worker.token"

    @pytest.mark.parametrize("text", ["{", '{"colour": 1}', "[]"])
    def test_a_file_that_is_wrong_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "worker.json").write_text(text)
        with pytest.raises(BadConfig):
            load(tmp_path)
