"""Code, inputs and checkpoints in; outputs, checkpoints and metrics out."""

from __future__ import annotations

import math
import sys

from worker_house import House

from hatoba.v1 import common_pb2, job_pb2, runner_pb2

REPORTS = """
import hatoba, os, sys
job = hatoba.current_job()
assert sys.path
for epoch in range(3):
    job.log_metrics({"loss": 1 / (epoch + 1), "bad": float("nan")}, step=epoch)
    job.progress(epoch + 1, 3, f"epoch {epoch + 1}/3")
with job.checkpoint(2, {"acc": 0.5}) as folder:
    (folder / "weights").write_bytes(b"w" * 1000)
(job.outputs / "model").write_bytes(b"m" * 10)
"""


async def test_code_and_inputs_are_there_before_the_command(house: House) -> None:
    code = house.server.store({"main.py": b"print(open('lib/x.txt').read())", "lib/x.txt": b"hi"})
    data = house.server.store({"part/one": b"1"})
    show = "cat $HATOBA_INPUTS/faces/part/one; ls -l $HATOBA_INPUTS/faces/part"
    script = f"cat lib/x.txt; echo more >> lib/x.txt; {show}"
    inputs = [job_pb2.Input(name="faces", manifest=data)]
    for attempt in ("a-1", "a-2"):
        house.shell(attempt, script, code=code, inputs=inputs)
        assert (await house.commit(attempt)).exit_code == 0
        await house.forgotten(attempt)
        # What the first wrote into its copy is not in the second's.
        text = house.server.log(attempt)
        assert text.startswith(b"hi1")
        assert b"-r--r--r--" in text


async def test_a_tree_that_is_not_stored_fails_the_staging(house: House) -> None:
    code = common_pb2.ManifestRef(digest="sha256:" + "0" * 64)
    house.shell("a-1", "true", code=code)
    commit = await house.commit("a-1")
    assert commit.kind == runner_pb2.EXIT_KIND_STAGING_FAILED
    assert not commit.HasField("start_time")
    await house.forgotten("a-1")


async def test_metrics_progress_checkpoints_and_outputs_come_out(house: House) -> None:
    house.run("a-1", sys.executable, "-c", REPORTS)
    commit = await house.commit("a-1")
    assert commit.exit_code == 0, house.server.log("a-1", "stderr")
    reports = house.heard.all("metrics", "a-1")
    samples = [sample for report in reports for sample in report.samples]
    assert [report.report for report in reports] == list(range(1, len(reports) + 1))
    losses = [(each.step, each.value) for each in samples if each.key == "loss"]
    assert losses == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert all(math.isnan(each.value) for each in samples if each.key == "bad")
    (checkpoint,) = house.heard.all("checkpoint", "a-1")
    assert (checkpoint.step, dict(checkpoint.metrics)) == (2, {"acc": 0.5})
    assert house.server.files(checkpoint.manifest) == {"weights": b"w" * 1000}
    assert house.server.files(commit.outputs) == {"model": b"m" * 10}
    await house.forgotten("a-1")


async def test_progress_is_told_while_the_job_runs(house: House) -> None:
    code = "import hatoba, time; hatoba.current_job().progress(1, 4, 'one'); time.sleep(60)"
    house.run("a-1", sys.executable, "-c", code)
    beat = await house.heard.wait("heartbeat", "a-1")
    assert (beat.progress.done, beat.progress.total, beat.progress.message) == (1, 4, "one")


async def test_a_retried_task_begins_from_the_checkpoint(house: House) -> None:
    manifest = house.server.store({"weights": b"w"})
    house.server.checkpoints["a-1"] = job_pb2.Checkpoint(step=7, manifest=manifest)
    code = (
        "import hatoba; found = hatoba.current_job().latest_checkpoint;"
        "print(found.name, (found / 'weights').read_text())"
    )
    house.run("a-1", sys.executable, "-c", code)
    await house.logged("a-1", b"step-7 w\n")


async def test_reports_that_were_not_stored_are_made_again_by_the_next_worker(
    house: House,
) -> None:
    house.server.silent |= {"metrics", "checkpoint"}
    house.run("a-1", sys.executable, "-c", REPORTS + "import time; time.sleep(60)")
    first = await house.heard.wait("metrics", "a-1")
    await house.heard.wait("checkpoint", "a-1")
    house.server.silent.clear()
    await house.restart_worker()
    await house.heard.until(
        lambda: [each for each in house.heard.all("metrics", "a-1")[1:] if each == first] != []
    )
    await house.heard.wait("checkpoint", "a-1", count=2)
    house.server.tell_stop("a-1")
    commit = await house.commit("a-1")
    steps = {s.step for r in house.heard.all("metrics", "a-1") for s in r.samples}
    assert steps == {0, 1, 2}
    assert house.server.files(commit.outputs) == {"model": b"m" * 10}


async def test_lines_that_are_no_reports_are_left_out(house: House) -> None:
    script = """
    echo 'not json' >> $HATOBA_SPOOL
    echo '{"t": 1, "metrics": {"loss": "many"}}' >> $HATOBA_SPOOL
    head -c 300000 /dev/zero | tr '\\0' x >> $HATOBA_SPOOL; echo >> $HATOBA_SPOOL
    echo '{"t": 1, "metrics": {"loss": 2}, "step": 1}' >> $HATOBA_SPOOL
    """
    house.shell("a-1", script)
    await house.commit("a-1")
    samples = [s for r in house.heard.all("metrics", "a-1") for s in r.samples]
    assert [(each.key, each.value, each.step) for each in samples] == [("loss", 2.0, 1)]


async def test_outputs_that_cannot_be_stored_fail_a_job_that_ended_well(house: House) -> None:
    house.shell("a-1", "ln -s /etc/passwd $HATOBA_OUTPUTS/out")
    commit = await house.commit("a-1")
    assert commit.kind == runner_pb2.EXIT_KIND_OUTPUT_FAILED
    assert "out" in commit.message
    house.shell("a-2", "ln -s /etc/passwd $HATOBA_OUTPUTS/out; exit 3")
    assert (await house.commit("a-2")).exit_code == 3


async def test_outputs_wait_for_a_server_that_is_away(house: House) -> None:
    house.shell(
        "a-1", "echo x > $HATOBA_OUTPUTS/kept; while ! test -e ../../../gate; do sleep 0.01; done"
    )
    await house.heard.wait("started", "a-1")
    await house.server.stop()
    (house.data / "gate").touch()
    await house.server.start()
    commit = await house.commit("a-1")
    assert house.server.files(commit.outputs) == {"kept": b"x\n"}
