"""The examples parse, and the man pages name exactly what the parser takes."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from kai.cli import imports
from kai.config import Kai, Limits, User, Workspace, check, load

ROOT = Path(__file__).resolve().parents[2]
ALICE = "users:\n- {telegram_id: 1, name: alice}\n"


def uncommented(name: str) -> str:
    """An example with its settings taken out of the comments; prose has one space behind the #."""
    text = (ROOT / "etc" / name).read_text()
    return re.sub(r"^#(?! ?$| \S)", "", text, flags=re.MULTILINE)


def leaves(cls: type[msgspec.Struct], prefix: str = "") -> dict[str, object]:
    """Dotted key → default."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(cls):
        default = None if field.default is msgspec.NODEFAULT else field.default
        if isinstance(default, msgspec.Struct):
            found |= leaves(type(default), f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = default
    return found


def tags(page: str, section: str) -> list[str]:
    text = (ROOT / "man" / page).read_text()
    part = text.partition(f"\n.Sh {section}\n")[2]
    return re.findall(r"^\.It Ic (\S+)$", re.split(r"^\.S[hs] ", part, flags=re.MULTILINE)[0], re.MULTILINE)


def test_the_examples_of_kai_and_workspaces_are_valid_as_they_stand(tmp_path: Path) -> None:
    for name in ("kai.yaml", "workspaces.yaml"):
        (tmp_path / name).write_text((ROOT / "etc" / name).read_text())
    (tmp_path / "users.yaml").write_text(ALICE)
    found = load(tmp_path)
    assert found.kai == Kai()
    assert found.workspaces == ()


def test_the_example_of_users_admits_nobody_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "users.yaml").write_text((ROOT / "etc/users.yaml").read_text())
    assert [line.split(": ", 1)[1] for line in check(tmp_path)] == [
        "users: no user is listed, expected at least one entry with telegram_id and name"
    ]


def test_the_examples_are_valid_with_every_line_uncommented_and_show_every_key(tmp_path: Path) -> None:
    for name in ("kai.yaml", "users.yaml", "workspaces.yaml"):
        (tmp_path / name).write_text(uncommented(name))
    (tmp_path / "kai.yaml").write_text(uncommented("kai.yaml").replace("  os_user: alice\n", ""))
    found = load(tmp_path)
    assert found.given | {"agent.os_user"} == set(leaves(Kai))
    bob = found.users[1]
    assert None not in msgspec.structs.asdict(bob).values()
    assert None not in msgspec.structs.asdict(bob.limits).values()
    assert all(any(getattr(each, name) for each in found.workspaces) for name in leaves(Workspace))


def test_the_man_page_of_kai_yaml_describes_every_key_once_and_in_order() -> None:
    assert tags("kai.yaml.5", "KEYS") == list(leaves(Kai))


def test_the_man_page_of_users_describes_every_field_once_and_in_order() -> None:
    fields = [name for name in leaves(User) if not name.startswith("limits.")]
    described = tags("kai-users.yaml.5", "FIELDS")
    assert [name for name in described if not name.startswith("limits.")] == fields
    assert [name for name in described if name.startswith("limits.")] == [f"limits.{n}" for n in leaves(Limits)]


def test_the_man_page_of_workspaces_describes_every_field_once_and_in_order() -> None:
    assert tags("kai-workspaces.yaml.5", "FIELDS") == [name for name in leaves(Workspace) if name != "path"]


def rows() -> dict[str, tuple[str, str]]:
    text = (ROOT / "man/kai.yaml.5").read_text()
    found = re.findall(r"^\.It Ic (\S+) Ta (.+?) Ta (.*)$", text, re.MULTILINE)
    return {key: (default, variables) for key, default, variables in found}


def test_the_table_has_the_default_of_every_key() -> None:
    table = rows()
    assert list(table) == list(leaves(Kai))
    words = {"None": {"none", "the host's", "by backend"}, "True": {"true"}, "False": {"false"}}
    for key, default in leaves(Kai).items():
        expected = {"off"} if key == "agent.tool_timeout" else words.get(str(default), {str(default)})
        assert table[key][0] in expected, key


@pytest.mark.parametrize(("variable", "key"), imports.KEYS.items())
def test_the_table_has_the_originals_variable_beside_its_key(variable: str, key: str) -> None:
    assert re.search(rf"\b{variable}\b", rows()[key][1])


@pytest.mark.parametrize(("variable", "file"), imports.SECRETS.items())
def test_the_page_says_which_credential_holds_a_secret(variable: str, file: str) -> None:
    text = (ROOT / "man/kai.yaml.5").read_text()
    if variable != "GH_TOKEN":
        assert f".It Ev {variable} Ta Pa {Path(file).relative_to('/etc/credstore')}\n" in text


def test_the_default_identity_tells_the_agent_to_keep_its_memory() -> None:
    text = (ROOT / "etc/identity.md").read_text()
    assert "MEMORY.md" in text
    assert "Keep it current" in text
    assert len(text.encode()) < 8192
