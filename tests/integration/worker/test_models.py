"""Models that jobs log: brought out with the commit, by whichever worker is there then."""

from __future__ import annotations

import sys

from worker_house import House

from hatoba.v1 import common_pb2, runner_pb2

SERVE = b"""
class Adds:
    def __init__(self, model_dir):
        self.term = int((model_dir / "term").read_text())

    def predict(self, inputs):
        return {"sum": inputs["x"] + self.term}
"""
LOGS = """
import hatoba, os, pathlib, sys
job = hatoba.current_job()
sys.path.insert(0, "")
for term in (1, 2):
    (job.outputs / "term").write_text(str(term))
    job.log_model(
        "adds", job.outputs, handler="serve:Adds", example={"x": 1}, metrics={"term": term},
        parent="adds:6", max_batch=4,
    )
    job.log_metrics({"term": term}, step=term)
"""


def serving(house: House) -> common_pb2.ManifestRef:
    return house.server.store({"serve.py": SERVE})


async def test_logged_models_come_with_the_commit(house: House) -> None:
    house.run("a-1", sys.executable, "-c", LOGS, code=serving(house))
    commit = await house.commit("a-1")
    assert commit.exit_code == 0, house.server.log("a-1", "stderr")
    first, second = commit.models
    assert house.server.files(first.manifest) == {"term": b"1"}
    assert house.server.files(second.manifest) == {"term": b"2"}
    assert (first.model, first.parent, dict(first.metrics)) == ("adds", "adds:6", {"term": 1.0})
    assert (first.serving.handler, first.serving.max_batch) == ("serve:Adds", 4)
    assert first.serving.example.data == b'{"x":1}'
    assert first.signature.output["properties"]["sum"]["type"] == "integer"
    assert not first.serving.HasField("code")
    await house.forgotten("a-1")


async def test_code_of_a_models_own_is_brought_out_too(house: House) -> None:
    script = LOGS.replace("max_batch=4", "code=pathlib.Path('own')")
    code = house.server.store({"own/serve.py": SERVE, "train.py": b"pass"})
    house.run("a-1", sys.executable, "-c", script, code=code)
    commit = await house.commit("a-1")
    assert commit.exit_code == 0, house.server.log("a-1", "stderr")
    assert [house.server.files(each.serving.code) for each in commit.models] == [
        {"serve.py": SERVE}
    ] * 2


async def test_a_job_that_does_not_end_well_makes_no_model(house: House) -> None:
    house.run("a-1", sys.executable, "-c", LOGS + "sys.exit(3)", code=serving(house))
    commit = await house.commit("a-1")
    assert (commit.exit_code, list(commit.models)) == (3, [])
    assert house.server.files(commit.outputs) == {"term": b"2"}


async def test_a_model_that_cannot_be_stored_fails_a_job_that_ended_well(house: House) -> None:
    script = LOGS + "os.symlink('/etc/passwd', job.directory / 'models/2/files/link')"
    house.run("a-1", sys.executable, "-c", script, code=serving(house))
    commit = await house.commit("a-1")
    assert commit.kind == runner_pb2.EXIT_KIND_OUTPUT_FAILED
    assert "adds" in commit.message
    assert list(commit.models) == []


async def test_models_outlive_workers_and_wait_for_the_server(house: House) -> None:
    gate = house.data / "gate"
    wait = f"\nimport time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    house.run("a-1", sys.executable, "-c", LOGS + wait, code=serving(house))
    await house.heard.until(
        lambda: (
            [s for r in house.heard.all("metrics", "a-1") for s in r.samples if s.step == 2] != []
        )
    )
    await house.restart_worker()
    await house.kill_worker()
    await house.server.stop()
    gate.touch()
    await house.server.start()
    await house.start_worker()
    commit = await house.commit("a-1")
    assert commit.exit_code == 0
    terms = [house.server.files(each.manifest)["term"] for each in commit.models]
    assert terms == [b"1", b"2"]


async def test_an_environment_without_our_packages_can_serve(house: House) -> None:
    code = "import hatoba_worker.serving.server, hatoba.handlers, h11; print(h11.__version__)"
    library = house.data / "lib"
    script = f"import sys; sys.path.append({str(library)!r}); {code}"
    house.run("a-1", sys.executable, "-I", "-S", "-c", script)
    commit = await house.commit("a-1")
    assert commit.exit_code == 0, house.server.log("a-1", "stderr")
