"""`./scripts/errand` as a person and a program run it: real processes against the stack in this one."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ADMIN_KEY, Stack, chat
from tests.cutting_proxy import Cut, CuttingProxy
from tests.scripted_model import ScriptedModel, call

ROOT = Path(__file__).parent.parent
REPORT = "The harbour was dredged in March to a depth of fourteen metres. Night work ends in June."
SUM = [call("calculate", {"expression": "2+3"})]


class Ran:
    """A command that has ended."""

    def __init__(self, code: int | None, out: bytes, err: bytes) -> None:
        self.code = code
        self.out = out.decode()
        self.err = err.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def begin(stack: Stack, *arguments: str, url: str = "", **options: Any) -> asyncio.subprocess.Process:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ERRAND_URL": url or stack.base, "ERRAND_KEY": ADMIN_KEY}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE) | options
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scripts.cli", *arguments, env=environment, cwd=ROOT, **streams
    )


async def errand(stack: Stack, *arguments: str, given: bytes = b"", url: str = "") -> Ran:
    process = await begin(stack, *arguments, url=url)
    async with asyncio.timeout(60):
        out, err = await process.communicate(given)
    return Ran(process.returncode, out, err)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self._master = master
        self.process = process
        self.seen = ""

    @classmethod
    async def of(cls, stack: Stack, *arguments: str) -> Terminal:
        master, slave = pty.openpty()
        process = await begin(stack, *arguments, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        return cls(master, process)

    async def until(self, text: str) -> None:
        late = asyncio.get_running_loop().call_later(20, self.process.kill)
        while text not in self.seen and await self._read():
            pass
        late.cancel()
        assert text in self.seen, self.seen

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    async def ended(self) -> int:
        """Its exit code. A command that does not end is killed, so that the test does end."""
        late = asyncio.get_running_loop().call_later(20, self.process.kill)
        while await self._read():
            pass
        code = await self.process.wait()
        late.cancel()
        os.close(self._master)
        return code

    async def _read(self) -> bool:
        try:
            piece = await asyncio.to_thread(os.read, self._master, 4_096)
        except OSError:
            return False
        self.seen += piece.decode().replace("\r\n", "\n")
        return bool(piece)


@pytest.fixture
async def agents(make_stack: Any, scripted: ScriptedModel) -> Stack:
    made: Stack = await make_stack(workers=("batch",), openai_base_url=f"{scripted.base}/v1")
    return made


async def newest(stack: Stack, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = (await stack.call("GET", f"/api/jobs?type={kind}")).json["data"][0]
    return found


# -- agent -----------------------------------------------------------------------------------------------------------


async def test_an_agents_run_is_shown_as_it_goes(agents: Stack, scripted: ScriptedModel) -> None:
    """Thought, call, result, answer in their order, each once; then why it ended."""
    scripted.says(("I calculate it.", SUM), "It is 5.")
    ran = await errand(agents, "agent", "What is 2 + 3?", "--tool", "calculate", "--max-steps", "4")
    assert (ran.code, ran.err) == (0, "")
    head, _, summary = ran.out.rstrip("\n").rpartition("\n")
    assert head.rstrip("\n") == 'I calculate it.\n→ calculate {"expression": "2+3"}\n← 5\nIt is 5.'
    assert re.fullmatch(r"\[answered: 2 steps, \d+ tokens\]", summary)


async def test_options_of_an_agent_reach_its_job(agents: Stack, scripted: ScriptedModel) -> None:
    """A goal from standard input, one step, after which it must answer; --json is the final job and nothing else."""
    scripted.says(SUM, "Five.")
    ran = await errand(
        agents, "agent", "-", "--tool", "calculate", "--max-steps", "1", "--model", "other", "--timeout", "50",
        "--token-budget", "90000", "--json", given=b"Count.",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert (ran.json["result"]["stopReason"], ran.json["model"]) == ("maxSteps", "other")
    assert "Count." in scripted.requests[0]["messages"][1]["content"]
    assert [tool["function"]["name"] for tool in scripted.requests[0]["tools"]] == ["calculate"]


async def test_a_file_for_an_agent_is_uploaded_and_its_quotes_are_cited(
    agents: Stack, scripted: ScriptedModel, tmp_path: Path
) -> None:
    """A file and an id side by side; the answer's quote comes back with document and place."""
    path = tmp_path / "report.txt"
    path.write_text(REPORT)
    added = (await errand(agents, "documents", "add", str(path), "--json")).json
    scripted.says([call("read_document", {})], 'It was "dredged in March to a depth".')
    ran = await errand(agents, "agent", "When?", "--document", str(path))
    assert ran.code == 0, ran.err
    (document,) = re.findall(r"report\.txt is (doc_\w+)", ran.err)
    assert re.search(rf"“dredged in March to a depth”\s+\[{document} \d+–\d+\]", ran.out), ran.out
    ran = await errand(agents, "agent", "When?", "--document", added["documentId"], "--json")
    assert ran.code == 0, ran.err
    assert added["documentId"] in scripted.requests[-1]["messages"][1]["content"]
    assert (await errand(agents, "agent", "x", "--document", "nowhere.txt")).code == 2


async def test_a_question_without_a_terminal_names_the_command_that_answers(
    agents: Stack, scripted: ScriptedModel
) -> None:
    """Exit code 1 with the question; `jobs show` shows it too, and `jobs answer` lets the run end."""
    scripted.says(SUM, "It is 5.")
    options = ("agent", "Sum?", "--tool", "calculate", "--approve", "calculate")
    ran = await errand(agents, *options)
    assert ran.code == 1
    assert '? The agent wants to call calculate with {"expression":"2+3"}.' in ran.out
    job = (await newest(agents, "agent"))["jobId"]
    assert f"errand jobs answer {job} ANSWER" in ran.err
    shown = (await errand(agents, "jobs", "show", job)).out
    assert "question  The agent wants to call calculate" in shown
    assert f"errand jobs answer {job} ANSWER" in shown
    assert (await errand(agents, "jobs", "answer", job, "true")).code == 0
    assert (await agents.finished(job))["result"]["answer"] == "It is 5."
    shown = (await errand(agents, "jobs", "show", job)).out
    assert "It is 5.\n[answered: 2 steps" in shown
    scripted.says(SUM, "It is 5.")
    ran = await errand(agents, *options, "--json")
    assert (ran.code, ran.json["status"], ran.json["waiting"]["kind"]) == (1, "waiting", "input")


async def test_a_question_on_a_terminal_is_asked_and_the_run_goes_on(agents: Stack, scripted: ScriptedModel) -> None:
    """An empty line is no answer; what the first part of the run said is not said again after it."""
    scripted.says(("I will add.", [call("current_time", {}), *SUM]), "It is 5.")
    terminal = await Terminal.of(agents, "agent", "Sum?", "--approve", "calculate")
    await terminal.until("> ")
    terminal.type("\n")
    terminal.type("yes\n")
    assert await terminal.ended() == 0, terminal.seen
    assert terminal.seen.count("I will add.") == terminal.seen.count("It is 5.") == 1, terminal.seen
    assert terminal.seen.count("→ current_time") == terminal.seen.count("← 5") == 1, terminal.seen


async def test_ctrl_c_at_a_question_and_in_a_run_leaves_the_job(agents: Stack, scripted: ScriptedModel) -> None:
    """The command ends with 130 at once and says how to go on; the job is neither cancelled nor answered."""
    scripted.says(SUM, "It is 5.")
    terminal = await Terminal.of(agents, "agent", "Sum?", "--tool", "calculate", "--approve", "calculate")
    await terminal.until("> ")
    terminal.process.send_signal(signal.SIGINT)
    assert await terminal.ended() == 130, terminal.seen
    job = await newest(agents, "agent")
    assert job["status"] == "waiting"
    assert f"errand jobs tail {job['jobId']} follows it, errand jobs cancel {job['jobId']} ends it" in terminal.seen
    scripted.says(("Wait.", SUM), {"delay_s": 30, "reply": "late"})
    terminal = await Terminal.of(agents, "agent", "Sum?")
    await terminal.until("← 5")
    terminal.process.send_signal(signal.SIGINT)
    assert await terminal.ended() == 130, terminal.seen
    job = await newest(agents, "agent")
    assert (job["status"], f"{job['jobId']} goes on" in terminal.seen) == ("processing", True)


async def test_an_agent_that_fails_says_why(agents: Stack, scripted: ScriptedModel) -> None:
    scripted.says({"status": 400, "code": "bad", "message": "not like this"})
    ran = await errand(agents, "agent", "x")
    assert ran.code == 1
    assert "is failed: " in ran.err
    assert "(upstream_refused)" in ran.err
    assert (await errand(agents, "agent", "x", "--tool", "fly")).code == 1


# -- embed -----------------------------------------------------------------------------------------------------------


def ndjson(count: int) -> bytes:
    return b"".join(
        json.dumps({"id": f"n{n}", "text": f"Berth {n} of the harbour"}).encode() + b"\n" for n in range(count)
    )


async def test_a_file_is_embedded_and_its_upload_deleted(stack: Stack, tmp_path: Path) -> None:
    """One vector for each line, in order, with its id; nothing is left behind but the job."""
    source, target = tmp_path / "in.ndjson", tmp_path / "out.ndjson"
    source.write_bytes(ndjson(300))
    ran = await errand(stack, "embed", str(source), "-o", str(target), "--dimensions", "64", "--encoding", "float")
    assert (ran.code, ran.out, ran.err) == (0, "", "errand: 300 items, 64 dimensions\n")
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"n{n}" for n in range(300)]
    assert {len(line["embedding"]) for line in lines} == {64}
    assert (await stack.call("GET", "/api/documents")).json["data"] == []
    job = await newest(stack, "batch-embedding")
    shown = (await errand(stack, "jobs", "show", job["jobId"])).out
    assert "300 items, 64 dimensions" in shown
    assert f"errand jobs output {job['jobId']}" in shown


async def test_lines_of_plain_text_from_standard_input(stack: Stack) -> None:
    """Blank lines are no texts; ids are the numbers of the lines, whatever ends them and wherever reads fall."""
    text = "\ufeffone\r\n\nthree\n   \n" + "The crane lifts ninety tonnes — “again”.\r\n" * 8_000 + "zwölf ☃"
    ran = await errand(stack, "embed", "-", "--lines", "--keep", given=text.encode())
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["id"] for line in lines] == ["1", "3", *map(str, range(5, 8_006))]
    assert all(line["embedding"] == lines[2]["embedding"] for line in lines[2:-1])
    (kept,) = (await stack.call("GET", "/api/documents")).json["data"]
    assert f"{kept['documentId']} is kept" in ran.err
    bad = await errand(stack, "embed", "-", "--lines", given=b"good\nb\xffd\n")
    assert (bad.code, bad.err) == (2, "errand: -: line 2 is not UTF-8\n")


async def test_items_that_fail_are_counted_and_make_it_1(stack: Stack, tmp_path: Path) -> None:
    """Their lines hold their errors; the good ones are there. With -o, --json prints the job."""
    source, target = tmp_path / "in.ndjson", tmp_path / "out.ndjson"
    source.write_bytes(b'"good"\n{"id": "e", "text": ""}\n"good too"\n')
    ran = await errand(stack, "embed", str(source), "-o", str(target), "--json")
    assert (ran.code, ran.json["result"]["failed"]) == (1, 1)
    assert "3 items, 1 failed" in ran.err
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert ["error" in line for line in found] == [False, True, False]
    source.write_bytes(b'""\n')
    ran = await errand(stack, "embed", str(source))
    assert ran.code == 1
    assert "is failed: None of the 1 items could be embedded" in ran.err
    assert (await stack.call("GET", "/api/documents")).json["data"] == []


async def test_wrong_usage_of_embed_is_2(stack: Stack, tmp_path: Path) -> None:
    source = tmp_path / "in.ndjson"
    source.write_bytes(ndjson(2))
    for arguments in (["missing"], [str(source), "-o", str(source)], [str(source), "-o", "missing/out"]):
        ran = await errand(stack, "embed", *arguments)
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
    assert source.read_bytes() == ndjson(2)


async def test_an_upload_that_is_refused_half_way_says_why(make_stack: Any) -> None:
    """Some megabytes more than may be: the answer is told, not that there is no API."""
    stack = await make_stack(max_batch_bytes=100_000, max_upload_bytes=100_000)
    ran = await errand(stack, "embed", "-", "--lines", given=b"The crane lifts ninety tonnes.\n" * 400_000)
    assert ran.code == 1, ran.err
    assert "100000 bytes" in ran.err


async def test_an_output_that_is_cut_is_resumed_where_it_was(stack: Stack, tmp_path: Path) -> None:
    """Two connections broken in the middle of the output: the file is what an unbroken one gives."""
    source = tmp_path / "in.ndjson"
    source.write_bytes(ndjson(500))
    job = await errand(stack, "embed", str(source), "--json", "-o", str(tmp_path / "whole"))
    whole = (tmp_path / "whole").read_text()
    async with CuttingProxy(stack.base, Cut(100_000), Cut(70_000, reset=False), marker=b"/output HTTP") as proxy:
        ran = await errand(stack, "jobs", "output", job.json["jobId"], "--follow", url=proxy.url)
        assert (ran.code, ran.out == whole, proxy.made) == (0, True, 2), ran.err
    async with CuttingProxy(stack.base, Cut(100_000), Cut(300), marker=b"/output HTTP") as proxy:
        target = tmp_path / "cut"
        ran = await errand(stack, "embed", str(source), "-o", str(target), url=proxy.url)
        assert (ran.code, target.read_text() == whole, proxy.made) == (0, True, 2), ran.err


async def test_progress_is_one_line_on_a_terminal(stack: Stack, tmp_path: Path) -> None:
    """The vectors go to the file; the line is written over, and gone at the end."""
    source = tmp_path / "in.ndjson"
    source.write_bytes(ndjson(50))
    terminal = await Terminal.of(stack, "embed", str(source), "-o", str(tmp_path / "out"))
    assert await terminal.ended() == 0
    assert "\r\x1b[K100%  Finished 50 items\r\x1b[K" in terminal.seen, terminal.seen
    assert terminal.seen.count("\n") == 1


# -- jobs ------------------------------------------------------------------------------------------------------------


async def test_the_output_of_a_running_job_so_far_and_to_its_end(edge: Stack, tmp_path: Path) -> None:
    """Without --follow what is there, and a word about it; with it the rest, and the job's end as exit code."""
    from tests.test_output import PARTS, WHOLE, write, written

    job = await written(edge, (0,))
    ran = await errand(edge, "jobs", "output", job)
    assert (ran.code, ran.out) == (0, PARTS[0].decode())
    assert "--follow waits for the rest" in ran.err
    target = tmp_path / "out"
    process = await begin(edge, "jobs", "output", job, "--follow", "-o", str(target))
    async with asyncio.timeout(30):
        while not target.exists() or target.read_bytes() != PARTS[0]:
            await asyncio.sleep(0.02)
    await write(edge, job, 1, PARTS[1])
    await write(edge, job, 2, PARTS[2])
    await edge.call("DELETE", f"/api/jobs/{job}")
    await process.communicate()
    assert (process.returncode, target.read_bytes()) == (1, WHOLE)
    none = await errand(edge, "jobs", "output", await edge.submit(chat()))
    assert (none.code, "has no output" in none.err) == (1, True)


async def test_estimates_are_shown_and_spend_nothing(stack: Stack) -> None:
    body = json.dumps(chat(tokenBudget=1))
    ran = await errand(stack, "jobs", "estimate", body)
    assert ran.code == 0, ran.err
    assert "tokens  about 1, " in ran.out
    assert "limit   tokenBudget of the job is 1: it would stop there" in ran.out
    assert (await errand(stack, "jobs", "estimate", "-", "--json", given=body.encode())).json["costUsd"] is None
    assert (await stack.call("GET", "/api/jobs")).json["data"] == []
    assert (await errand(stack, "jobs", "estimate", "{broken")).code == 2


async def test_feedback_is_given_and_shown(stack: Stack) -> None:
    job = await stack.submit(chat("Say something short."))
    done = await stack.finished(job)
    assert (
        await errand(stack, "jobs", "feedback", job, "1", "--comment", "good")
    ).out == "noted; +1.00, the mean of 1\n"
    assert (await errand(stack, "jobs", "feedback", job, "-0.5", "--json")).json["feedback"]["count"] == 2
    shown = (await errand(stack, "jobs", "show", job)).out
    assert "feedback  +0.25, the mean of 2" in shown
    assert shown.rstrip("\n").endswith(done["result"]["text"].strip())
    assert (await errand(stack, "jobs", "feedback", job, "7")).code == 1
    assert (await errand(stack, "jobs", "feedback", job, "much")).code == 2


async def test_all_documents_are_listed(edge: Stack) -> None:
    """Given more documents than a page holds, then the command lists each of them."""
    made = await asyncio.gather(
        *(edge.call("POST", "/api/documents", {"text": f"Report {number}."}) for number in range(201))
    )
    listed = (await errand(edge, "documents", "list", "--json")).json["data"]
    assert {row["documentId"] for row in listed} == {answer.json["documentId"] for answer in made}


async def test_each_event_that_is_followed_has_a_line_of_its_own(stack: Stack) -> None:
    """Given a job whose text does not end with a line break, then the event after it begins a line."""
    ran = await errand(stack, "jobs", "submit", "--chat", "hello", "--tail")
    lines = ran.out.splitlines()
    assert (ran.code, lines[0]) == (0, "[1 job.queued]")
    assert any(line.endswith("You wrote: hello") for line in lines)
    assert all("[" not in line or line.startswith("[") for line in lines)
    assert lines[-1].endswith("job.complete]")
    asked = '{"type": "chat", "input": {"messages": [{"role": "user", "content": "x"}]}}'
    assert "start   at once" in (await errand(stack, "jobs", "estimate", asked)).out
