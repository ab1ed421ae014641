from dataclasses import field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.core.settings import build, read_toml, settings, to_dict, to_toml, with_overrides

slow = hypothesis_settings(deadline=None)


@settings
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate must lie in 0 .. 1, found {self.rate}")


@settings
class Outer:
    inner: Inner = field(default_factory=Inner)
    kind: Literal["a", "b"] = "a"
    count: int = 3


inners = st.builds(
    Inner,
    rate=st.floats(0, 1),
    names=st.lists(st.text(st.characters(codec="utf-8"), max_size=5)).map(tuple),
    limit=st.none() | st.integers(-(2**62), 2**62),
)


@slow
@given(st.builds(Outer, inner=inners, kind=st.sampled_from("ab"), count=st.integers(0, 9)))
def test_settings_come_back_from_toml_and_from_plain_values(value: Outer) -> None:
    import tomllib

    assert build(Outer, tomllib.loads(to_toml(value)), "x") == value
    assert build(Outer, to_dict(value), "x") == value


def test_an_example_by_hand() -> None:
    assert to_toml(Outer(count=4)) == 'kind = "a"\ncount = 4\n\n[inner]\nrate = 0.5\nnames = []\n'


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"inner": {"rat": 1.0}}, "run.toml: unknown setting [inner] rat; known: rate, names, limit"),
        ({"cout": 1}, "run.toml: unknown setting cout; known: inner, kind, count"),
        ({"inner": {"rate": 2.0}}, "run.toml: inner: rate must lie in 0 .. 1, found 2.0"),
        ({"inner": {"rate": "0.5"}}, "run.toml: [inner] rate: Input should be a valid number, found '0.5'"),
        ({"kind": "c"}, "run.toml: kind: Input should be 'a' or 'b', found 'c'"),
        (
            {"count": 1.5, "cout": 1},
            "run.toml: count: Input should be a valid integer, found 1.5; "
            "unknown setting cout; known: inner, kind, count",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_file_and_table(tables: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Outer, tables, "run.toml")
    assert "\n" not in str(caught.value)
    assert str(caught.value) == message


def test_an_override_leaves_the_original_as_it_was() -> None:
    tables = {"a": {"b": 1}}
    assert with_overrides(tables, ["a.b=[1, 2]", "c.d=adam w"]) == {"a": {"b": [1, 2]}, "c": {"d": "adam w"}}
    assert tables == {"a": {"b": 1}}


@pytest.mark.parametrize("text", ["a.b", "a=1", ".b=1", "a.=1"])
def test_an_override_without_table_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as table\.key=value"):
        with_overrides({}, [text])


def test_a_settings_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path}/a.toml: no such settings file$"):
        read_toml(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=f"^{tmp_path}/a.toml: not a TOML file: "):
        read_toml(tmp_path / "a.toml")
