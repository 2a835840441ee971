"""`errand prompts` and `errand experiments`, as a person and a pipeline run them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scripts.commands.prompt_files import BadFileError, difference, read, written
from shared.prompts import Content
from shared.specs import ChatMessage
from tests.conftest import DevModel, Stack
from tests.prompting import make, path_of, version
from tests.test_cli import errand

TRIAGE = """\
description: Sorts what comes in
labels:
- production
messages:
- role: system
  content: |
    You sort requests.

    Be {{tone}}.
- role: user
  content: '{{request}}'
variables:
  tone:
    default: brief
  request: {}
model: gpt-4o-mini
parameters:
  temperature: 0.2
"""


async def test_a_prompt_is_made_moved_and_looked_at(edge: Stack, tmp_path: Path) -> None:
    """Given a file, then a prompt is made of it, gets a second version, its label is moved and rolled back, and each is
    shown as it is."""
    file = tmp_path / "triage.yaml"
    file.write_text(TRIAGE)
    made = await errand(edge, "prompts", "create", "support/triage", str(file), "--note", "first")
    assert (made.code, made.out.strip()) == (0, "support/triage@1"), made.err
    second = TRIAGE.replace("Be {{tone}}.", "Always be {{tone}}.").encode()
    added = await errand(edge, "prompts", "add", "support/triage", "-", "--label", "staging", given=second)
    assert added.out.strip() == "support/triage@2", added.err
    shown = await errand(edge, "prompts", "show", "support/triage")
    assert "support/triage@1  (production; 2 versions)" in shown.out
    assert "first" in shown.out
    differs = await errand(edge, "prompts", "diff", "support/triage", "production", "staging")
    assert "[-Be-]{+Always be+} {{tone}}" in differs.out
    filled = await errand(edge, "prompts", "render", "support/triage", "request=a=b", "--label", "staging")
    assert "Always be brief." in filled.out
    assert filled.out.rstrip().endswith("[user]\na=b")
    assert (await errand(edge, "prompts", "render", "support/triage")).code == 1
    moved = await errand(edge, "prompts", "label", "support/triage", "production", "2", "--protect", "--note", "better")
    assert moved.out.strip() == "production → version 2, before it 1 (protected)"
    stale = await errand(edge, "prompts", "label", "support/triage", "production", "1", "--if-rev", "1")
    assert stale.code == 1
    assert "ETag" in stale.err
    back = await errand(edge, "prompts", "rollback", "support/triage", "--json")
    assert back.json["version"] == 1
    assert "production → version 1" in (await errand(edge, "prompts", "labels", "support/triage")).out
    log = await errand(edge, "prompts", "audit", "support/triage")
    assert "prompt.rolled_back" in log.out
    listed = await errand(edge, "prompts", "list", "--prefix", "support")
    assert "production=1, staging=2" in listed.out
    versions = await errand(edge, "prompts", "versions", "support/triage", "--json")
    assert [row["version"] for row in versions.json["data"]] == [2, 1]
    assert (await errand(edge, "prompts", "unlabel", "support/triage", "staging")).code == 0
    assert "no job has ended" in (await errand(edge, "prompts", "stats", "support/triage")).out
    assert (await errand(edge, "prompts", "archive", "support/triage")).code == 0
    assert (await errand(edge, "prompts", "show", "support/triage")).code == 1


async def test_questions_may_name_a_prompt(stack: Stack, model: DevModel, tmp_path: Path) -> None:
    """Given a prompt with a text and a number, then a chat and a job say it with the values that were set."""
    file = tmp_path / "ask.yaml"
    file.write_text(
        "messages:\n- {role: system, content: 'In {{n}} words, {{how}}.'}\n"
        "variables: {n: {type: integer}, how: {}}\nlabels: [production]\n"
    )
    assert (await errand(stack, "prompts", "create", "ask", str(file))).code == 0
    given = ("--prompt", "ask", "--set", "n:=5", "--set", "how=a=b")
    assert (await errand(stack, "chat", "Hello?", *given)).code == 0
    done = await errand(stack, "jobs", "submit", "--chat", "Hello?", "--wait", "--json", *given)
    assert done.json["prompt"]["name"] == "ask"
    for call in (await model.stats(calls=True))["list"]:
        assert call["body"]["messages"][0] == {"role": "system", "content": "In 5 words, a=b."}
    assert (await errand(stack, "chat", "", *given)).code == 0
    assert len((await model.stats(calls=True))["list"][-1]["body"]["messages"]) == 1
    assert (await errand(stack, "chat", "x", "--prompt", "ask@one")).code == 2
    assert (await errand(stack, "chat", "x", "--set", "n=1")).code == 2
    wrong = await errand(stack, "chat", "x", "--prompt", "ask:staging", "--set", "n=1", "--set", "how=x")
    assert (wrong.code, "$.prompt.label" in wrong.err) == (1, True)


async def test_files_go_there_and_back_unchanged(edge: Stack, tmp_path: Path) -> None:
    """Given files in folders, then a dry run says what pushing does and does nothing; pushing does it; pulling after it
    changes no byte; pushing again does nothing; a changed file is one new version with its label."""
    folder = tmp_path / "prompts"
    (folder / "support").mkdir(parents=True)
    file = folder / "support/triage.yaml"
    file.write_text(TRIAGE)
    (folder / "plain.json").write_text('{"messages": [{"role": "user", "content": "{{q}}"}]}')
    dry = await errand(edge, "prompts", "push", str(folder), "--dry-run")
    assert dry.code == 0, dry.err
    assert "support/triage: new" in dry.out
    assert "2 of 2 prompts: would be done" in dry.out
    assert (await edge.call("GET", path_of("support/triage"))).status == 404
    assert file.read_text() == TRIAGE
    done = await errand(edge, "prompts", "push", str(folder))
    assert "2 of 2 prompts: done" in done.out, done.err
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    pulled = await errand(edge, "prompts", "pull", str(folder))
    assert pulled.out.strip() == "nothing changed in 2 files", pulled.out
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    assert "content: |" in file.read_text()
    assert "0 of 2 prompts: done" in (await errand(edge, "prompts", "push", str(folder))).out
    file.write_text(file.read_text().replace("You sort requests.", "You sort letters."))
    changed = await errand(edge, "prompts", "push", str(folder))
    assert "support/triage: version 2" in changed.out
    assert "You sort [-requests-]{+letters+}" in changed.out
    assert "label production → version 2" in changed.out
    shown = (await edge.call("GET", path_of("support/triage"))).json
    assert (shown["version"], shown["labels"]) == (2, ["production"])


async def test_what_somebody_else_changed_is_not_overwritten(edge: Stack, tmp_path: Path) -> None:
    """Given a prompt that was changed on the server after it was pulled, when its changed file is pushed, then nothing
    is, and who changed it is said; with --force it is; and a bad file stops all."""
    await make(edge, labels=["production"])
    assert (await errand(edge, "prompts", "pull", str(tmp_path))).code == 0
    file = tmp_path / "greeting.yaml"
    await version(edge, "Changed by hand for {{name}}.")
    file.write_text(file.read_text().replace("You greet", "You welcome"))
    (tmp_path / "other.yaml").write_text(TRIAGE)
    refused = await errand(edge, "prompts", "push", str(tmp_path))
    assert refused.code == 1
    assert "the server has version 2" in refused.err
    assert "nothing was pushed: 1 of 2" in refused.err
    assert (await edge.call("GET", path_of("other"))).status == 404
    (tmp_path / "bad.yaml").write_text("messages:\n- role: user\n  content: '{{a b}}'\n")
    (tmp_path / "worse.yaml").write_text("messages: [")
    bad = await errand(edge, "prompts", "push", str(tmp_path), "--force")
    assert bad.code == 1
    assert "bad.yaml: $.messages[0].content" in bad.err
    assert "worse.yaml: line 1" in bad.err
    assert (await edge.call("GET", path_of("other"))).status == 404
    for name in ("bad", "worse"):
        (tmp_path / f"{name}.yaml").unlink()
    forced = await errand(edge, "prompts", "push", str(tmp_path), "--force")
    assert (forced.code, "greeting: version 3" in forced.out) == (0, True), forced.err
    assert (await errand(edge, "prompts", "push", str(tmp_path / "nowhere"))).code == 2


async def test_shared_prompts_are_pulled_apart(edge: Stack, tmp_path: Path) -> None:
    assert (await errand(edge, "prompts", "pull", str(tmp_path), "--shared")).code == 0
    file = tmp_path / "errand/agent/last.yaml"
    file.write_text(file.read_text().replace("You can call no more tools.", "No more tools."))
    done = await errand(edge, "prompts", "push", str(tmp_path), "--shared")
    assert "errand/agent/last: version 2" in done.out, done.err
    shown = (await edge.call("GET", path_of("errand/agent/last") + "?shared=true")).json
    assert (shown["version"], shown["shared"], shown["labels"]) == (2, True, ["production"])


async def test_an_experiment_is_run_from_the_command_line(edge: Stack) -> None:
    await make(edge, labels=["production"])
    await version(edge, "Second for {{name}}.")
    rails = '[{"metric": "success", "worseBy": 0.1}]'
    begun = await errand(
        edge, "experiments", "start", "greeting", "production", "1:3", "2", "--coverage", "0.5", "--guardrails", rails
    )
    assert begun.code == 0, begun.err
    assert "coverage 50%" in begun.out
    assert "1 (control)" in begun.out
    assert "guardrail success worse by 0.1: stop" in begun.out
    assert (await errand(edge, "experiments", "start", "greeting", "production", "one")).code == 2
    shrunk = await errand(edge, "experiments", "start", "greeting", "production", "1:3", "2", "--coverage", "0.1")
    assert (shrunk.code, "only grows" in shrunk.err) == (1, True)
    shown = await errand(edge, "experiments", "show", "greeting", "production", "--json")
    assert shown.json["coverage"] == 0.5
    chosen = await errand(edge, "experiments", "promote", "greeting", "production", "2", "--note", "it won")
    assert "it won" in chosen.out
    assert (await errand(edge, "experiments", "stop", "greeting", "production")).code == 1
    assert "it won" in (await errand(edge, "experiments", "list", "greeting")).out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no object"),
        ("[1]", "no object"),
        ("messages: []", r"\$.messages"),
        ("messages:\n- {role: user, content: x}\nmodell: y", r"\$.modell: unknown field"),
        ("messages:\n- {role: user, content: x}\n  bad: [", "line 3"),
        ("messages: !!python/object:os.system []", "could not determine a constructor"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(BadFileError, match=said):
        read(path, tmp_path)


def test_a_file_says_all_that_a_version_says(tmp_path: Path) -> None:
    """Given contents that YAML likes to misread, then reading what was written gives the same content."""
    texts = ["yes", "1.0", "null", "  two\n\n  lines \n", "tab\there", "é\u2028x", "# no comment", "{{a}}: [b", "-", ""]
    view = {
        "description": None, "version": 3, "labels": [], "model": "1", "parameters": {"temperature": 0.0},
        "messages": [{"role": "user", "content": text} for text in texts], "variables": {"a": {"default": "on"}},
    }  # fmt: skip
    for name in ("a.yaml", "a.json"):
        path = tmp_path / name
        path.write_text(written(view, path), encoding="utf-8")
        found = read(path, tmp_path)
        assert [message.content for message in found.new.messages] == texts
        assert (found.new.model, found.version) == ("1", 3)
        assert found.new.variables["a"].default == "on"
        assert written(view, path) == path.read_text(encoding="utf-8")
    assert yaml.safe_load((tmp_path / "a.yaml").read_text(encoding="utf-8"))["version"] == 3


def test_a_difference_is_readable() -> None:
    old = Content(messages=[ChatMessage(role="user", content="one two three")])
    new = Content(messages=[ChatMessage(role="user", content="one 2 three")], model="m")
    assert difference(old, new) == 'message 1 (user): one [-two-]{+2+} three\nmodel: null → "m"'
    assert difference(old, old) == ""
