"""The command line, called as a shell calls it."""

import sys

import pytest
from wsi_dbps_cli.main import run


@pytest.fixture
def wsi_dbps(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        monkeypatch.setattr(sys, "argv", ["wsi-dbps", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call
