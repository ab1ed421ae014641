"""`wsi-dbps --help` shows every command, in groups, with a first line that is a whole sentence."""

from wsi_dbps_cli.main import COMMANDS, app


def test_every_command_is_shown_once_in_its_group(wsi_dbps) -> None:
    code, out, _ = wsi_dbps("--help")
    shown: dict[str, list[str]] = {}
    for line in out.partition("--help")[2].splitlines()[1:]:
        if line.endswith(":"):
            group = shown.setdefault(line[:-1], [])
        elif line.strip():
            group.append(line.split()[0])
    assert code == 0
    assert shown == {name: [m.__name__.rpartition(".")[2] for m in modules] for name, modules in COMMANDS.items()}
    names = [command.name for command in app.registered_commands]
    assert sorted(name for group in shown.values() for name in group) == sorted(names)
    assert len(set(names)) == len(names) == 15


def test_the_help_of_every_command_begins_with_a_sentence_that_is_shown_whole(wsi_dbps) -> None:
    code, out, _ = wsi_dbps("--help")
    listed = dict(line.split(None, 1) for line in out.splitlines() if line.startswith("  ") and len(line.split()) > 1)
    assert code == 0
    for command in app.registered_commands:
        first, *rest = (command.callback.__doc__ or "").splitlines()
        assert listed[command.name] == first.strip()
        assert first.endswith(".")
        assert len(first) <= 60
        assert not rest or not rest[0].strip()
