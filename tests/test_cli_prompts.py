"""`errand prompts` and `errand experiments`, as a person and a pipeline run them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scripts.commands import prompt_source
from scripts.commands.admin import DEFAULT_TENANT
from scripts.commands.prompt_files import BadFileError, difference, read, written
from shared.prompts import Content, Variable
from shared.specs import ChatMessage
from tests.conftest import DevModel, Stack
from tests.prompting import make, move, path_of, version
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
    assert "bad.yaml: line 3: $.messages[0].content" in bad.err
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
    again = await errand(edge, "experiments", "start", "greeting", "production", "1:3", "2")
    assert (again.code, "errand experiments ramp" in again.err) == (1, True)
    shrunk = await errand(edge, "experiments", "ramp", "greeting", "production", "0.1")
    assert (shrunk.code, "only grows" in shrunk.err) == (1, True)
    shown = await errand(edge, "experiments", "show", "greeting", "production", "--json")
    assert shown.json["coverage"] == 0.5
    chosen = await errand(edge, "experiments", "promote", "greeting", "production", "2", "--note", "it won")
    assert "it won" in chosen.out
    assert (await errand(edge, "experiments", "stop", "greeting", "production")).code == 1
    assert "it won" in (await errand(edge, "experiments", "list", "greeting")).out


async def test_more_are_let_in_and_nothing_else_changes(edge: Stack) -> None:
    """Given an experiment with guardrails, when more units are let in, then variants, unit, guardrails and note stay;
    what is given replaces; and where none runs nothing begins."""
    await make(edge, labels=["production"])
    await version(edge, "Second for {{name}}.")
    none = await errand(edge, "experiments", "ramp", "greeting", "production", "0.5")
    assert (none.code, "No experiment runs" in none.err) == (1, True)
    rails = '[{"metric": "costUsd", "worseBy": 0.1, "action": "rollback", "leastJobs": 40}]'
    start = ("experiments", "start", "greeting", "production", "1:3", "2", "--sticky-by", "job", "--coverage", "0.1")
    begun = await errand(edge, *start, "--guardrails", rails, "--note", "shorter", "--json")
    ramped = await errand(edge, "experiments", "ramp", "greeting", "production", "0.5", "--json")
    assert ramped.code == 0, ramped.err
    assert ramped.json == begun.json | {"coverage": 0.5}
    assert ramped.json["guardrails"][0]["action"] == "rollback"
    changed = await errand(
        edge, "experiments", "ramp", "greeting", "production", "0.5", "--guardrails", "[]", "--note", "all", "--json"
    )
    assert (changed.json["guardrails"], changed.json["note"], changed.json["id"]) == ([], "all", begun.json["id"])
    assert (await errand(edge, "experiments", "ramp", "greeting", "production", "half")).code == 2


async def test_a_dry_run_says_by_its_code_whether_there_is_something_to_do(edge: Stack, tmp_path: Path) -> None:
    """Like `git diff --exit-code`: 0 when nothing is, 1 when something is; without the option 0 both times."""
    (tmp_path / "triage.yaml").write_text(TRIAGE)
    dry = ("prompts", "push", str(tmp_path), "--dry-run")
    assert (await errand(edge, *dry)).code == 0
    assert (await errand(edge, *dry, "--exit-code")).code == 1
    assert (await errand(edge, "prompts", "push", str(tmp_path), "--exit-code")).code == 2
    assert (await errand(edge, "prompts", "push", str(tmp_path))).code == 0
    assert (await errand(edge, *dry, "--exit-code")).code == 0


async def test_a_push_undoes_no_rollback(edge: Stack, tmp_path: Path) -> None:
    """Given a label that was rolled back on the server, when the untouched file that names it is pushed, then it is
    refused with who moved it; a label that the file names anew is moved; --force moves all."""
    file = tmp_path / "triage.yaml"
    file.write_text(TRIAGE)
    assert (await errand(edge, "prompts", "push", str(tmp_path))).code == 0
    file.write_text(file.read_text().replace("You sort", "You file"))
    assert (await errand(edge, "prompts", "push", str(tmp_path))).code == 0
    assert (await errand(edge, "prompts", "rollback", "triage")).code == 0
    refused = await errand(edge, "prompts", "push", str(tmp_path))
    assert (refused.code, "'production' was put on version 1" in refused.err) == (1, True), refused.err
    assert (await edge.call("GET", path_of("triage"))).json["version"] == 1
    named = file.read_text()
    file.write_text(named.replace("- production", "- staging"))
    assert "label staging → version 2" in (await errand(edge, "prompts", "push", str(tmp_path))).out
    file.write_text(named)
    forced = await errand(edge, "prompts", "push", str(tmp_path), "--force")
    assert "label production → version 2" in forced.out, forced.err
    assert (await edge.call("GET", path_of("triage"))).json["version"] == 2


async def test_a_label_is_moved_by_naming_it_in_its_file(edge: Stack, tmp_path: Path) -> None:
    """Given a version that was pushed for staging, when its file names production too, then production follows."""
    await make(edge, labels=["production"])
    assert (await errand(edge, "prompts", "pull", str(tmp_path))).code == 0
    file = tmp_path / "greeting.yaml"
    file.write_text(file.read_text().replace("You greet", "You welcome").replace("- production", "- staging"))
    assert (await errand(edge, "prompts", "push", str(tmp_path))).code == 0
    assert (await edge.call("GET", path_of("greeting"))).json["version"] == 1
    file.write_text(file.read_text().replace("- staging", "- production\n- staging"))
    done = await errand(edge, "prompts", "push", str(tmp_path))
    assert "greeting: as it is\n  label production → version 2" in done.out, done.err
    assert (await edge.call("GET", path_of("greeting"))).json["version"] == 2


async def test_files_that_cannot_be_pushed_stop_all(edge: Stack, tmp_path: Path) -> None:
    """Given two files of one prompt, then a changed description, then nothing is pushed and the file keeps what it
    says; hidden files are no prompts."""
    file, hidden = tmp_path / "triage.yaml", tmp_path / ".github/ci.yaml"
    file.write_text(TRIAGE)
    hidden.parent.mkdir()
    hidden.write_text("on: push")
    assert "1 of 1 prompts: done" in (await errand(edge, "prompts", "push", str(tmp_path))).out
    (tmp_path / "triage.json").write_text('{"messages": [{"role": "user", "content": "x"}]}')
    double = await errand(edge, "prompts", "push", str(tmp_path), "--force")
    assert (double.code, "triage.yaml: it is the same prompt as" in double.err) == (1, True)
    (tmp_path / "triage.json").unlink()
    edited = file.read_text().replace("Sorts what", "Sorts all that")
    file.write_text(edited)
    refused = await errand(edge, "prompts", "push", str(tmp_path), "--force")
    assert (refused.code, "is set once" in refused.err, file.read_text() == edited) == (1, True, True)
    assert (await edge.call("GET", path_of("triage"))).json["latestVersion"] == 1


async def test_a_push_that_fails_half_way_says_what_was_done(
    edge: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a protected label and a key that may not move it, then what was pushed before it is said."""
    await make(edge, "zeta", labels=["production"])
    await move(edge, 1, name="zeta", body={"protected": True})
    assert (await errand(edge, "prompts", "pull", str(tmp_path))).code == 0
    (tmp_path / "alpha.yaml").write_text(TRIAGE)
    file = tmp_path / "zeta.yaml"
    file.write_text(file.read_text().replace("You greet", "You hail"))
    key = await edge.call("POST", f"/api/admin/tenants/{DEFAULT_TENANT}/keys", {"scopes": ["prompts"]})
    monkeypatch.setattr("tests.test_cli.ADMIN_KEY", key.json["key"])
    ran = await errand(edge, "prompts", "push", str(tmp_path))
    assert (ran.code, "zeta.yaml: this one failed; pushed before it: alpha" in ran.err) == (1, True), ran.err
    assert "takes the scope 'promote'" in ran.err
    assert (await edge.call("GET", path_of("alpha"))).status == 200


async def test_what_is_empty_and_there_goes_there_and_back(edge: Stack, tmp_path: Path) -> None:
    """Parameters without any are another content than none: pushing what was pulled makes no version."""
    (tmp_path / "plain.yaml").write_text("messages:\n- {role: user, content: x}\nparameters: {}\n")
    assert (await errand(edge, "prompts", "push", str(tmp_path))).code == 0
    assert "0 of 1 prompts" in (await errand(edge, "prompts", "push", str(tmp_path))).out


async def test_files_that_cannot_be_read_or_written_are_named(edge: Stack, tmp_path: Path) -> None:
    """Bytes that are no text are replaced by a pull; a file where a folder must be is 2; a date in a note is a text."""
    await make(edge, labels=["production"])
    file = tmp_path / "greeting.yaml"
    file.write_bytes(b"\xff")
    assert (await errand(edge, "prompts", "push", str(tmp_path))).code == 1
    assert (await errand(edge, "prompts", "pull", str(tmp_path))).code == 0
    assert "You greet" in file.read_text()
    ran = await errand(edge, "prompts", "pull", str(file))
    assert (ran.code, "cannot be written" in ran.err, ran.err.count("\n")) == (2, True, 1)
    dated = b"note: 2026-01-31\nmessages:\n- {role: user, content: x}\n"
    ran = await errand(edge, "prompts", "create", "dated", "-", "--json", given=dated)
    assert (ran.code, ran.json["note"]) == (0, "2026-01-31"), ran.err
    ran = await errand(edge, "prompts", "create", "again", "-", given=b"messages: [")
    assert (ran.code, ran.err) == (2, "errand: -: line 1: expected the node content, but found '<stream end>'\n")


ONE = "messages:\n- {role: user, content: x}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no object"),
        ("[1]", "no object"),
        ("messages: []", r"^line 1: \$\.messages"),
        (ONE + "modell: y", r"^line 3: \$\.modell: unknown field"),
        (ONE + "variables:\n  a: {}", r"^line 4: \$\.variables\.a: no message uses it"),
        ("messages:\n- role: user\n  content: |\n    {{a b}}", r"^line 3: \$\.messages\[0\]\.content: .* in line 1"),
        ("messages:\n- content: x", r"^line 2: \$\.messages\[0\]\.role: this field is required"),
        ("messages:\n- {role: user, content: x}\n  bad: [", "^line 3"),
        (ONE + "model: a\nmodel: b", "^line 4: 'model' is given twice"),
        ("messages:\n- {role: user, content: x, content: y}", "^line 2: 'content' is given twice"),
        ("a: &a [1]\nb: [*a, *a]", "^line 2: aliases are not read"),
        ("messages: !!python/object:os.system []", "^line 1: could not determine a constructor"),
        ("messages: !!binary aGk=", "^line 1: could not determine a constructor"),
        (ONE + "parameters: {temperature: .nan}", "not JSON compliant"),
        ("messages: a\x07b", r"^line 1: U\+0007 may not"),
        ("[" * 5_000, "nested too deep"),
        ("a: 1\n---\nb: 2", "^line 2: but found another document"),
    ],
)
def test_a_bad_file_is_named_with_line_and_fault(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(BadFileError, match=said):
        read(path, tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n"messages": [}', "^line 2: "),
        ('{"model": "a", "model": "b"}', "'model' is given twice"),
        ('{\n  "messages": [{"role": "user", "content": "x"}],\n  "modell": 1}', r"^line 3: \$\.modell"),
        ('{\n\t"messages": [],\n\t"modell": 1}', r"^(line 3: )?\$\."),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_bad_json_file_likewise(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.json"
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


TEXTS = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t#:-|>{}[]'\"\\\r\x85\u2028\ufeff"), max_size=60
)


@given(texts=st.lists(TEXTS, min_size=1, max_size=3), default=TEXTS, note=TEXTS)
def test_any_text_goes_there_and_back(texts: list[str], default: str, note: str) -> None:
    """Given texts of whatever characters, then the file says exactly them, and is written again as it was."""
    content = Content(
        messages=[ChatMessage(role="user", content=text) for text in texts],
        variables={"a": Variable(default=default)},
        model="m",
    )
    view = {"description": note, "version": 1, "labels": ["a"], "parameters": None, **msgspec.to_builtins(content)}
    for suffix in (".yaml", ".json"):
        text = written(view, Path(f"x{suffix}"))
        raw = prompt_source.load(text, is_json=suffix == ".json")
        assert (
            msgspec.convert({member: raw[member] for member in ("messages", "variables", "model")}, Content) == content
        )
        assert written({**view, **raw, "description": raw.get("description")}, Path(f"x{suffix}")) == text
        assert text.encode().decode() == text
