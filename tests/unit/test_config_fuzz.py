"""Whatever stands in the files: a configuration, or one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kai.cli.imports import convert
from kai.config import Agent, Config, ConfigError, Kai, Limits, Proxy, Telegram, Totp, User, Workspace, check, load

STRUCTS = (Kai, Telegram, Agent, Proxy, Totp, User, Limits, Workspace)
FILES = ("kai.yaml", "users.yaml", "workspaces.yaml")
KEYS = st.sampled_from(
    sorted(
        {field.name for cls in STRUCTS for field in msgspec.structs.fields(cls)} | {"users", "claude", "/srv/x", "~/x"}
    )
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.dates(),
    st.sampled_from(["alice", "admin", "off", "~/x", "/srv/x", "UTC", "2G", "acme/*", "https://x.org", "claude"]),
)
DATA = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=8), inner, max_size=4)
)
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "users": st.lists(
            st.fixed_dictionaries({"telegram_id": st.integers(0, 3), "name": st.sampled_from(["a", "b", "C"])}).flatmap(
                lambda user: st.dictionaries(KEYS, DATA, max_size=2).map(lambda extra: {**extra, **user})
            ),
            max_size=3,
        ),
        "allowed_user_ids": st.lists(st.integers(-1, 5), max_size=3),
        "workspaces": st.dictionaries(st.sampled_from(["/srv/x", "~/x", "x"]), DATA, max_size=2),
        "workspace_base": st.sampled_from(["/srv", "~", "x"]),
    },
)
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "kai.yaml": st.fixed_dictionaries(
        {}, optional={"workspace_base": st.just("/srv"), "budget": st.integers(1, 9), "pr_review": st.booleans()}
    ),
    "users.yaml": st.dictionaries(
        st.sampled_from(["alice", "bob", "c-3"]),
        st.fixed_dictionaries({}, optional={"timeout": st.integers(45, 999), "model": st.sampled_from(["opus", None])}),
        min_size=1,
    ).map(lambda users: {"users": [{"telegram_id": i + 1, "name": n, **users[n]} for i, n in enumerate(users)]}),
    "workspaces.yaml": st.dictionaries(st.sampled_from(["~/x", "/srv/x"]), st.none() | DATA, max_size=2),
}
QUIET = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def dump(data: Any) -> str:
    return str(yaml.safe_dump(data, allow_unicode=True))


DOCUMENT = (
    st.text().map(lambda text: text.encode("utf-8", "replace"))
    | st.binary(max_size=60)
    | (DATA | LIKELY).map(lambda data: dump(data).encode("utf-8", "replace"))
)


DIRECTORIES = st.fixed_dictionaries(
    {}, optional={name: DOCUMENT | GOOD[name].map(lambda data: dump(data).encode()) for name in FILES}
)


@QUIET
@given(documents=DIRECTORIES)
def test_any_documents_give_a_configuration_or_one_printable_line(tmp_path: Path, documents: dict[str, bytes]) -> None:
    for name in FILES:
        if name in documents:
            (tmp_path / name).write_bytes(documents[name])
        else:
            (tmp_path / name).unlink(missing_ok=True)
    faults = check(tmp_path)
    try:
        found = load(tmp_path)
    except ConfigError as error:
        assert str(error) == faults[0]
        assert all(fault.isprintable() and fault.startswith(f"{tmp_path}/") for fault in faults)
    else:
        assert isinstance(found, Config)
        assert faults == []
        assert len({user.telegram_id for user in found.users}) == len(found.users) > 0
        assert len({user.work_account for user in found.users}) == len(found.users)


@QUIET
@given(
    text=st.text(max_size=80)
    | st.lists(
        st.tuples(
            st.sampled_from(["ALLOWED_USER_IDS", "CLAUDE_MODEL", "BUDGET_CEILING", "WORKSPACE_BASE", "AGENT_BACKEND"]),
            st.text(max_size=12) | st.sampled_from(["1,2", "goose", "5.5", "/srv", "'x'"]),
        )
    ).map(lambda rows: "\n".join(f"{name}={value}" for name, value in rows))
)
def test_any_environment_file_gives_a_kai_yaml_that_is_valid(tmp_path: Path, text: str) -> None:
    kai, warnings = convert(text)
    (tmp_path / "kai.yaml").write_text(kai, encoding="utf-8")
    (tmp_path / "users.yaml").write_text("users: [{telegram_id: 1, name: a}]\n")
    (tmp_path / "workspaces.yaml").unlink(missing_ok=True)
    assert check(tmp_path) == []
    assert all(warning.startswith("line ") for warning in warnings)
